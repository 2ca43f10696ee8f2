import { create } from '@bufbuild/protobuf';
import type { Feed, Observable, Revision } from '../../base/feed.ts';
import type { EtcdStoreConfig } from '../../config/config.ts';
import {
  DeleteRangeRequestSchema,
  PutRequestSchema,
  RangeRequestSchema,
  TxnRequestSchema,
} from '../etcd-api/gen/etcd_pb.ts';
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
import { EtcdFailure, storeError } from './failure.ts';
import { readSecrets } from './files.ts';
import { Leases } from './leases.ts';
import { api, compareOf, leaseNumber, operationOf } from './messages.ts';
import { Reader } from './reader.ts';
import { closedError, Session } from './session.ts';
import { Watches } from './watches.ts';

/** What etcd takes by default, with what its messages add: 1.5 MiB a request, 128 operations a transaction. */
const limits: StoreLimits = { valueBytes: 1024 * 1024, txnOperations: 128, txnBytes: 1024 * 1024 + 256 * 1024 };

/**
 * A client of an etcd cluster (v3 API), which may also be another sidecar's embedded store. Returns at once: the state is
 * `connecting` until a member answered. Errors: E_CONFIG and E_PERMISSION for files that cannot be used.
 */
export async function openEtcdStore(config: EtcdStoreConfig, options: RemoteStoreOptions): Promise<Store> {
  readSecrets(config, options.trust);
  return new EtcdStore(config, options);
}

class EtcdStore implements Store {
  readonly kind = 'etcd';
  readonly limits = limits;
  readonly #session: Session;
  readonly #reader: Reader;
  readonly #watches: Watches;
  readonly #leases: Leases;
  /** Takes back what was said of a connection in the clear. */
  readonly #noteEncrypted: () => void;

  constructor(config: EtcdStoreConfig, options: RemoteStoreOptions) {
    const random = options.random ?? Math.random;
    const session = new Session({
      ...options,
      config,
      onConnected: (connection) => {
        this.#watches.onConnected(connection);
        this.#leases.onConnected(connection);
      },
    });
    this.#session = session;
    this.#reader = new Reader({ ...options, session });
    this.#watches = new Watches({ ...options, random, session, reader: this.#reader });
    this.#leases = new Leases({ ...options, session });
    this.#noteEncrypted = warnOfClearText(config.endpoints, options.conditions);
    session.start();
  }

  get status(): Observable<StoreStatus> {
    return this.#session.status;
  }

  async get(key: string, options: OperationOptions = {}): Promise<Entry | undefined> {
    checkKey(key);
    return await this.#asked(options, async () => {
      const request = create(RangeRequestSchema, { key: Buffer.from(key) });
      const { answer, head } = await this.#session.request(api.range, request, options);
      const [kv] = answer.kvs;
      return kv === undefined ? undefined : this.#reader.entry(kv, head.clusterId);
    });
  }

  async range(prefix: string, options: OperationOptions & { readonly limit?: number } = {}): Promise<RangeResult> {
    checkPrefix(prefix);
    return await this.#asked(options, async () => {
      const { entries, clusterId, revision } = await this.#reader.read(prefix, options);
      return { entries, revision: formatRevision(clusterId, revision) };
    });
  }

  async put(
    key: string,
    value: Uint8Array,
    options: OperationOptions & { readonly lease?: Lease } = {},
  ): Promise<Revision> {
    const { lease, signal } = options;
    const write: Write = { kind: 'put', key, value, ...(lease === undefined ? {} : { lease }) };
    checkTxn([], [write], limits);
    const copy = Buffer.from(value);
    return await this.#asked({ signal }, async () => {
      const number = lease === undefined ? 0n : leaseNumber(lease.id);
      const request = create(PutRequestSchema, { key: Buffer.from(key), value: copy, lease: number });
      const { head } = await this.#session.request(api.put, request, { signal });
      return formatRevision(head.clusterId, head.revision);
    });
  }

  async delete(key: string, options: OperationOptions = {}): Promise<Revision | undefined> {
    checkKey(key);
    return await this.#asked(options, async () => {
      const request = create(DeleteRangeRequestSchema, { key: Buffer.from(key) });
      const { answer, head } = await this.#session.request(api.deleteRange, request, options);
      return answer.deleted > 0n ? formatRevision(head.clusterId, head.revision) : undefined;
    });
  }

  async txn(guards: readonly Guard[], writes: readonly Write[], options: OperationOptions = {}): Promise<TxnResult> {
    checkTxn(guards, writes, limits);
    return await this.#asked(options, async () => {
      // Copies the values, which the caller may change while the request waits.
      const success = writes.map(operationOf);
      await this.#session.ready(options.signal);
      const compare = guards.flatMap((guard) => compareOf(guard, this.#session.clusterId) ?? []);
      if (compare.length < guards.length) return { ok: false };
      const request = create(TxnRequestSchema, { compare, success });
      const { answer, head } = await this.#session.request(api.txn, request, options);
      return answer.succeeded ? { ok: true, revision: formatRevision(head.clusterId, head.revision) } : { ok: false };
    });
  }

  async lease(ttlMs: number, options: OperationOptions & { readonly keepAlive?: boolean } = {}): Promise<Lease> {
    return await this.#asked(options, async () => {
      const lease = await this.#leases.grant(ttlMs, options.keepAlive !== false, options.signal);
      return { ...lease, revoke: () => this.#asked({}, () => lease.revoke()) };
    });
  }

  watch(prefix: string, options: { readonly signal: AbortSignal; readonly from?: Revision }): Feed<Entry> {
    checkPrefix(prefix);
    return this.#watches.watch(prefix, options);
  }

  compareRevisions(a: Revision, b: Revision): number {
    return compareNumberedRevisions(a, b);
  }

  async close(): Promise<void> {
    if (this.#session.closed) return;
    this.#session.close();
    this.#watches.close();
    this.#leases.close();
    this.#noteEncrypted();
  }

  /** What etcd's failures are to the callers of the store. */
  async #asked<T>({ signal }: { readonly signal?: AbortSignal | undefined }, run: () => Promise<T>): Promise<T> {
    if (this.#session.closed) throw closedError();
    signal?.throwIfAborted();
    try {
      return await run();
    } catch (error) {
      throw error instanceof EtcdFailure ? storeError(error) : error;
    }
  }
}
