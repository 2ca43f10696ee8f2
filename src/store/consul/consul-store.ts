import { randomBytes } from 'node:crypto';
import { LegateError } from '../../base/errors.ts';
import type { Feed, Observable, Revision } from '../../base/feed.ts';
import type { ConsulStoreConfig } from '../../config/config.ts';
import { type RemoteStoreOptions, warnOfClearText } from '../remote.ts';
import { compareNumberedRevisions, formatRevision } from '../revision.ts';
import type {
  Entry,
  Guard,
  Lease,
  OperationOptions,
  RangeResult,
  Store,
  StoreLimits,
  StoreStatus,
  TxnResult,
  Write,
} from '../store.ts';
import { checkKey, checkPrefix, checkTxn } from '../validate.ts';
import type { Listing, StoredPair } from './client.ts';
import { Connection, type Link, operationLimitMs } from './connection.ts';
import { awayError, ConsulFault } from './faults.ts';
import { ForeignKeys } from './foreign-keys.ts';
import { storeKeys } from './identity.ts';
import { Leases } from './leases.ts';
import { KeyNames, listablePrefix } from './names.ts';
import { explainConflict, lapsedError, newestIndex, type Plan, planTxn } from './operations.ts';
import { type ListedEntry, Watches } from './watch.ts';

/**
 * Consul takes a transaction of at most 64 operations and 512 KiB of JSON, in which values are base64. A put is two
 * operations, and two are ours.
 */
const limits: StoreLimits = { valueBytes: 352 * 1024, txnOperations: 31, txnBytes: 352 * 1024 };
const maxRequestBytes = 512 * 1024;
/** How often a transaction is sent again because the store turned out to be another one; it never happened then. */
const maxReplacements = 3;

/**
 * A client of Consul's key-value store. Returns at once: the state is `connecting` until a server answered. Errors:
 * E_CONFIG and E_PERMISSION for files that cannot be used.
 */
export async function openConsulStore(config: ConsulStoreConfig, options: RemoteStoreOptions): Promise<Store> {
  const store = new ConsulStore(config, options);
  store.start();
  return store;
}

class ConsulStore implements Store {
  readonly kind = 'consul';
  readonly limits = limits;
  readonly #config: ConsulStoreConfig;
  readonly #options: RemoteStoreOptions;
  readonly #names: KeyNames;
  readonly #connection: Connection;
  readonly #leases: Leases;
  readonly #watches: Watches;
  readonly #foreign: ForeignKeys;
  /** The newest index that this client has heard of, per store id. */
  #newest: { readonly storeId: string; readonly index: number } = { storeId: '', index: 0 };
  /** Takes back what was said of a connection in the clear. */
  #noteEncrypted = (): void => undefined;
  #closed: Promise<void> | undefined;

  constructor(config: ConsulStoreConfig, options: RemoteStoreOptions) {
    const common = { ...options, random: options.random ?? Math.random };
    this.#config = config;
    this.#options = options;
    this.#names = new KeyNames(config.prefix);
    this.#foreign = new ForeignKeys({ ...options, prefix: config.prefix });
    this.#connection = new Connection({ ...common, config, names: this.#names });
    const connection = this.#connection;
    this.#leases = new Leases({ ...common, connection });
    this.#watches = new Watches({
      ...common,
      connection,
      entries: (listing, storeId) => this.#entriesOf(listing, storeId),
      toConsul: (prefix) => this.#names.prefixToConsul(prefix),
    });
  }

  get status(): Observable<StoreStatus> {
    return this.#connection.status;
  }

  start(): void {
    this.#noteEncrypted = warnOfClearText(this.#config.endpoints, this.#options.conditions);
    this.#connection.start();
  }

  async get(key: string, { signal }: OperationOptions = {}): Promise<Entry | undefined> {
    checkKey(key);
    return await this.#use(signal, async (link, until) => {
      const operations = [this.#identity(link), { KV: { Verb: 'get', Key: this.#names.toConsul(key) } }];
      try {
        const pairs = await link.client.txn(operations, { signal: until, timeoutMs: 0 });
        const pair = this.#readable(pairs, link).at(0);
        if (pair === undefined) throw refusedRead(link);
        return this.#entry(pair, link.storeId);
      } catch (error) {
        const what = explainConflict(conflict(error), { operations, roles: ['identity', 'guard'] });
        if (what === 'guard') return undefined;
        throw replacedError(link);
      }
    });
  }

  async range(
    prefix: string,
    { signal, limit }: OperationOptions & { readonly limit?: number } = {},
  ): Promise<RangeResult> {
    checkPrefix(prefix);
    return await this.#use(signal, async (link, until) => {
      const before = this.#newestOf(link.storeId);
      const pairs = await this.#pairsBelow(prefix, link, until);
      const index = Math.max(1, before, newestIndex(pairs));
      this.#heard(link.storeId, index);
      const entries = this.#entriesOf({ pairs, index, bytes: 0 }, link.storeId)
        .filter(({ key }) => key.startsWith(prefix))
        .slice(0, limit)
        .map(({ key, value, revision }): Entry => ({ key, value, revision }));
      return { entries, revision: formatRevision(link.storeId, index) };
    });
  }

  async put(
    key: string,
    value: Uint8Array,
    { lease, ...options }: OperationOptions & { readonly lease?: Lease } = {},
  ): Promise<Revision> {
    const result = await this.txn([], [{ kind: 'put', key, value, ...(lease && { lease }) }], options);
    if (!result.ok) throw new Error('a put without guards did not happen');
    return result.revision;
  }

  async delete(key: string, options: OperationOptions = {}): Promise<Revision | undefined> {
    const result = await this.txn([{ kind: 'exists', key }], [{ kind: 'delete', key }], options);
    return result.ok ? result.revision : undefined;
  }

  async txn(guards: readonly Guard[], writes: readonly Write[], { signal }: OperationOptions = {}): Promise<TxnResult> {
    checkTxn(guards, writes, limits);
    for (const write of writes)
      if (write.kind === 'put' && write.lease?.lost.aborted) throw lapsedError(write.lease.id);
    // What the caller may change while this waits is copied now.
    const copied = writes.map((write) =>
      write.kind === 'put' ? { ...write, value: Buffer.from(write.value) } : write,
    );
    return await this.#use(signal, async (link, until) => {
      const { storeId } = link;
      const keys = storeKeys(this.#names, storeId);
      const nonce = randomBytes(8).toString('hex');
      const plan = planTxn(guards, copied, { names: this.#names, keys, storeId, nonce });
      return plan === undefined ? { ok: false } : await this.#send(plan, link, until);
    });
  }

  async lease(ttlMs: number, options: OperationOptions & { readonly keepAlive?: boolean } = {}): Promise<Lease> {
    return await this.#leases.begin(ttlMs, options.keepAlive ?? true, options.signal);
  }

  watch(prefix: string, { signal }: { readonly signal: AbortSignal; readonly from?: Revision }): Feed<Entry> {
    checkPrefix(prefix);
    return this.#watches.watch(prefix, signal);
  }

  compareRevisions(a: Revision, b: Revision): number {
    return compareNumberedRevisions(a, b);
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#leases.close();
    await this.#connection.close();
    this.#noteEncrypted();
    this.#foreign.close();
  }

  /** As the connection's, and again when the store behind it was another one than the link said. */
  async #use<T>(signal: AbortSignal | undefined, run: (link: Link, signal: AbortSignal) => Promise<T>): Promise<T> {
    for (let tries = 0; ; tries += 1) {
      try {
        return await this.#connection.use(signal, async (link, until) => {
          try {
            return await run(link, until);
          } catch (error) {
            if (error instanceof ReplacedError) this.#connection.doubt(link);
            throw error;
          }
        });
      } catch (error) {
        if (!(error instanceof ReplacedError)) throw error;
        if (tries >= maxReplacements) throw awayError(error.message);
      }
    }
  }

  async #send(plan: Plan, link: Link, signal: AbortSignal): Promise<TxnResult> {
    const bytes = Buffer.byteLength(JSON.stringify(plan.operations));
    if (bytes > maxRequestBytes) {
      throw new LegateError(
        'E_TOO_LARGE',
        `a transaction of ${bytes} bytes is over Consul's limit of ${maxRequestBytes}`,
      );
    }
    try {
      const pairs = await link.client.txn(plan.operations, { signal, timeoutMs: 0 });
      this.#heard(link.storeId, newestIndex(pairs));
      // Without writes there is no index of its own: it is then as new as anything known.
      const index = plan.roles.includes('write') || plan.roles.includes('lease') ? newestIndex(pairs) : undefined;
      const number = index ?? Math.max(1, this.#newestOf(link.storeId));
      return { ok: true, revision: formatRevision(link.storeId, number) };
    } catch (error) {
      if (explainConflict(conflict(error), plan) === 'guard') return { ok: false };
      throw replacedError(link);
    }
  }

  async #pairsBelow(prefix: string, link: Link, signal: AbortSignal): Promise<readonly StoredPair[]> {
    const listed = this.#names.prefixToConsul(prefix);
    if (listed === '') {
      // A transaction cannot list everything.
      const { pairs } = await link.client.list(listablePrefix(listed), { signal, timeoutMs: operationLimitMs });
      await this.#connection.confirm(link, signal);
      return pairs;
    }
    const operations = [this.#identity(link), { KV: { Verb: 'get-tree', Key: listed } }];
    try {
      return this.#readable(await link.client.txn(operations, { signal, timeoutMs: 0 }), link);
    } catch (error) {
      explainConflict(conflict(error), { operations, roles: ['identity', 'write'] });
      throw replacedError(link);
    }
  }

  #identity({ storeId }: Link): { KV: { Verb: string; Key: string } } {
    return { KV: { Verb: 'get', Key: storeKeys(this.#names, storeId).identity } };
  }

  /** Without the identity, which Consul leaves out, as it does everything, when the token may not read it. */
  #readable([first, ...rest]: readonly StoredPair[], link: Link): readonly StoredPair[] {
    if (first?.key !== storeKeys(this.#names, link.storeId).identity) throw refusedRead(link);
    return rest;
  }

  #entriesOf({ pairs }: Listing, storeId: string): readonly ListedEntry[] {
    const { hidden } = this.#names;
    const own = pairs.filter((pair) => !pair.key.startsWith(hidden) && this.#foreign.accepts(pair));
    return own.map((pair) => ({ ...this.#entry(pair, storeId), index: pair.index }));
  }

  #entry({ key, value, index }: StoredPair, storeId: string): Entry {
    this.#heard(storeId, index);
    return { key: this.#names.fromConsul(key), value, revision: formatRevision(storeId, index) };
  }

  #heard(storeId: string, index: number): void {
    if (this.#newest.storeId === storeId && this.#newest.index >= index) return;
    this.#newest = { storeId, index };
  }

  #newestOf(storeId: string): number {
    return this.#newest.storeId === storeId ? this.#newest.index : 0;
  }
}

/** The store behind the endpoint is another one than the link says; nothing was written. */
class ReplacedError extends Error {}

function replacedError({ client }: Link): ReplacedError {
  return new ReplacedError(`Consul at ${client.where} has another store than before`);
}

function refusedRead({ client }: Link): ConsulFault {
  return new ConsulFault('refused', `Consul at ${client.where} does not let the token read`);
}

function conflict(error: unknown): ConsulFault {
  if (error instanceof ConsulFault && error.kind === 'conflict') return error;
  throw error;
}
