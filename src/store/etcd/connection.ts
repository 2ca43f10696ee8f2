import { isIP } from 'node:net';
import { checkServerIdentity, type SecureContext } from 'node:tls';
import {
  Client,
  type ClientDuplexStream,
  type ClientUnaryCall,
  credentials as grpcCredentials,
  Metadata,
  type MethodDefinition,
} from '@grpc/grpc-js';
import type { StoreUrl } from '../../config/config.ts';
import { EtcdFailure, failureOf } from './failure.ts';
import type { MeshIdentity } from './mesh-identity.ts';

/** A member that is silent for this long is asked, and given this long to say anything. etcd allows no shorter interval than 5 s. */
const pingEveryMs = 5500;
const pingLimitMs = 2500;
/** Watches come in fragments, and ranges in pages, well below this; what is larger is not read. */
const maxResponseBytes = 16 * 1024 * 1024;
const maxRequestBytes = 4 * 1024 * 1024;

export interface CallOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
  /** Sent without the token, which etcd refuses when it has expired, even where none is needed. */
  readonly anonymous?: boolean;
}

/** One channel to one member. It ends once: by itself, when a stream of it ends, or given up by who noticed a fault. */
export class Connection {
  readonly endpoint: StoreUrl;
  /** Said with every request, once there is one. */
  token: string | undefined;
  /** How many messages have come from the member so far, by which others know that it still speaks. */
  heard = 0;
  /** When the last of them came, on the process's monotonic clock in milliseconds. */
  heardAtMs = performance.now();
  /** What this host shows over it, where that is its own certificate. */
  readonly identity: MeshIdentity | undefined;
  readonly #client: Client;
  readonly #ended = new AbortController();
  readonly #calls = new Set<ClientUnaryCall>();
  readonly #streams = new Set<{ cancel(): void }>();
  #failure: EtcdFailure | undefined;

  constructor(endpoint: StoreUrl, context: SecureContext | undefined, identity?: MeshIdentity) {
    this.endpoint = endpoint;
    this.identity = identity;
    this.#client = clientFor(endpoint, context, identity);
  }

  /** Whether a request waits for its answer. */
  get busy(): boolean {
    return this.#calls.size > 0;
  }

  /** Aborted when it has ended; `failure` then says why. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  get failure(): EtcdFailure {
    return this.#failure ?? new EtcdFailure('unreachable', 'the connection was given up');
  }

  /** One request and its answer. Rejects with EtcdFailure, or the signal's reason; then etcd may have carried it out. */
  call<I, O>(method: MethodDefinition<I, O>, request: I, { timeoutMs, signal, anonymous }: CallOptions): Promise<O> {
    return new Promise((resolve, reject) => {
      if (this.#ended.signal.aborted) {
        reject(this.failure);
        return;
      }
      const onAbort = (): void => {
        call.cancel();
        reject(signal?.reason);
      };
      const call = this.#client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        anonymous ? new Metadata() : this.#metadata(),
        { deadline: Date.now() + timeoutMs },
        (error, answer) => {
          this.#calls.delete(call);
          signal?.removeEventListener('abort', onAbort);
          if (error === null) this.#hear();
          if (error === null && answer !== undefined) resolve(answer);
          else reject(this.#failure ?? failureOf(error ?? { details: 'an answer without content' }));
        },
      );
      this.#calls.add(call);
      signal?.addEventListener('abort', onAbort);
    });
  }

  /**
   * A stream in both directions. The member ends it when it loses its leader. With its end, whatever the reason, the
   * whole connection ends: what it carried is taken up again on the next one.
   */
  stream<I, O>(method: MethodDefinition<I, O>, onMessage: (message: O) => void): ClientDuplexStream<I, O> {
    const metadata = this.#metadata();
    metadata.set('hasleader', 'true');
    const { path, requestSerialize, responseDeserialize } = method;
    const stream = this.#client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadata);
    this.#streams.add(stream);
    stream.on('data', (message: O) => {
      this.#hear();
      if (!this.#ended.signal.aborted) onMessage(message);
    });
    stream.on('error', (error: Error & { code?: number; details?: string }) => this.end(failureOf(error)));
    stream.on('end', () => this.end(new EtcdFailure('unreachable', 'the member ended the connection')));
    return stream;
  }

  /** Ends it: every request and stream of it fails for this reason. */
  end(failure: EtcdFailure): void {
    if (this.#ended.signal.aborted) return;
    this.#failure = failure;
    this.#ended.abort(failure);
    for (const call of this.#calls) call.cancel();
    for (const stream of this.#streams) stream.cancel();
    this.#calls.clear();
    this.#streams.clear();
    this.#client.close();
  }

  #hear(): void {
    this.heard += 1;
    this.heardAtMs = performance.now();
  }

  #metadata(): Metadata {
    const metadata = new Metadata();
    if (this.token !== undefined) metadata.set('token', this.token);
    return metadata;
  }
}

function clientFor(
  { host, port, secure }: StoreUrl,
  context: SecureContext | undefined,
  identity: MeshIdentity | undefined,
): Client {
  const address = isIP(host) === 6 ? `ipv6:[${host}]:${port}` : `dns:${host}:${port}`;
  const options = {
    // A connection of our own, made now with the certificates that were read now.
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_http_proxy': 0,
    'grpc.enable_retries': 0,
    'grpc.service_config_disable_resolution': 1,
    'grpc.keepalive_time_ms': pingEveryMs,
    'grpc.keepalive_timeout_ms': pingLimitMs,
    'grpc.max_receive_message_length': maxResponseBytes,
    'grpc.max_send_message_length': maxRequestBytes,
  };
  if (!secure || context === undefined) return new Client(address, grpcCredentials.createInsecure(), options);
  if (identity !== undefined) {
    const channel = grpcCredentials.createFromSecureContext(context, { checkServerIdentity: identity.check });
    return new Client(address, channel, { ...options, 'grpc.ssl_target_name_override': 'legate' });
  }
  if (isIP(host) === 0) return new Client(address, grpcCredentials.createFromSecureContext(context), options);
  // An address is no server name (RFC 6066, section 3): another is said, and the certificate is checked for the address.
  const verify = {
    checkServerIdentity: (_: string, cert: Parameters<typeof checkServerIdentity>[1]) =>
      checkServerIdentity(host, cert),
  };
  const channel = grpcCredentials.createFromSecureContext(context, verify);
  return new Client(address, channel, { ...options, 'grpc.ssl_target_name_override': 'etcd' });
}
