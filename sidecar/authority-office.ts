import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Host } from '../src/model/host.ts';
import { isLocked, type Policy } from '../src/model/policy.ts';
import type { Authority } from '../src/pki/authority.ts';
import { AuthorityDesk } from '../src/pki/authority-desk.ts';
import { certificatesOf, fingerprintOfPem } from '../src/pki/chain.ts';
import { RootRotation } from '../src/pki/root-rotation.ts';
import { formatToken, hashOfSecret, newToken } from '../src/pki/token.ts';
import { JoinTokens, type TokenTerms } from '../src/registrar/join-tokens.ts';
import type { Keys } from '../src/store/keys.ts';
import type { Store } from '../src/store/store.ts';
import type { AuthorityDocument, TokenDocument } from './admin/documents.ts';
import { joinAddress } from './joined-store.ts';

const sweepEveryMs = 3_600_000;

export interface AuthorityOfficeOptions {
  readonly authority: Authority;
  readonly self: { readonly hostId: string; readonly hostName: string };
  readonly reached: Endpoint;
  readonly configFile?: string | undefined;
  readonly policy: () => Policy | undefined;
  readonly policyStored: () => boolean;
  readonly changePolicy: (by: (policy: Policy) => Policy) => Promise<unknown>;
  readonly hosts: () => readonly Host[];
  /** E_STORE_AWAY while there is none. */
  readonly store: () => { readonly store: Store; readonly keys: Keys };
  /** Where the store is, for other hosts. */
  readonly storeText: () => string;
  /** As `isOutdated` becomes true. */
  readonly onOutdated: () => void;
  readonly addressesOf: (hostId: string) => readonly string[];
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/** All that only the authority's host does with certificates: lets hosts in, gives tokens out, replaces the root. */
export class AuthorityOffice {
  readonly authority: Authority;
  readonly desk: AuthorityDesk;
  readonly #options: AuthorityOfficeOptions;
  readonly #tokens: JoinTokens;
  readonly #rotation: RootRotation;

  constructor(options: AuthorityOfficeOptions) {
    const { authority, store, clock, hosts } = options;
    this.#options = options;
    this.authority = authority;
    const policy = (): Policy | undefined => {
      const present = options.policy();
      return present === undefined || isLocked(present) ? undefined : present;
    };
    this.#tokens = new JoinTokens({ store, clock });
    this.desk = new AuthorityDesk({ ...options, policy, tokens: this.#tokens, store: options.storeText });
    this.#rotation = new RootRotation({
      ...options,
      policy,
      change: options.changePolicy,
      alive: () => new Set(hosts().flatMap(({ id, alive }) => (alive ? [id] : []))),
    });
  }

  /** Whether it was restored here from a backup of before a rotation. */
  get isOutdated(): boolean {
    return this.#rotation.isOutdated;
  }

  /** Runs until aborted. */
  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([this.#rotation.run(signal), this.#sweep(signal)]);
  }

  /** Gives out a token. Errors are the store's, and E_CONFLICT when too many are out. */
  async giveToken(terms: TokenTerms): Promise<TokenDocument> {
    const { self, reached, configFile } = this.#options;
    const token = newToken(this.authority.settings.issuing, self.hostId);
    const { expiresAtMs } = await this.#tokens.add(hashOfSecret(token.secret), terms);
    return {
      token: formatToken(token),
      expiresAt: new Date(expiresAtMs).toISOString(),
      uses: terms.uses,
      address: joinAddress(reached),
      ...(configFile?.startsWith('/') && { config: configFile }),
    };
  }

  /** Begins to replace the root, or with `finish` ends the overlap for hosts that are away. E_CONFLICT. */
  async rotate(finish: boolean): Promise<AuthorityDocument> {
    await (finish ? this.#rotation.finish() : this.#rotation.begin());
    return this.document();
  }

  document(): AuthorityDocument {
    const { self, hosts, policy } = this.#options;
    const { issuing, next, old, certificateLifeMs, rotationSinceMs, issuingSinceMs } = this.authority.settings;
    const revoked = new Map(policy()?.revoked.map(({ hostId, setAtMs }) => [hostId, setAtMs]));
    const alive = new Set(hosts().flatMap((host) => (host.alive ? [host.id] : [])));
    const stateOf = (fingerprint: string): 'issuing' | 'next' | 'old' =>
      fingerprint === issuing ? 'issuing' : fingerprint === next ? 'next' : 'old';
    return {
      host: self.hostName,
      phase: this.#rotation.phase,
      since: rotationSinceMs === undefined ? null : new Date(rotationSinceMs).toISOString(),
      waitingFor: this.#rotation.waitingFor().map(({ name }) => name),
      certificateLifeMs,
      roots: this.authority.roots.map((root) => {
        const fingerprint = fingerprintOfPem(root) ?? '';
        const [certificate] = certificatesOf(root) ?? [];
        return {
          fingerprint,
          state: stateOf(fingerprint),
          until: certificate === undefined ? '' : new Date(certificate.validTo).toISOString(),
          ...(fingerprint === issuing && issuingSinceMs !== undefined && { since: timeText(issuingSinceMs) }),
        };
      }),
      hosts: this.authority.ledger.entries().map((entry) => ({
        id: entry.hostId,
        name: entry.name,
        address: entry.address,
        alive: alive.has(entry.hostId) || entry.hostId === self.hostId,
        serial: entry.serial,
        root: entry.root,
        rootState: entry.root === issuing ? 'issuing' : entry.root === old ? 'old' : 'gone',
        issuedAt: new Date(entry.issuedAtMs).toISOString(),
        until: new Date(entry.notAfterMs).toISOString(),
        ...(revoked.has(entry.hostId) && { revokedAt: timeText(revoked.get(entry.hostId) ?? 0) }),
      })),
    };
  }

  async #sweep(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.#options.clock.sleep(sweepEveryMs, signal).catch(() => undefined);
      // A store that is away is swept the next time.
      if (!signal.aborted) await this.#tokens.sweep({ signal }).catch(() => undefined);
    }
  }
}

function timeText(wallMs: number): string {
  return new Date(wallMs).toISOString();
}
