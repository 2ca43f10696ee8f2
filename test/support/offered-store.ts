import { join } from 'node:path';
import type { DescMessage, MessageInitShape, MessageShape } from '@bufbuild/protobuf';
import { create } from '@bufbuild/protobuf';
import { Client, type ClientDuplexStream, credentials, type ServiceError } from '@grpc/grpc-js';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import { type EmbeddedStore, openEmbeddedStore } from '../../src/store/embedded/embedded-store.ts';
import { type StoreServer, serveStore } from '../../src/store/embedded/server/store-server.ts';
import { definitionOf } from '../../src/store/etcd-api/definitions.ts';
import {
  KV,
  Lease,
  Watch,
  type WatchCreateRequestSchema,
  WatchRequestSchema,
  type WatchResponse,
} from '../../src/store/etcd-api/gen/etcd_pb.ts';
import type { StoreTrust } from '../../src/store/trust.ts';
import type { Teardown } from './agent.ts';
import { temporaryFolder } from './agent.ts';
import { waitFor } from './wait.ts';

/** An embedded store in this process that is offered on loopback. */
export class OfferedStore {
  readonly metrics = new Metrics();
  readonly conditions: Conditions;
  readonly clock: Clock;
  readonly folder: string;
  readonly #keepRevisions: number;
  readonly #trust: StoreTrust | undefined;
  #store: EmbeddedStore | undefined;
  #server: StoreServer | undefined;

  private constructor(folder: string, clock: Clock, keepRevisions: number, trust: StoreTrust | undefined) {
    this.folder = folder;
    this.#trust = trust;
    this.clock = clock;
    this.#keepRevisions = keepRevisions;
    this.conditions = new Conditions(silentLog, clock, this.metrics);
  }

  static async open(
    t: Teardown,
    options: { listen?: Endpoint; keepRevisions?: number; trust?: StoreTrust } = {},
  ): Promise<OfferedStore> {
    const { keepRevisions = 10_000, trust } = options;
    const offered = new OfferedStore(temporaryFolder(t), systemClock, keepRevisions, trust);
    t.teardown(() => offered.close());
    await offered.start(options.listen);
    return offered;
  }

  get store(): EmbeddedStore {
    if (this.#store === undefined) throw new Error('the store is not open');
    return this.#store;
  }

  get server(): StoreServer {
    if (this.#server === undefined) throw new Error('the store is not offered');
    return this.#server;
  }

  get port(): number {
    return this.server.endpoint.port;
  }

  async start(listen: Endpoint = { address: '127.0.0.1', port: 0 }): Promise<void> {
    const { clock, metrics, conditions } = this;
    const rest = { clock, metrics, conditions, log: silentLog };
    const compaction = { keepRevisions: this.#keepRevisions };
    this.#store = await openEmbeddedStore({ path: join(this.folder, 'store'), ...rest, compaction });
    const trust = this.#trust && { trust: this.#trust };
    this.#server = await serveStore({ store: this.#store, listen, ...rest, ...trust });
  }

  async close(): Promise<void> {
    await this.#server?.close();
    await this.#store?.close();
  }

  async metric(name: string): Promise<number> {
    const text = await this.metrics.exposition();
    const lines = text.split('\n').filter((line) => line.startsWith(name));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }
}

type Method<I extends DescMessage, O extends DescMessage> = Parameters<typeof definitionOf<I, O>>[0];
type WatchWish = MessageInitShape<typeof WatchCreateRequestSchema>;

/** A client that says what it is told to and hides nothing. */
export class RawClient {
  readonly #client: Client;

  /** With `own` over TLS as that host. */
  constructor(t: Teardown, port: number, own?: Credentials) {
    const options = { 'grpc.use_local_subchannel_pool': 1, 'grpc.max_receive_message_length': -1 };
    const channel =
      own === undefined
        ? credentials.createInsecure()
        : credentials.createSsl(Buffer.from(own.roots.join('')), Buffer.from(own.key), Buffer.from(own.chain), {
            checkServerIdentity: () => undefined,
          });
    // An address is no server name.
    const named = own === undefined ? {} : { 'grpc.ssl_target_name_override': 'legate' };
    this.#client = new Client(`127.0.0.1:${port}`, channel, { ...options, ...named });
    t.teardown(() => this.#client.close());
  }

  call<I extends DescMessage, O extends DescMessage>(
    method: Method<I, O>,
    request: MessageInitShape<I>,
  ): Promise<MessageShape<O>> {
    const { path, requestSerialize, responseDeserialize } = definitionOf(method);
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + 20_000;
      const message = create(method.input, request);
      this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        message,
        { deadline },
        (error, answer) => {
          if (answer === undefined) reject(error ?? new Error('no answer'));
          else resolve(answer);
        },
      );
    });
  }

  /** Bytes in, bytes out; resolves with the code of gRPC. */
  bytes(path: string, request: Buffer): Promise<number> {
    const same = (bytes: Buffer): Buffer => bytes;
    return new Promise((resolve) => {
      const deadline = Date.now() + 20_000;
      this.#client.makeUnaryRequest(path, same, same, request, { deadline }, (error) => resolve(error?.code ?? 0));
    });
  }

  async put(key: string, value: string, more: { lease?: bigint; prevKv?: boolean } = {}): Promise<number> {
    const { header } = await this.call(KV.method.put, { key: Buffer.from(key), value: Buffer.from(value), ...more });
    return Number(header?.revision ?? 0n);
  }

  watches(): RawWatches {
    const { path, requestSerialize, responseDeserialize } = definitionOf(Watch.method.watch);
    return new RawWatches(this.#client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize));
  }

  /** A stream of raw bytes. */
  rawStream(path: string): ClientDuplexStream<Buffer, Buffer> {
    const same = (bytes: Buffer): Buffer => bytes;
    const stream = this.#client.makeBidiStreamRequest(path, same, same);
    stream.on('error', () => undefined);
    return stream;
  }

  get lease(): typeof Lease.method {
    return Lease.method;
  }
}

/** A stream of watches that keeps all that it is told. */
export class RawWatches {
  readonly told: WatchResponse[] = [];
  error: ServiceError | undefined;
  readonly stream: ClientDuplexStream<MessageShape<typeof WatchRequestSchema>, WatchResponse>;

  constructor(stream: ClientDuplexStream<MessageShape<typeof WatchRequestSchema>, WatchResponse>) {
    this.stream = stream;
    stream.on('data', (response: WatchResponse) => this.told.push(response));
    stream.on('error', (error: ServiceError) => {
      this.error = error;
    });
  }

  say(requestUnion: MessageInitShape<typeof WatchRequestSchema>['requestUnion']): void {
    this.stream.write(create(WatchRequestSchema, requestUnion === undefined ? {} : { requestUnion }));
  }

  /** Begins a watch and gives what the server says to that. */
  async create(prefix: string, wish: WatchWish = {}): Promise<WatchResponse> {
    const from = this.told.length;
    const key = Buffer.from(prefix);
    this.say({ case: 'createRequest', value: { key, rangeEnd: prefixEnd(prefix), ...wish } });
    return await waitFor('a watch', () => this.told.slice(from).find(({ created }) => created));
  }

  /** What a watch told so far, as `+key=value@revision` and `-key@revision`. */
  events(watchId = 0n): string[] {
    return this.told
      .filter((response) => response.watchId === watchId)
      .flatMap(({ events }) => events)
      .map(({ type, kv }) => {
        const key = Buffer.from(kv?.key ?? []).toString();
        return type === 1 ? `-${key}@${kv?.modRevision}` : `+${key}=${Buffer.from(kv?.value ?? [])}@${kv?.modRevision}`;
      });
  }
}

export function prefixEnd(prefix: string): Buffer {
  const end = Buffer.from(prefix);
  const last = end.length - 1;
  end[last] = (end[last] ?? 0) + 1;
  return end;
}
