import { EventEmitter } from 'node:events';
import http, { type ClientRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import https from 'node:https';
import Consul from 'consul';

/**
 * The `consul` package as it really is: its own declarations promise booleans where it gives undefined, and leave out
 * `ctx`, by which a request is cancelled and its response's headers are told.
 */
export interface WireClient {
  readonly kv: { get(options: object): Promise<unknown> };
  readonly transaction: { create(operations: readonly object[], options: object): Promise<unknown> };
  readonly session: {
    create(options: object): Promise<unknown>;
    renew(options: object): Promise<unknown>;
    destroy(options: object): Promise<unknown>;
  };
  readonly status: { leader(options: object): Promise<unknown> };
  readonly catalog: {
    readonly node: { list(options: object): Promise<unknown>; services(options: object): Promise<unknown> };
    deregister(options: object): Promise<unknown>;
  };
  readonly health: { node(options: object): Promise<unknown> };
  destroy(): void;
}

interface Extensible {
  _ext(event: 'onRequest', extension: (request: { transport: unknown }, next: () => void) => void): void;
}

/** One call's way to be cancelled, and to have the response itself in the result. */
class CallContext extends EventEmitter {
  readonly includeResponse = true;
}

export interface WireOptions {
  readonly baseUrl: string;
  readonly agent: http.Agent;
  readonly maxBodyBytes: number;
}

export class BodyTooLargeError extends Error {}

/** Makes a client whose responses are bounded and whose broken ones are errors: by itself the package waits for ever. */
export function openWire({ baseUrl, agent, maxBodyBytes }: WireOptions): WireClient {
  const client = new Consul({ baseUrl, agent } as ConstructorParameters<typeof Consul>[0]);
  const { request } = baseUrl.startsWith('https:') ? https : http;
  const transport = {
    request(options: RequestOptions): ClientRequest {
      const outgoing = request(options);
      outgoing.once('response', (incoming: IncomingMessage) => bound(outgoing, incoming, maxBodyBytes));
      return outgoing;
    },
  };
  (client as unknown as Extensible)._ext('onRequest', (call, next) => {
    call.transport = transport;
    next();
  });
  return client as unknown as WireClient;
}

function bound(outgoing: ClientRequest, incoming: IncomingMessage, maxBodyBytes: number): void {
  let bytes = 0;
  incoming.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes <= maxBodyBytes) return;
    outgoing.emit('error', new BodyTooLargeError(`the answer is larger than ${maxBodyBytes} bytes`));
    outgoing.destroy();
  });
  incoming.on('error', (error) => outgoing.emit('error', error));
}

/** What came back: the response's headers and its parsed body. */
export interface Answer {
  readonly headers: http.IncomingHttpHeaders;
  readonly body: unknown;
}

/** Runs one call of the package, cancelled by the signal. Rejects with its errors as they are. */
export async function callWire(
  run: (options: { readonly ctx: EventEmitter; readonly timeout: number }) => Promise<unknown>,
  { signal, timeoutMs }: { readonly signal: AbortSignal; readonly timeoutMs: number },
): Promise<Answer> {
  signal.throwIfAborted();
  const ctx = new CallContext();
  const cancel = (): void => {
    ctx.emit('cancel');
  };
  signal.addEventListener('abort', cancel, { once: true });
  try {
    const result = await run({ ctx, timeout: timeoutMs });
    const [response, body] = Array.isArray(result) ? (result as [IncomingMessage?, unknown?]) : [];
    return { headers: response?.headers ?? {}, body };
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener('abort', cancel);
  }
}
