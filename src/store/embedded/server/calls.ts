import { type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf';
import { type Server, type ServerDuplexStream, type ServerWritableStream, status } from '@grpc/grpc-js';
import { describeError, isLegateError } from '../../../base/errors.ts';
import type { Log } from '../../../base/log.ts';
import type { CounterCell, Metrics } from '../../../base/metrics.ts';
import { definitionOf } from '../../etcd-api/definitions.ts';
import type { Peer } from './connections.ts';
import { invalid, RpcError, rpcError, toRpcError } from './errors.ts';
import type { Outstanding } from './gate.ts';
import { limits, times } from './limits.ts';

type Method<I extends DescMessage, O extends DescMessage> = Parameters<typeof definitionOf<I, O>>[0];

export type ByteStream = ServerDuplexStream<Buffer, Uint8Array>;

/** What a call with one answer comes with. */
export interface Asked {
  /** The request's own bytes. */
  readonly raw: Buffer;
  readonly signal: AbortSignal;
  readonly caller: Peer;
}

export interface CallsOptions {
  readonly server: Server;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly outstanding: Outstanding;
  /** Who calls, by `address:port`; undefined for a connection that is not there any more. */
  readonly caller: (peer: string) => Peer | undefined;
  /** Ends the connection of a client. */
  readonly drop: (peer: string, reason: string) => void;
}

/**
 * The server's table of methods: decodes requests, counts calls, holds them to their bounds, and turns errors into those
 * of gRPC. Calls with one answer are registered as if they streamed it, which is the same on the wire: so it is known
 * when an answer was taken, and what is not is bounded.
 */
export class Calls {
  readonly #options: CallsOptions;
  readonly #counters = new Map<string, CounterCell>();
  #running = 0;

  constructor(options: CallsOptions) {
    this.#options = options;
    const { metrics } = options;
    metrics.gauge('legate_store_server_calls_count', 'Calls to the offered store that are under way.', [], () => [
      [[], this.#running],
    ]);
    metrics.gauge(
      'legate_store_server_outstanding_bytes',
      'Bytes that clients of the offered store have not taken yet.',
      [],
      () => [[[], options.outstanding.bytes]],
    );
  }

  /** A call with one request and one answer: a message, or its encoded bytes. */
  answer<I extends DescMessage, O extends DescMessage>(
    method: Method<I, O>,
    handler: (request: MessageShape<I>, call: Asked) => Promise<MessageShape<O> | Uint8Array>,
  ): void {
    const encode = async (call: Asked): Promise<Uint8Array> => {
      const answer = await handler(decode(method.input, call.raw), call);
      return answer instanceof Uint8Array ? answer : toBinary(method.output, answer);
    };
    this.#register(definitionOf(method).path, encode);
  }

  /** A method of etcd that this store does not have; `hint` says what to do instead. */
  refuse(path: string, hint: string): void {
    this.#register(path, () =>
      Promise.reject(new RpcError(status.UNIMPLEMENTED, `not offered by Legate's embedded store: ${hint}`)),
    );
  }

  /** A call that goes on. `begin` may throw an RpcError. It must end the stream itself. */
  stream<I extends DescMessage, O extends DescMessage>(
    method: Method<I, O>,
    begin: (stream: ByteStream, decode: (raw: Buffer) => MessageShape<I>, caller: Peer) => void,
  ): void {
    const { path } = definitionOf(method);
    const run = (stream: ByteStream): void => {
      stream.on('error', () => undefined);
      const start = (caller: Peer): void => begin(stream, (raw) => decode(method.input, raw), caller);
      this.#enter(stream, start, path);
    };
    this.#options.server.register(path, run, asBuffer, identity, 'bidi');
  }

  /** To be called when a call has its outcome. */
  count(path: string, code: status): void {
    const name = `${path} ${code}`;
    let cell = this.#counters.get(name);
    if (cell === undefined) {
      const method = path.slice(path.lastIndexOf('/') + 1);
      const help = 'Calls to the offered store, by method and code of gRPC.';
      cell = this.#options.metrics.counter('legate_store_server_requests_total', help, { method, code: status[code] });
      this.#counters.set(name, cell);
    }
    cell.value += 1;
  }

  #register(path: string, run: (call: Asked) => Promise<Uint8Array>): void {
    const handle = (call: ServerWritableStream<Buffer, Uint8Array>): void => {
      call.on('error', () => undefined);
      const aborting = new AbortController();
      let answered = false;
      call.once('close', () => {
        if (!answered) aborting.abort(canceled);
      });
      const answer = async (caller: Peer): Promise<Uint8Array> => {
        try {
          return await run({ raw: call.request, signal: aborting.signal, caller });
        } finally {
          answered = true;
        }
      };
      const serve = (caller: Peer): void => {
        this.#serve(call, path, answer(caller)).catch((error: unknown) => this.#fail(call, path, error));
      };
      this.#enter(call, serve, path);
    };
    this.#options.server.register(path, handle, asBuffer, identity, 'serverStream');
  }

  #enter(call: ByteStream | ServerWritableStream<Buffer, Uint8Array>, run: (caller: Peer) => void, path: string): void {
    const caller = this.#options.caller(call.getPeer());
    if (caller === undefined) {
      this.#fail(call, path, new RpcError(status.UNAUTHENTICATED, 'this connection is not that of a host any more'));
      return;
    }
    if (this.#running >= limits.calls) {
      this.#fail(call, path, rpcError('tooManyRequests'));
      return;
    }
    this.#running += 1;
    call.once('close', () => {
      this.#running -= 1;
    });
    try {
      run(caller);
    } catch (error) {
      this.#fail(call, path, error);
    }
  }

  async #serve(
    call: ServerWritableStream<Buffer, Uint8Array>,
    path: string,
    answer: Promise<Uint8Array>,
  ): Promise<void> {
    const { outstanding, drop } = this.#options;
    const bytes = await answer;
    await outstanding.take(bytes.byteLength);
    if (call.destroyed) {
      outstanding.release(bytes.byteLength);
      this.count(path, status.CANCELLED);
      return;
    }
    const peer = call.getPeer();
    const timer = setTimeout(() => drop(peer, 'stalled'), times.stalledMs);
    timer.unref();
    call.once('close', () => {
      clearTimeout(timer);
      outstanding.release(bytes.byteLength);
    });
    this.count(path, status.OK);
    call.write(bytes);
    call.end();
  }

  #fail(call: ByteStream | ServerWritableStream<Buffer, Uint8Array>, path: string, error: unknown): void {
    if (call.destroyed) {
      this.count(path, status.CANCELLED);
      return;
    }
    if (!(error instanceof RpcError) && !isLegateError(error)) {
      this.#options.log.error('call to the offered store failed', { 'grpc.path': path, error: describeError(error) });
    }
    const answer = toRpcError(error);
    this.count(path, answer.code);
    call.emit('error', answer);
  }
}

/** One for all: it goes nowhere, since nobody waits for the answer any more. */
const canceled = new RpcError(status.CANCELLED, 'the client has gone');

/** Bytes from strangers as a message. */
function decode<I extends DescMessage>(schema: I, raw: Buffer): MessageShape<I> {
  if (raw.byteLength > limits.requestBytes) throw rpcError('tooLarge');
  try {
    return fromBinary(schema, raw, { readUnknownFields: false });
  } catch {
    throw invalid(`what was sent is no ${schema.name}`);
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function identity(bytes: Buffer): Buffer {
  return bytes;
}
