import { existsSync } from 'node:fs';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, LegateError } from '../src/base/errors.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import type { Config, StoreConfig } from '../src/config/config.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Credentials } from '../src/model/credentials.ts';
import type { Host } from '../src/model/host.ts';
import { isAuthorityElsewhere, type Policy } from '../src/model/policy.ts';
import { Authority } from '../src/pki/authority.ts';
import { defaultTunnelPort, type EnrolmentDesk } from '../src/pki/desk.ts';
import { hostFiles, readHostCredentials } from '../src/pki/host-files.ts';
import type { Keys } from '../src/store/keys.ts';
import type { Store } from '../src/store/store.ts';
import type { IdentityDocument } from './admin/documents.ts';
import { AuthorityOffice } from './authority-office.ts';
import { Identity } from './identity.ts';
import { ownAddresses } from './init.ts';
import { type Joined, readJoined, readStoreText, storeDifference, storeTextFor, writeJoined } from './joined-store.ts';
import { OutsideIdentity } from './outside-identity.ts';

const differenceId = 'store.joined';
const elsewhereId = 'pki.elsewhere';

export interface MembershipOptions {
  readonly config: Config;
  readonly dataDir: { readonly joinedFile: string };
  readonly self: { readonly hostId: string; readonly hostName: string };
  readonly version: string;
  readonly configFile?: string | undefined;
  readonly policy: Observable<Policy | undefined>;
  /** Whether the store has the policy that this host has; on the authority's host. */
  readonly policyStored: () => boolean;
  /** Of the authority's host. */
  readonly changePolicy: (by: (policy: Policy) => Policy) => Promise<unknown>;
  /** Another host gave it; it is checked there. */
  readonly offerPolicy: (sealed: Uint8Array) => Promise<unknown>;
  readonly hosts: () => readonly Host[];
  /** The store in use. */
  readonly store: () => { readonly store: Store; readonly keys: Keys } | undefined;
  /** The store that is in use or wanted. */
  readonly storeConfig: () => StoreConfig;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/** What this host is in its mesh: who it is to others, and, on one host, the authority. */
export interface Membership {
  readonly credentials: Observable<Credentials | undefined>;
  /** On the authority's host. */
  readonly desk?: EnrolmentDesk;
  readonly office?: AuthorityOffice;
  /** Runs until aborted. */
  run(signal: AbortSignal): Promise<void>;
  document(): IdentityDocument;
}

/** Reads what this host was given. Files that cannot be used are LegateErrors: a host does not start without its identity. */
export function openMembership(options: MembershipOptions): Membership {
  const { config, self } = options;
  if (config.tls !== undefined)
    return new OutsideIdentity({ ...options, tls: config.tls, mesh: config.mesh, hostId: self.hostId });
  const files = hostFiles(config.dataDir);
  const credentials = readHostCredentials(files, config.mesh);
  if (credentials === undefined) return notInMesh();
  if (credentials.hostId !== self.hostId) {
    throw new LegateError(
      'E_INVALID',
      `${files.certificate} is that of host ${credentials.hostId}, and this is host ${self.hostId}`,
      {
        hint: 'data_dir was put together from two: restore it from one backup, or join anew with an empty one',
      },
    );
  }
  return openMember(options, credentials);
}

function openMember(options: MembershipOptions, credentials: Credentials): Membership {
  const { config, self, policy, conditions, dataDir, log } = options;
  const files = hostFiles(config.dataDir);
  const { listen } = config.tunnel;
  const reached = { address: config.advertise, port: listen.port };
  const addresses = ownAddresses(config);
  const office = existsSync(files.authority) ? openOffice(options, reached, addresses) : undefined;
  let joined = readJoined(dataDir.joinedFile);
  const tellDifference = (): void => {
    const difference = storeDifference(config, joined);
    if (difference === undefined) conditions.clear(differenceId);
    else
      conditions.raise(
        differenceId,
        'note',
        difference,
        'the configuration wins; if the mesh is not there, take `store:` out of it',
      );
  };
  tellDifference();
  const identity = new Identity({
    ...options,
    files,
    credentials,
    hostName: self.hostName,
    reached,
    served: { address: isAny(listen.address) ? '127.0.0.1' : listen.address, port: listen.port },
    authorityAt: () => authorityAt(options, joined),
    isCutOff: () => options.store()?.store.status.value.state === 'away',
    ...(office !== undefined && { issuer: { authority: office.authority, addresses } }),
    onAdmission: ({ sealedPolicy, store }) => {
      void options
        .offerPolicy(sealedPolicy)
        .catch((error: unknown) =>
          log.warn("the policy of the authority's answer was refused", { 'policy.reason': describeError(error) }),
        );
      const authority = { hostId: policy.value?.authority ?? '', ...(authorityAt(options, joined)[0] ?? reached) };
      const next: Joined = { store: readStoreText(store), authority };
      if (joined === undefined || JSON.stringify(next) === JSON.stringify(joined)) return;
      joined = next;
      tellDifference();
      writeJoined(dataDir.joinedFile, next).catch((error: unknown) =>
        log.warn("where the mesh's store is could not be written", { 'pki.reason': describeError(error) }),
      );
    },
  });
  return {
    credentials: identity.credentials,
    ...(office !== undefined && { desk: office.desk, office }),
    async run(signal) {
      const end = office === undefined ? undefined : tellElsewhere(options, office);
      try {
        await Promise.all([identity.run(signal), office?.run(signal)]);
      } finally {
        end?.();
      }
    },
    document: () => identity.document(),
  };
}

function openOffice(options: MembershipOptions, reached: Endpoint, addresses: readonly string[]): AuthorityOffice {
  const { config, self, clock, policy } = options;
  const folder = hostFiles(config.dataDir).authority;
  const authority = Authority.open(folder, { passphraseFile: config.authority.passphraseFile, clock });
  authority.removeRemains();
  return new AuthorityOffice({
    ...options,
    authority,
    reached,
    policy: () => policy.value,
    store: () => {
      const used = options.store();
      if (used !== undefined) return used;
      throw new LegateError('E_STORE_AWAY', "the authority's host has no store at the moment", {
        hint: 'legate status there says why',
      });
    },
    storeText: () => storeTextFor(options.storeConfig(), { hostId: self.hostId, advertise: config.advertise }),
    onOutdated: () => options.conditions.clear(elsewhereId),
    addressesOf: (hostId) => (hostId === self.hostId ? addresses : []),
  });
}

/** Says while this host has the authority's keys and the policy says that it is elsewhere. */
function tellElsewhere({ policy, self, hosts, conditions }: MembershipOptions, office: AuthorityOffice): () => void {
  const { authority } = office;
  const tell = (): void => {
    // What can never take over is told by the rotation.
    if (!isAuthorityElsewhere(policy.value, self.hostId) || office.isOutdated) {
      conditions.clear(elsewhereId);
      return;
    }
    const id = policy.value?.authority;
    const host = hosts().find((each) => each.id === id);
    const where = host === undefined ? `host ${id}` : `${host.name} (${host.address})`;
    if (authority.claims) {
      const message = `the authority was restored here, and takes over from ${where} once the store has the present policy`;
      conditions.raise(elsewhereId, 'note', message, 'legate status shows whether the store answers');
    } else {
      const message = `the authority of this mesh is on ${where} now: the keys of it that this host has are not used any more`;
      const hint = `remove ${authority.folder} when the new one works and is saved (legate ca backup there)`;
      conditions.raise(elsewhereId, 'warning', message, hint);
    }
  };
  tell();
  return policy.subscribe(tell);
}

/** Where the authority's host is by the catalog, and where it was when this host joined. */
function authorityAt({ policy, hosts }: MembershipOptions, joined: Joined | undefined): readonly Endpoint[] {
  const id = policy.value?.authority;
  const host = hosts().find((each) => each.id === id);
  const known = host === undefined ? [] : [{ address: host.address, port: host.tunnelPort ?? defaultTunnelPort }];
  const { address = '', port = 0 } = joined?.authority ?? {};
  const isNew = port > 0 && !known.some((each) => each.address === address && each.port === port);
  return isNew ? [...known, { address, port }] : known;
}

/** A sidecar without an authority: no tunnels; everything else as it was. */
function notInMesh(): Membership {
  return {
    credentials: new Latest<Credentials | undefined>(undefined),
    run: () => Promise.resolve(),
    document: () => ({ role: 'none', certificateUntil: null, serial: null, roots: [], problem: null }),
  };
}

function isAny(address: string): boolean {
  return address === '0.0.0.0' || address === '::';
}
