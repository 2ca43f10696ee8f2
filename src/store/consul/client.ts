import http from 'node:http';
import https from 'node:https';
import type { StoreUrl } from '../../config/config.ts';
import { formatEndpoint } from '../../model/address.ts';
import { ConsulFault, faultOf, notConsul } from './faults.ts';
import type { Secrets } from './secrets.ts';
import { type Answer, callWire, openWire, type WireClient } from './wire.ts';

/** A key as Consul lists it. */
export interface StoredPair {
  readonly key: string;
  readonly value: Uint8Array;
  readonly index: number;
}

export interface Listing {
  readonly pairs: readonly StoredPair[];
  /** For the next blocking query; always above 0. */
  readonly index: number;
  /** About what was sent. */
  readonly bytes: number;
}

/** An operation on a key, as Consul's API has it in transactions. */
export interface KeyOperation {
  readonly KV: {
    readonly Verb: string;
    readonly Key: string;
    readonly Value?: string;
    readonly Index?: number;
    readonly Session?: string;
  };
}

export type WireOperation =
  | KeyOperation
  | { readonly Node: object }
  | { readonly Service: object }
  | { readonly Check: object };

export interface CallOptions {
  readonly signal: AbortSignal;
  readonly timeoutMs: number;
}

/** More than this is no picture of a mesh. */
const maxBodyBytes = 96 * 1024 * 1024;
/** Connections at a time for operations; further ones wait for their turn. */
const maxOperationSockets = 16;
/** Connections at a time for blocking queries, within what Consul allows one address by default (200). */
export const maxBlockingSockets = 64;

/**
 * One agent or server of Consul: the few calls that are needed, their answers parsed, their failures ConsulFaults. The
 * token goes into a header, never into an address.
 */
export class ConsulClient {
  readonly where: string;
  readonly #token: string | undefined;
  readonly #wire: WireClient;
  readonly #blocking: WireClient;

  constructor(url: StoreUrl, secrets: Secrets) {
    this.where = url.text;
    this.#token = secrets.token;
    const baseUrl = `${url.secure ? 'https' : 'http'}://${formatEndpoint({ address: url.host, port: url.port })}/v1`;
    const open = (maxSockets: number): WireClient => {
      const common = { keepAlive: true, maxSockets };
      const agent = url.secure ? new https.Agent({ ...common, ...secrets.tls }) : new http.Agent(common);
      return openWire({ baseUrl, agent, maxBodyBytes });
    };
    this.#wire = open(maxOperationSockets);
    this.#blocking = open(maxBlockingSockets);
  }

  close(): void {
    this.#wire.destroy();
    this.#blocking.destroy();
  }

  /** Rejects when there is no leader, or no Consul. */
  async leader(options: CallOptions): Promise<void> {
    const { body } = await this.#call(options, (common) => this.#wire.status.leader(common));
    if (typeof body !== 'string' || !/^(?:\S+:\d+)?$/.test(body))
      throw notConsul(this.where, 'no leader in its answer');
    if (body !== '') return;
    const hint = 'more than half of the Consul servers must run and reach each other';
    throw new ConsulFault('away', `Consul at ${this.where} has no cluster leader`, hint);
  }

  /** All or nothing; gives the keys of its results. `consistent` only matters when nothing is written. */
  async txn(operations: readonly WireOperation[], options: CallOptions): Promise<StoredPair[]> {
    const { body } = await this.#call(options, (common) =>
      this.#wire.transaction.create(operations, { ...common, consistent: true }),
    );
    if (typeof body !== 'object' || body === null || !('Results' in body)) {
      throw notConsul(this.where, 'its answer to a transaction has no results');
    }
    const results: unknown = body.Results ?? [];
    if (!Array.isArray(results)) throw notConsul(this.where, 'its answer to a transaction has no results');
    return results.flatMap((result: unknown) => {
      const pair = typeof result === 'object' && result !== null && 'KV' in result ? result.KV : undefined;
      return pair === undefined || pair === null ? [] : [this.#pair(pair)];
    });
  }

  /** What is below a prefix; with `index` once it differs from that, or after about `waitMs`. */
  async list(
    prefix: string,
    options: CallOptions & { readonly index?: number; readonly waitMs?: number },
  ): Promise<Listing> {
    const { index, waitMs = 0 } = options;
    const query = index === undefined ? {} : { index: String(index), wait: `${Math.ceil(waitMs / 1000)}s` };
    const wire = index === undefined ? this.#wire : this.#blocking;
    const { headers, body } = await this.#call(options, (common) =>
      wire.kv.get({ ...common, ...query, key: prefix, recurse: true, buffer: true }),
    );
    // Without this header a 404 or an empty page of something else would pass for a store without keys.
    const found = Number(headers['x-consul-index']);
    if (!Number.isSafeInteger(found) || found < 0) throw notConsul(this.where, 'its answer has no index');
    if (body !== undefined && !Array.isArray(body)) throw notConsul(this.where, 'its answer is no list of keys');
    const pairs = (body ?? []).map((item: unknown) => this.#pair(item));
    const bytes = pairs.reduce((sum, { key, value }) => sum + key.length + Math.ceil(value.length * 1.34) + 100, 0);
    return { pairs, index: Math.max(1, found), bytes };
  }

  /** Begins a session that nothing but its TTL ends: no check is tied to it, and no lock is held back after it. */
  async createSession(ttlMs: number, options: CallOptions): Promise<string> {
    const session = { name: 'legate', ttl: `${ttlMs}ms`, behavior: 'delete', lockdelay: '0s', checks: [] };
    const { body } = await this.#call(options, (common) => this.#wire.session.create({ ...common, ...session }));
    const id = typeof body === 'object' && body !== null && 'ID' in body ? body.ID : undefined;
    if (typeof id !== 'string' || !/^[0-9a-f-]{36}$/.test(id)) throw notConsul(this.where, 'no id of a session');
    return id;
  }

  /** False when there is no such session any more. */
  async renewSession(id: string, options: CallOptions): Promise<boolean> {
    try {
      await this.#call(options, (common) => this.#wire.session.renew({ ...common, id }));
      return true;
    } catch (error) {
      if (error instanceof ConsulFault && error.kind === 'absent' && /session/i.test(error.message)) return false;
      throw error;
    }
  }

  async destroySession(id: string, options: CallOptions): Promise<void> {
    await this.#call(options, (common) => this.#wire.session.destroy({ ...common, id }));
  }

  /** The catalog's nodes that carry this piece of metadata. */
  async nodesWith(meta: string, options: CallOptions): Promise<unknown> {
    return (await this.#call(options, (common) => this.#wire.catalog.node.list({ ...common, 'node-meta': meta }))).body;
  }

  /** A node of the catalog with its services; null when there is none. */
  async nodeServices(node: string, options: CallOptions): Promise<unknown> {
    try {
      return (await this.#call(options, (common) => this.#wire.catalog.node.services({ ...common, node }))).body;
    } catch (error) {
      if (error instanceof ConsulFault && error.kind === 'absent') return null;
      throw error;
    }
  }

  async nodeChecks(node: string, options: CallOptions): Promise<unknown> {
    return (await this.#call(options, (common) => this.#wire.health.node({ ...common, node }))).body;
  }

  async deregisterNode(node: string, options: CallOptions): Promise<void> {
    await this.#call(options, (common) => this.#wire.catalog.deregister({ ...common, node }));
  }

  async #call(options: CallOptions, run: (common: object) => Promise<unknown>): Promise<Answer> {
    const token = this.#token === undefined ? {} : { token: this.#token };
    try {
      return await callWire((context) => run({ ...context, ...token }), options);
    } catch (error) {
      options.signal.throwIfAborted();
      throw faultOf(this.where, error);
    }
  }

  #pair(item: unknown): StoredPair {
    if (typeof item === 'object' && item !== null && 'Key' in item && 'ModifyIndex' in item && 'Value' in item) {
      const { Key: key, ModifyIndex: index, Value: value } = item;
      if (typeof key === 'string' && typeof index === 'number' && Number.isSafeInteger(index) && index > 0) {
        if (value === null) return { key, value: new Uint8Array(), index };
        if (Buffer.isBuffer(value)) return { key, value, index };
        if (typeof value === 'string') return { key, value: Buffer.from(value, 'base64'), index };
      }
    }
    throw notConsul(this.where, 'a key in its answer has another form');
  }
}
