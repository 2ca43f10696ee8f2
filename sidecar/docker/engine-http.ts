import type { Client, Dispatcher, Pool } from 'undici';
import { type ErrorCode, isLegateError, LegateError } from '../../src/base/errors.ts';
import { printable, truncate } from '../../src/base/text.ts';
import { type EngineMethod, engineFault, foreignAnswer } from './engine-faults.ts';
import { rawField, rawRecord, rawText } from './raw.ts';

const maxErrorBytes = 16 * 1024;
const codeOf: Readonly<Record<number, ErrorCode>> = { 404: 'E_NOT_FOUND', 409: 'E_CONFLICT' };
/** Requests that may run at the same time; the caller bounds how many it starts. */
const connections = 8;

export interface Answer {
  readonly document: unknown;
  /** The header of that name: the engine's own time. */
  readonly date: string | undefined;
}

/** What is asked of the engine. */
interface Question {
  readonly method: EngineMethod;
  readonly path: string;
  /** JSON. */
  readonly body?: string;
}

/**
 * HTTP over the engine's unix socket, with bounds in time and size on everything and errors that say the likely cause.
 * Nothing is retried here. The HTTP client is loaded with the first request: names and links are up by then.
 */
export class EngineHttp {
  readonly socket: string;
  readonly #timeoutMs: number;
  #pool: Promise<Pool> | undefined;
  readonly #streams = new Set<Client>();
  #api: string | undefined;

  constructor(socket: string, timeoutMs: number) {
    this.socket = socket;
    this.#timeoutMs = timeoutMs;
  }

  /** From now on all paths but `/version` are asked for in this version of the API. */
  speak(api: string): void {
    this.#api = api;
  }

  /** The JSON at `path`. E_NOT_FOUND when the engine says so, E_DOCKER for everything else that goes wrong. */
  get(path: string, maxBytes: number, signal: AbortSignal | undefined): Promise<Answer> {
    return this.#ask({ method: 'GET', path }, maxBytes, signal);
  }

  /** Sends a JSON document; errors as of `get`, and E_CONFLICT when what it is about is in no state for it. */
  post(path: string, document: object, maxBytes: number, signal: AbortSignal | undefined): Promise<Answer> {
    return this.#ask({ method: 'POST', path, body: JSON.stringify(document) }, maxBytes, signal);
  }

  /** The same, with undefined for E_NOT_FOUND. */
  async getIfExists(path: string, maxBytes: number, signal: AbortSignal | undefined): Promise<unknown> {
    try {
      return (await this.get(path, maxBytes, signal)).document;
    } catch (error) {
      if (isLegateError(error, 'E_NOT_FOUND')) return undefined;
      throw error;
    }
  }

  async #ask(question: Question, maxBytes: number, signal: AbortSignal | undefined): Promise<Answer> {
    const deadline = new Deadline(this.#timeoutMs, signal);
    try {
      const { body, headers } = await this.#request(await this.#openPool(), question, deadline.signal, this.#timeoutMs);
      const text = await readText(body, maxBytes);
      const date = typeof headers.date === 'string' ? headers.date : undefined;
      // Some orders are answered with nothing at all.
      const isEmpty = text === '' && question.method === 'POST';
      return { document: isEmpty ? undefined : this.#parse(question, text), date };
    } catch (error) {
      throw this.#failure(question, error, signal);
    } finally {
      deadline.clear();
    }
  }

  /**
   * An answer without end, on a connection of its own. Resolves when it has begun; `ended` rejects when it is over, for
   * whatever reason. Bytes are handed over in the turn in which they arrive.
   */
  async stream(
    path: string,
    onBytes: (bytes: Buffer) => void,
    signal: AbortSignal,
  ): Promise<{ ended: Promise<never> }> {
    const { ended } = await this.#stream({ method: 'GET', path }, onBytes, signal);
    const never = ended.then((): never => {
      throw new LegateError('E_DOCKER', 'the Docker Engine closed the stream of events', { hint: 'Does it restart?' });
    });
    // The owner may have gone before it awaits the end.
    never.catch(() => undefined);
    return { ended: never };
  }

  /** The same as the answer to a JSON document; its `ended` resolves when the engine has said all. */
  postStream(
    path: string,
    document: object,
    onBytes: (bytes: Buffer) => void,
    signal: AbortSignal,
  ): Promise<{ ended: Promise<void> }> {
    return this.#stream({ method: 'POST', path, body: JSON.stringify(document) }, onBytes, signal);
  }

  async #stream(
    question: Question,
    onBytes: (bytes: Buffer) => void,
    signal: AbortSignal,
  ): Promise<{ ended: Promise<void> }> {
    const { Client } = await import('./engine-client.ts');
    if (signal.aborted) throw signal.reason;
    const client = new Client('http://docker', this.#connection());
    this.#streams.add(client);
    const close = (): void => {
      this.#streams.delete(client);
      client.destroy().catch(() => undefined);
    };
    try {
      const { body } = await this.#request(client, question, signal, 0);
      const ended = new Promise<void>((resolve, reject) => {
        body.on('data', onBytes);
        body.on('error', (error) => reject(this.#failure(question, error, signal)));
        body.on('end', resolve);
      }).finally(close);
      ended.catch(() => undefined);
      return { ended };
    } catch (error) {
      close();
      throw this.#failure(question, error, signal);
    }
  }

  async close(): Promise<void> {
    await Promise.all([
      this.#pool?.then((pool) => pool.destroy()),
      ...[...this.#streams].map((client) => client.destroy()),
    ]);
  }

  #openPool(): Promise<Pool> {
    this.#pool ??= import('./engine-client.ts').then(
      ({ Pool }) => new Pool('http://docker', { ...this.#connection(), connections }),
    );
    return this.#pool;
  }

  #connection(): { socketPath: string; connectTimeout: number; headersTimeout: number; pipelining: number } {
    return { socketPath: this.socket, connectTimeout: this.#timeoutMs, headersTimeout: this.#timeoutMs, pipelining: 1 };
  }

  async #request(
    dispatcher: Dispatcher,
    { method, path, body }: Question,
    signal: AbortSignal,
    bodyTimeoutMs: number,
  ): Promise<Dispatcher.ResponseData> {
    // What versions there are is asked without naming one: a new engine may refuse the old one's.
    const versioned = this.#api === undefined || path === '/version' ? path : `/v${this.#api}${path}`;
    const response = await dispatcher.request({
      method,
      path: versioned,
      signal,
      headers: { host: 'docker', ...(body !== undefined && { 'content-type': 'application/json' }) },
      ...(body !== undefined && { body }),
      bodyTimeout: bodyTimeoutMs,
    });
    if (response.statusCode === 200 || response.statusCode === 201) return response;
    const said = printable(truncate(messageOf(await readText(response.body, maxErrorBytes)), 300));
    const code = codeOf[response.statusCode] ?? 'E_DOCKER';
    throw new LegateError(
      code,
      `the Docker Engine answers ${response.statusCode} to ${method} ${path.split('?', 1)[0]}: ${said}`,
      {
        hint: 'The log of the Docker Engine may say more.',
      },
    );
  }

  #parse({ path, method }: Question, text: string): unknown {
    try {
      return JSON.parse(text);
    } catch {
      throw foreignAnswer(this.socket, path, method);
    }
  }

  /** What to throw: the owner's own reason when it gave up, else a fault of the engine. */
  #failure({ path, method }: Question, error: unknown, owner: AbortSignal | undefined): unknown {
    if (owner?.aborted) return owner.reason;
    return isLegateError(error) ? error : engineFault(this.socket, path, this.#timeoutMs, error, method);
  }
}

/** A signal that is aborted with its parent, or after a time with a TimeoutError. Leaves no listener behind. */
class Deadline {
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #parent: AbortSignal | undefined;
  readonly #onAbort = (): void => this.#controller.abort(this.#parent?.reason);

  constructor(timeoutMs: number, parent: AbortSignal | undefined) {
    this.#parent = parent;
    this.#timer = setTimeout(() => this.#controller.abort(new DOMException('too late', 'TimeoutError')), timeoutMs);
    this.#timer.unref();
    if (parent?.aborted) this.#onAbort();
    parent?.addEventListener('abort', this.#onAbort);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#parent?.removeEventListener('abort', this.#onAbort);
  }
}

function messageOf(body: string): string {
  try {
    return rawText(rawField(rawRecord(JSON.parse(body)), 'message')) || body;
  } catch {
    return body;
  }
}

async function readText(body: Dispatcher.ResponseData['body'], maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) {
      throw new LegateError('E_DOCKER', `an answer of the Docker Engine is larger than ${maxBytes} bytes`, {
        hint: 'Is docker.socket the socket of a Docker Engine?',
      });
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
