import { createPublicKey, type KeyObject, randomBytes } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { describeError, isLegateError, LegateError } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { printable } from '../base/text.ts';
import { isLoopback } from '../model/address.ts';
import type { HostRecord } from '../model/host.ts';
import { comeBackHint, isRevoked, joinAgainHint, type Policy } from '../model/policy.ts';
import { Attempts } from './attempts.ts';
import type { Authority, Recipient } from './authority.ts';
import { keyFingerprint } from './chain.ts';
import { type DeskCaller, defaultTunnelPort, deskBusy, type EnrolmentDesk, isDeskBusy } from './desk.ts';
import { keyOfRequest } from './issue.ts';
import type { LedgerEntry } from './ledger.ts';
import {
  type Admission,
  decodeEnrol,
  decodeRenew,
  type EnrolRequest,
  encodeAdmission,
  encodeRefusal,
} from './messages.ts';
import { sealPolicy } from './policy-seal.ts';
import { hashOfSecret } from './token.ts';

/** Requests that wait for their turn; more are refused at once. */
const maxWaiting = 64;
/** A host that was let in and has not been heard of since holds its name so long: its answer may have been lost. */
const unheardMs = 10 * 60_000;

export type TokenState = 'valid' | 'unknown' | 'expired' | 'spent';

/** The join tokens that were given out, by hash. Errors are the store's. */
export interface TokenBook {
  look(hash: string): Promise<TokenState>;
  /** Takes one use of it, if it still has one. */
  spend(hash: string): Promise<TokenState>;
}

export interface AuthorityDeskOptions {
  readonly authority: Authority;
  readonly self: { readonly hostId: string };
  /** Where other hosts reach this one. */
  readonly reached: { readonly address: string; readonly port: number };
  readonly tokens: TokenBook;
  /** The mesh's policy as this host has it. */
  readonly policy: () => Policy | undefined;
  /** The hosts of the mesh, as far as they are known. */
  readonly hosts: () => Iterable<HostRecord>;
  /** Where the mesh's store is, for another host. */
  readonly store: () => string;
  /** Addresses beyond the advertised one that a host of this id listens at. */
  readonly addressesOf?: (hostId: string) => readonly string[];
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
}

/** The desk on the authority's host. Requests are answered one after the other: names and tokens are given out once. */
export class AuthorityDesk implements EnrolmentDesk {
  readonly #options: AuthorityDeskOptions;
  readonly #attempts: Attempts;
  readonly #enrolled: CounterCell;
  readonly #renewed: CounterCell;
  #turn: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  constructor(options: AuthorityDeskOptions) {
    this.#options = options;
    this.#attempts = new Attempts(options.clock);
    const { metrics } = options;
    this.#enrolled = metrics.counter('legate_pki_enrolments_total', 'Hosts that were let into the mesh.');
    this.#renewed = metrics.counter('legate_pki_renewals_total', 'Certificates that were renewed for hosts.');
  }

  async answer(kind: 'enrol' | 'renew', request: Uint8Array, from: DeskCaller): Promise<Uint8Array> {
    try {
      if (this.#attempts.isTooMany(from.address)) {
        throw refusal(
          'throttled',
          'E_UNAUTHORIZED',
          'too many requests from this address failed',
          'try again in a minute',
        );
      }
      const answer = await this.#inTurn(() => (kind === 'enrol' ? this.#enrol(request) : this.#renew(request, from)));
      return encodeAdmission(answer);
    } catch (error) {
      return this.#refuse(error, kind, from);
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (this.#waiting >= maxWaiting) {
      throw deskBusy();
    }
    this.#waiting += 1;
    const mine = this.#turn.then(work, work).finally(() => {
      this.#waiting -= 1;
    });
    this.#turn = mine.catch(() => undefined);
    return mine;
  }

  #refuse(error: unknown, kind: string, from: DeskCaller): Uint8Array {
    const { log, metrics } = this.#options;
    const refused = isLegateError(error) ? error : undefined;
    const isBusy = refused !== undefined && isDeskBusy(refused);
    const code = isBusy ? 'busy' : (refused?.code ?? 'failure');
    const reason = error instanceof DeskRefusal ? error.reason : code;
    const help = 'Requests at the authority that were refused, by reason.';
    metrics.counter('legate_pki_refusals_total', help, { reason: reason.toLowerCase() }).value += 1;
    const fields = { 'pki.request': kind, 'pki.from': printable(from.address), 'pki.reason': describeError(error) };
    if (refused === undefined) log.error('a request at the authority failed', fields);
    else log.warn('a request at the authority was refused', fields);
    // A store that is away is nobody's fault, nor is it that many come at once.
    if (refused !== undefined && refused.code !== 'E_STORE_AWAY' && !isBusy) this.#attempts.failed(from.address);
    const hint = 'its log says why';
    return encodeRefusal(refused ?? new LegateError('E_CLOSED', "the authority's host failed at this", { hint }));
  }

  async #enrol(bytes: Uint8Array): Promise<Admission> {
    const { authority, tokens, log } = this.#options;
    const request = decodeEnrol(bytes);
    const hash = hashOfSecret(Buffer.from(request.secret, 'base64url'));
    // Nothing is told to whoever has no valid token.
    checkToken(await tokens.look(hash));
    const policy = this.#policy();
    const { mesh } = authority.settings;
    const key = await keyOfRequest(request.request, { mesh, name: request.name });
    const hostId = this.#idFor(request, key, policy);
    this.#checkFree(hostId, request, policy);
    checkToken(await tokens.spend(hash));
    const trusts = authority.ledger.get(hostId)?.trusts ?? [];
    const chain = await this.#issue({ ...request, hostId, trusts }, key);
    this.#enrolled.value += 1;
    log.info('a host was let into the mesh', {
      'host.id': hostId,
      'host.name': request.name,
      'host.address': request.address,
    });
    return this.#admission(hostId, request.name, chain);
  }

  async #renew(bytes: Uint8Array, { hostId }: DeskCaller): Promise<Admission> {
    const { authority, log, clock } = this.#options;
    const request = decodeRenew(bytes);
    const policy = this.#policy();
    const entry = hostId === undefined ? undefined : (authority.ledger.get(hostId) ?? this.#entryOf(hostId, policy));
    if (hostId === undefined || entry === undefined) {
      const text = 'this authority has given that host no certificate';
      throw refusal('stranger', 'E_UNAUTHORIZED', text, joinAgainHint);
    }
    if (isRevoked(policy, hostId)) {
      throw refusal('revoked', 'E_UNAUTHORIZED', `host ${entry.name} was revoked`, comeBackHint);
    }
    if (request.request === undefined) {
      await authority.ledger.put({ ...entry, trusts: request.trusts }, clock.nowMs());
      return this.#admission(hostId, entry.name);
    }
    // The name stays what it was bound to; an address may change to one that is free.
    const moved = { name: entry.name, address: request.address, port: request.port };
    const isFree = this.#holderOf(hostId, moved, policy) === undefined;
    const where = isFree ? moved : { name: entry.name, address: entry.address, port: entry.port };
    const key = await keyOfRequest(request.request, { mesh: authority.settings.mesh, name: entry.name, hostId });
    const chain = await this.#issue({ ...where, hostId, trusts: request.trusts }, key);
    this.#renewed.value += 1;
    log.debug('a certificate was renewed', { 'host.id': hostId, 'host.name': entry.name });
    return this.#admission(hostId, entry.name, chain);
  }

  /**
   * A host with a certificate of this authority that was let in after the backup of which this ledger is: as the store has
   * it. Undefined when it is not there, or when another host has its name or address.
   */
  #entryOf(hostId: string, policy: Policy): LedgerEntry | undefined {
    const { authority, clock, hosts } = this.#options;
    const host = [...hosts()].find(({ id }) => id === hostId);
    if (host === undefined) return undefined;
    const { name, address, tunnelPort: port = defaultTunnelPort } = host;
    if (this.#holderOf(hostId, { name, address, port }, policy) !== undefined) return undefined;
    const { issuing, old = issuing, certificateLifeMs } = authority.settings;
    const nowMs = clock.nowMs();
    const lifetime = { issuedAtMs: nowMs, notAfterMs: nowMs + certificateLifeMs };
    return { hostId, name, address, port, serial: 'unknown', root: old, ...lifetime, trusts: [] };
  }

  async #issue(recipient: Recipient, key: Parameters<Authority['issue']>[1]): Promise<string> {
    const addresses = this.#options.addressesOf?.(recipient.hostId) ?? [];
    const { hostId, name, address, port, trusts = [] } = recipient;
    return (await this.#options.authority.issue({ hostId, name, address, port, trusts, addresses }, key)).certificate;
  }

  #admission(hostId: string, name: string, chain?: string): Admission {
    const { authority, self, reached, store } = this.#options;
    const policy = this.#policy();
    const { mesh, meshId } = authority.settings;
    return {
      hostId,
      name,
      ...(chain !== undefined && { chain }),
      roots: policy.roots,
      policy: Buffer.from(sealPolicy(policy, authority.policyKey)).toString('base64'),
      policyKey: publicPem(authority.policyKey),
      mesh,
      meshId,
      store: store(),
      authority: { hostId: self.hostId, ...reached },
    };
  }

  #policy(): Policy {
    const { self } = this.#options;
    const policy = this.#options.policy();
    if (policy?.authority === self.hostId) return policy;
    if (policy !== undefined) {
      const host = [...this.#options.hosts()].find(({ id }) => id === policy.authority);
      const where = host === undefined ? `host ${policy.authority}` : `${host.name} (${host.address})`;
      const text = `the authority of this mesh is on ${where} by now`;
      throw refusal('elsewhere', 'E_CONFLICT', text, 'name that host, with a token of legate token there');
    }
    throw refusal(
      'no policy',
      'E_STORE_AWAY',
      "the authority's host has not read the policy yet",
      'try again in a moment',
    );
  }

  /**
   * A new id; or the one that the host had: in this mesh, where it asks with the key of its last certificate, or before
   * there was an authority, if nobody else has a claim to it. Never one that was revoked.
   */
  #idFor({ previousId, name, address }: EnrolRequest, key: KeyObject, policy: Policy): string {
    const { authority, hosts, self } = this.#options;
    if (previousId !== undefined && previousId !== self.hostId && !isRevoked(policy, previousId)) {
      const entry = authority.ledger.get(previousId);
      const before = [...hosts()].find(({ id }) => id === previousId);
      const isSame =
        entry === undefined
          ? before?.name === name && before.address === address
          : entry.name === name && entry.key === keyFingerprint(key);
      if (isSame) return previousId;
    }
    return randomBytes(8).toString('hex');
  }

  #checkFree(hostId: string, wanted: Wanted, policy: Policy): void {
    const holder = this.#holderOf(hostId, wanted, policy);
    if (holder === undefined) return;
    const what = holder.name === wanted.name ? `the name ${wanted.name}` : `the address ${wanted.address}`;
    const whose = `host ${holder.name} (${holder.hostId})`;
    throw refusal('taken', 'E_CONFLICT', `${what} is that of ${whose} already`, takenHint(holder.name));
  }

  /** Who has the name or the address; certificates that have ended and revoked hosts hold nothing any more. */
  #holderOf(hostId: string, wanted: Wanted, policy: Policy): { hostId: string; name: string } | undefined {
    const { authority, hosts, clock } = this.#options;
    const nowMs = clock.nowMs();
    const issued = authority.ledger
      .entries()
      .filter((each) => each.notAfterMs > nowMs && (each.trusts.length > 0 || each.issuedAtMs + unheardMs > nowMs));
    const stored = [...hosts()].map((host) => ({
      ...host,
      hostId: host.id,
      port: host.tunnelPort ?? defaultTunnelPort,
    }));
    return [...issued, ...stored].find(
      (each) => each.hostId !== hostId && !isRevoked(policy, each.hostId) && isTaken(each, wanted),
    );
  }
}

interface Wanted {
  readonly name: string;
  readonly address: string;
  readonly port: number;
}

/** Several sidecars on one machine are told apart by their ports. */
function isTaken(held: Wanted, wanted: Wanted): boolean {
  if (held.name === wanted.name) return true;
  return held.address === wanted.address && (!isLoopback(wanted.address) || held.port === wanted.port);
}

function takenHint(name: string): string {
  return `set another \`host\` or \`advertise\` in the configuration of the host that joins; if it is that very host and its data_dir is whole, legate join --again; if that is gone for ever, run legate host revoke ${name} first`;
}

function checkToken(state: TokenState): void {
  if (state === 'valid') return;
  const texts = {
    unknown: 'the authority knows no such token',
    expired: 'the token has expired',
    spent: 'the token was used as often as it may be',
  };
  throw refusal(
    `token ${state}`,
    'E_UNAUTHORIZED',
    texts[state],
    "legate token on the authority's host prints a new one",
  );
}

/** A refusal with a word to count it by. */
class DeskRefusal extends LegateError {
  readonly reason: string;

  constructor(reason: string, ...rest: ConstructorParameters<typeof LegateError>) {
    super(...rest);
    this.reason = reason;
  }
}

function refusal(reason: string, code: LegateError['code'], message: string, hint: string): LegateError {
  return new DeskRefusal(reason, code, message, { hint });
}

function publicPem(privatePem: string): string {
  return createPublicKey(privatePem).export({ type: 'spki', format: 'pem' }).toString();
}
