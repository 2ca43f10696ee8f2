import type { Feed, Observable, Revision } from '../base/feed.ts';

/**
 * The seam between Legate and a consistent key-value store. All backends really have these semantics:
 *
 * - Writes and guarded transactions are linearizable: each takes effect at one moment, and its revision is greater than
 *   that of every write that was acknowledged before it began. What was acknowledged survives a crash.
 * - `get` and `range` see at least every write acknowledged to this client. Entries of a range come in key order
 *   (bytes of UTF-8), all from one revision.
 * - Revisions are opaque text, increasing within one store id; `compareRevisions` orders them. Those of different store
 *   ids have nothing to do with each other.
 * - A watch converges or resets: it may merge versions of a key, never lose the last one; when the wanted revision is no
 *   longer there, or belongs to another store id, it begins with a reset.
 * - A lease that is not kept alive for its TTL lapses, and its keys are deleted; some backends take up to twice the TTL.
 *
 * Keys are UTF-8 of 1 to 1,024 bytes without NUL; how large values and transactions may be is in `limits`. Beyond these:
 * LegateError E_TOO_LARGE or E_INVALID, before anything is sent.
 *
 * Errors: E_STORE_AWAY when the backend cannot be reached or does not answer within the operation's time limit (the write
 * may or may not have happened); E_CLOSED after `close`. Operations are not retried here: whoever calls knows whether
 * that is safe. Watches and lease keep-alives do retry by themselves, with back-off, until aborted.
 */
export interface Store {
  /** For people: `embedded`, `etcd`, `consul`. */
  readonly kind: string;
  readonly limits: StoreLimits;
  /** Whether the backend answers; kept current without being asked. */
  readonly status: Observable<StoreStatus>;

  get(key: string, options?: OperationOptions): Promise<Entry | undefined>;
  /** All entries whose key begins with `prefix`; with `limit` the first so many. */
  range(prefix: string, options?: OperationOptions & { readonly limit?: number }): Promise<RangeResult>;
  put(key: string, value: Uint8Array, options?: OperationOptions & { readonly lease?: Lease }): Promise<Revision>;
  /** The revision of the deletion, undefined when there was nothing. */
  delete(key: string, options?: OperationOptions): Promise<Revision | undefined>;
  /** All writes at one revision if every guard holds, nothing otherwise. A key is written at most once in it. */
  txn(guards: readonly Guard[], writes: readonly Write[], options?: OperationOptions): Promise<TxnResult>;
  /**
   * Begins a lease and keeps it alive until it is revoked, lost, or the store is closed. With `keepAlive: false` nobody
   * does: it lapses after its TTL, whatever becomes of this client; a backend that is restarted may begin the TTL anew.
   */
  lease(ttlMs: number, options?: OperationOptions & { readonly keepAlive?: boolean }): Promise<Lease>;
  /**
   * Follows the entries under `prefix`. Without `from` it begins with a reset of what is there; with `from` it continues
   * after that revision if the store still can, else with a reset. `deletes` holds keys. Ends when aborted; it hides
   * every loss of connection.
   */
  watch(prefix: string, options: { readonly signal: AbortSignal; readonly from?: Revision }): Feed<Entry>;
  compareRevisions(a: Revision, b: Revision): number;
  /** Gives up leases' keep-alives (they lapse by themselves), ends watches and releases everything held. */
  close(): Promise<void>;
}

export interface OperationOptions {
  readonly signal?: AbortSignal;
}

export interface StoreStatus {
  readonly state: 'connecting' | 'connected' | 'away' | 'closed';
  /** Wall clock of the last change of state, in milliseconds. */
  readonly sinceMs: number;
  /** While it is away: wall clock of the last word from it, where that is known. Its loss is noticed only some time later. */
  readonly heardAtMs?: number;
  /** Identifies the store's data; another id after a reconnect means another or a replaced store. */
  readonly storeId: string | undefined;
  /** Why it is away, one line. */
  readonly problem?: string;
  /** What to do about it. */
  readonly hint?: string;
}

export interface Entry {
  readonly key: string;
  readonly value: Uint8Array;
  /** Of the last write of this key. */
  readonly revision: Revision;
}

export interface RangeResult {
  readonly entries: readonly Entry[];
  readonly revision: Revision;
}

/** A condition on one key: that it is absent, that it exists, or that its last write has this revision. */
export type Guard =
  | { readonly kind: 'absent'; readonly key: string }
  | { readonly kind: 'exists'; readonly key: string }
  | { readonly kind: 'revision'; readonly key: string; readonly revision: Revision };

export type Write =
  | { readonly kind: 'put'; readonly key: string; readonly value: Uint8Array; readonly lease?: Lease }
  | { readonly kind: 'delete'; readonly key: string };

export type TxnResult = { readonly ok: true; readonly revision: Revision } | { readonly ok: false };

/** A sign of life. The backend keeps it alive by itself; its holder only hears of its loss. */
export interface Lease {
  readonly id: string;
  readonly ttlMs: number;
  /** Aborted, with the reason, when the lease has lapsed or was revoked: its keys are gone or will be. */
  readonly lost: AbortSignal;
  /** Ends it at once: its keys are deleted. */
  revoke(): Promise<void>;
}

export const maxKeyBytes = 1024;

/** What a backend takes at most; callers cut their transactions to it. */
export interface StoreLimits {
  readonly valueBytes: number;
  /** Guards and writes of a transaction together. */
  readonly txnOperations: number;
  /** Keys and values of a transaction together. */
  readonly txnBytes: number;
}
