import { status } from '@grpc/grpc-js';
import { printable, truncate } from '../../../base/text.ts';
import { type Keys, keysOf } from '../../keys.ts';
import type { StoreTrust } from '../../trust.ts';
import type { Peer } from './connections.ts';
import { RpcError } from './errors.ts';
import { includes, type KeyRange, latinOf } from './key-range.ts';
import { isLeaseOf } from './lease-owner.ts';
import type { Refusals } from './refusals.ts';
import { firstRefused, type KeyChange, partOf, type Refused, type Written } from './write-rules.ts';

/** What of the store a caller does not get to see: all keys with this prefix, as text of one character a byte. */
export type Hidden = string | undefined;

/**
 * Who may do what with the offered store: what to read, what to write (write-rules.ts), whose leases. In the clear, where
 * nobody can be told apart, everything is allowed. A refusal is counted and shown, and tells the client who, what and why.
 */
export class Permissions {
  readonly #trust: StoreTrust | undefined;
  readonly #refusals: Refusals;

  constructor(options: { readonly trust: StoreTrust | undefined; readonly refusals: Refusals }) {
    this.#trust = options.trust;
    this.#refusals = options.refusals;
  }

  /** The keys of the mesh, for the rules; undefined for a caller who may do everything. */
  keysFor({ hostId }: Peer): Keys | undefined {
    if (hostId === undefined || this.#isAuthority(hostId)) return undefined;
    return keysOf(this.#trust?.credentials.value?.mesh ?? '');
  }

  /** Throws RpcError when one of the changes is not allowed. */
  checkWrites(
    caller: Peer,
    changes: ReadonlyMap<string, KeyChange>,
    current: (key: string) => Written | undefined,
  ): void {
    const keys = this.keysFor(caller);
    const { hostId } = caller;
    const trust = this.#trust;
    if (keys === undefined || hostId === undefined || trust === undefined) return;
    const { policy, versionOf } = trust;
    const refused = firstRefused({ hostId, keys, policy: policy.value, versionOf }, changes, current);
    if (refused === undefined) return;
    throw this.#refuse(hostId, refused.kind, `write ${this.#what(keys, refused)}`, this.#why(refused));
  }

  hiddenFrom(caller: Peer): Hidden {
    const keys = this.keysFor(caller);
    return keys === undefined ? undefined : latinOf(keys.tokens);
  }

  /** Throws RpcError when the range has nothing but what the caller does not get to see. */
  checkRead(caller: Peer, range: KeyRange): void {
    const hidden = this.hiddenFrom(caller);
    if (hidden === undefined || !range.from.startsWith(hidden)) return;
    if (range.single === undefined && (range.to === undefined || range.to > prefixEnd(hidden))) return;
    throw this.#refuse(caller.hostId ?? '', 'tokens', 'read join tokens', this.#only());
  }

  /** As `checkRead`, for reads within transactions, which leave nothing out. */
  checkWholeRead(caller: Peer, range: KeyRange): void {
    const hidden = this.hiddenFrom(caller);
    if (hidden === undefined || !touches(range, hidden)) return;
    throw this.#refuse(caller.hostId ?? '', 'tokens', 'read join tokens', this.#only());
  }

  mayUseLease({ hostId }: Peer, id: string): boolean {
    return hostId === undefined || this.#isAuthority(hostId) || isLeaseOf(id, hostId);
  }

  /** Throws RpcError when the lease is another's. */
  checkLease(caller: Peer, id: string, deed: string): void {
    if (this.mayUseLease(caller, id)) return;
    throw this.#refuse(caller.hostId ?? '', 'leases', `${deed} the lease ${id}`, 'it was granted to another host');
  }

  /** For what is refused without an error, as a keep-alive is. */
  noteLease({ hostId }: Peer, id: string, deed: string): void {
    if (hostId !== undefined) this.#refuse(hostId, 'leases', `${deed} the lease ${id}`, '');
  }

  /** Throws RpcError when only the authority's host may do this. */
  checkAuthority(caller: Peer, deed: string): void {
    if (this.keysFor(caller) === undefined) return;
    throw this.#refuse(caller.hostId ?? '', 'mesh', deed, this.#only());
  }

  #isAuthority(hostId: string): boolean {
    return this.#trust?.policy.value?.authority === hostId;
  }

  #refuse(hostId: string, kind: string, deed: string, why: string): RpcError {
    const name = this.#nameOf(hostId);
    this.#refusals.request({ hostId, name, kind, deed });
    return new RpcError(status.PERMISSION_DENIED, `legate: host ${name} may not ${deed}; ${why}`);
  }

  #nameOf(hostId: string): string {
    return printable(truncate(this.#trust?.nameOf(hostId) ?? hostId, 80));
  }

  #authority(): string {
    const authority = this.#trust?.policy.value?.authority;
    return authority === undefined ? "the authority's host" : `the authority's host ${this.#nameOf(authority)}`;
  }

  #only(): string {
    return `only ${this.#authority()} may`;
  }

  #what(keys: Keys, { key }: Refused): string {
    const [part, rest] = partOf(keys, key);
    const shown = printable(truncate(rest, 80));
    const [id = ''] = rest.split('/', 1);
    switch (part) {
      case 'hosts':
        return `the record of ${this.#nameOf(id)}`;
      case 'alive':
        return `the sign of life of ${this.#nameOf(id)}`;
      case 'instances':
        return `instances of ${this.#nameOf(id)}`;
      case 'learned':
        return `what ${this.#nameOf(id)} has learned`;
      case 'services':
        return `settings of service ${shown}`;
      case 'vips':
        return `the claim of virtual address ${shown}`;
      case 'policy':
        return 'the policy';
      case 'tokens':
        return 'join tokens';
      default:
        return `the key ${shown}`;
    }
  }

  #why({ why, kind }: Refused): string {
    switch (why) {
      case 'not its own':
        return `a host writes its own records; ${this.#authority()} alone may remove those of others`;
      case 'settings':
        return `settings are changed on ${this.#authority()}, or from here with --admin`;
      case 'not granted':
        return `it is not granted that service: legate host allow on ${this.#authority()}`;
      case 'lease':
        return kind === 'leases' ? 'that takes a lease which was granted to it' : 'a sign of life needs a lease';
      case 'form':
        return 'it is not of the form that it must have, or its virtual address is not claimed';
      case 'authority only':
        return this.#only();
    }
  }
}

/** Whether the range has keys with this prefix. */
function touches(range: KeyRange, prefix: string): boolean {
  if (range.single !== undefined) return range.from.startsWith(prefix);
  return includes(range, prefix) || range.from.startsWith(prefix);
}

/** The least text after all with this prefix, one character a byte. */
function prefixEnd(prefix: string): string {
  const last = prefix.length - 1;
  return prefix.slice(0, last) + String.fromCharCode(prefix.charCodeAt(last) + 1);
}
