import { closeSync, openSync, readSync } from 'node:fs';
import { isIP } from 'node:net';
import { Agent, type Dispatcher, request } from 'undici';
import { describeError, LegateError, systemCode } from '../../src/base/errors.ts';
import { readFileIfAny } from '../../src/base/files.ts';
import { printable, truncate } from '../../src/base/text.ts';
import { isLoopback, isPort } from '../../src/model/address.ts';
import { AdminError, isErrorCode, NoSidecarError } from './failure.ts';

export const defaultAdminAddress = 'unix:/run/legate/admin.sock';

const connectTimeoutMs = 2000;
const answerTimeoutMs = 15_000;
/** Beyond 10,000 instances' documents with long outputs. */
const maxAnswerBytes = 64 * 1024 * 1024;
const maxTokenBytes = 4096;
/** A line of a stream of events is a few bytes. */
/** A value of the store in base64, with its wrapping. */
const maxEventLineBytes = 2 * 1024 * 1024;
/** A stream says something at least this often. */
const streamSilenceMs = 45_000;

export interface AdminAddress {
  /** For people: `unix:/run/legate/admin.sock`, `127.0.0.1:7710`. */
  readonly text: string;
  readonly origin: string;
  readonly socketPath: string | undefined;
  /** Beyond loopback: TLS. */
  readonly secure: boolean;
}

/** Reads `unix:/path`, `/path` or `host:port`. */
export function parseAdminAddress(text: string): AdminAddress {
  if (text.startsWith('unix:') || text.startsWith('/')) {
    const socketPath = text.replace(/^unix:(\/\/)?/, '');
    if (socketPath !== '' && !socketPath.includes('\0')) {
      return { text: `unix:${printable(socketPath)}`, origin: 'http://localhost', socketPath, secure: false };
    }
  }
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([a-zA-Z0-9.-]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2] ?? '';
  if (match === null || !isPort(Number(match[3])) || (match[1] !== undefined && isIP(host) !== 6)) {
    throw new LegateError('E_USAGE', `--admin "${truncate(printable(text), 80)}" is neither unix:/path nor host:port`);
  }
  const secure = host !== 'localhost' && (isIP(host) === 0 || !isLoopback(host));
  return { text, origin: `${secure ? 'https' : 'http'}://${text}`, socketPath: undefined, secure };
}

const unknownRoot = [
  "its certificate comes from none of the mesh's roots",
  'is it of another mesh, or was the root replaced? Name a fresh copy of roots.pem with --ca-file',
] as const;
const wrongTime = ['its certificate is not valid now', "compare that host's clock with this one's"] as const;

/** Why a certificate is refused, by Node's code, each with what to do. */
const certificateProblems: Readonly<Record<string, readonly [problem: string, hint: string]>> = {
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: unknownRoot,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: unknownRoot,
  SELF_SIGNED_CERT_IN_CHAIN: unknownRoot,
  DEPTH_ZERO_SELF_SIGNED_CERT: unknownRoot,
  CERT_SIGNATURE_FAILURE: unknownRoot,
  CERT_HAS_EXPIRED: wrongTime,
  CERT_NOT_YET_VALID: wrongTime,
  ERR_TLS_CERT_ALTNAME_INVALID: [
    'its certificate is for another address',
    'use the address that the host advertises, or its name',
  ],
};

/** Where a sidecar with the usual data_dir keeps the mesh's roots. */
const defaultRoots = '/var/lib/legate/pki/roots.pem';
const maxRootsBytes = 64 * 1024;

/** The roots that a sidecar beyond loopback is checked with. */
export function readRoots(path: string | undefined, { text }: AdminAddress): string {
  const hint = 'name a copy of roots.pem, from pki in the data_dir of any host of the mesh, with --ca-file';
  try {
    const roots = readFileIfAny(path ?? defaultRoots, maxRootsBytes);
    if (roots?.includes('-----BEGIN CERTIFICATE-----')) return roots;
  } catch (error) {
    if (path !== undefined) {
      const message = `the roots' file ${printable(path)} cannot be read (${describeError(error)})`;
      throw new LegateError('E_PERMISSION', message, { hint, cause: error });
    }
  }
  const what =
    path === undefined ? `${defaultRoots} is not there or not readable` : `${printable(path)} holds no certificate`;
  throw new LegateError('E_USAGE', `--admin ${text} is beyond loopback, where it takes the mesh's roots: ${what}`, {
    hint,
  });
}

/** Reads the token for the admin API over TCP. */
export function readToken(path: string): string {
  const buffer = Buffer.alloc(maxTokenBytes);
  let length: number;
  try {
    const file = openSync(path, 'r');
    try {
      length = readSync(file, buffer);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw new LegateError(
      'E_PERMISSION',
      `the token's file ${printable(path)} cannot be read (${describeError(error)})`,
      {
        hint: 'it is admin.token in the data_dir of the sidecar, readable by its user only',
        cause: error,
      },
    );
  }
  const token = buffer.toString('utf8', 0, length).trim();
  if (/^[\x21-\x7e]{1,512}$/.test(token)) return token;
  throw new LegateError('E_INVALID', `${printable(path)} does not hold a token`);
}

/** An answer that is not JSON: bytes, and the revision from its ETag. */
export interface RawAnswer {
  readonly body: Buffer;
  readonly revision: string;
}

interface Call {
  readonly method?: 'GET' | 'PUT' | 'POST' | 'DELETE';
  readonly body?: string | Uint8Array;
  readonly contentType?: string;
  readonly signal?: AbortSignal;
}

/**
 * The way to a running sidecar: its admin API over the unix socket or TCP on loopback. Every wait has a limit; failures
 * are NoSidecarError (nobody answers) or AdminError (it refuses). Strings in answers are as strangers wrote them.
 */
export class AdminClient {
  readonly address: AdminAddress;
  readonly #dispatcher: Agent;
  readonly #token: string | undefined;

  constructor(options: {
    readonly address: AdminAddress;
    readonly token?: string | undefined;
    /** PEM; for an address beyond loopback. */
    readonly roots?: string | undefined;
  }) {
    this.address = options.address;
    this.#token = options.token;
    const { socketPath } = options.address;
    this.#dispatcher = new Agent({
      connect: {
        timeout: connectTimeoutMs,
        ...(socketPath !== undefined && { socketPath }),
        ...(options.roots !== undefined && { ca: options.roots }),
      },
      connections: 4,
    });
  }

  /** An answer's JSON. Its form is that of the sidecar's version; who shows it copes with a missing field. */
  async json<T>(path: string, call: Call & { readonly json?: unknown } = {}): Promise<T> {
    const content = call.json === undefined ? {} : { body: JSON.stringify(call.json), contentType: 'application/json' };
    const { body } = await this.raw(path, { ...call, ...content });
    try {
      return JSON.parse(body.toString('utf8')) as T;
    } catch (error) {
      throw this.#strange('its answer is not JSON', error);
    }
  }

  async raw(path: string, call: Call = {}): Promise<RawAnswer> {
    try {
      const answer = await this.#send(path, call, answerTimeoutMs);
      const body = await readBody(answer.body, maxAnswerBytes);
      if (answer.statusCode >= 300) throw this.#refusal(answer.statusCode, body);
      const etag = answer.headers.etag;
      const revision = typeof etag === 'string' ? printable(etag.replace(/^(?:W\/)?"?|"$/g, '')) : '';
      return { body, revision };
    } catch (error) {
      throw this.#explain(error, call.signal);
    }
  }

  /** An answer's body as it comes, however long it is; a body that breaks off throws. */
  async *body(path: string, signal: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      const answer = await this.#send(path, { signal }, streamSilenceMs);
      if (answer.statusCode !== 200)
        throw this.#refusal(answer.statusCode, await readBody(answer.body, maxAnswerBytes));
      for await (const chunk of answer.body) yield chunk as Uint8Array;
    } catch (error) {
      throw this.#explain(error, signal);
    }
  }

  /** Yields once for each event `change` of /api/events. Ends when the stream does; throws as `json` does. */
  async *changes(signal: AbortSignal): AsyncGenerator<void, void, undefined> {
    for await (const line of this.#lines('/api/events', signal)) if (/^event: ?change$/.test(line)) yield;
  }

  /** Yields the data of each event of a stream, as JSON. Ends when the stream does; throws as `json` does. */
  async *events<T>(path: string, signal: AbortSignal): AsyncGenerator<T, void, undefined> {
    for await (const line of this.#lines(path, signal)) {
      const [, data] = /^data: ?(.*)$/.exec(line) ?? [];
      if (data === undefined) continue;
      let document: T;
      try {
        document = JSON.parse(data) as T;
      } catch (error) {
        throw this.#strange('an event is not JSON', error);
      }
      yield document;
    }
  }

  async *#lines(path: string, signal: AbortSignal): AsyncGenerator<string, void, undefined> {
    try {
      // The stream may be silent for long; the sidecar's comment lines show that it lives.
      const answer = await this.#send(path, { signal }, streamSilenceMs);
      if (answer.statusCode !== 200)
        throw this.#refusal(answer.statusCode, await readBody(answer.body, maxAnswerBytes));
      let rest = '';
      for await (const chunk of answer.body) {
        const lines = (rest + String(chunk)).split(/\r?\n/);
        rest = lines.pop() ?? '';
        if (rest.length > maxEventLineBytes) throw this.#strange('a line of its events does not end');
        yield* lines;
      }
    } catch (error) {
      throw this.#explain(error, signal);
    }
  }

  async close(): Promise<void> {
    await this.#dispatcher.destroy();
  }

  #send(path: string, call: Call, bodyTimeoutMs: number): Promise<Dispatcher.ResponseData> {
    const headers: Record<string, string> = { accept: '*/*' };
    if (this.#token !== undefined) headers.authorization = `Bearer ${this.#token}`;
    if (call.contentType !== undefined) headers['content-type'] = call.contentType;
    return request(this.address.origin + path, {
      dispatcher: this.#dispatcher,
      method: call.method ?? 'GET',
      headers,
      headersTimeout: answerTimeoutMs,
      bodyTimeout: bodyTimeoutMs,
      ...(call.body === undefined ? {} : { body: call.body }),
      ...(call.signal === undefined ? {} : { signal: call.signal }),
    });
  }

  #refusal(status: number, body: Buffer): Error {
    let error: { code?: unknown; message?: unknown; hint?: unknown } | undefined;
    try {
      error = (JSON.parse(body.toString('utf8')) as { error?: typeof error } | null)?.error;
    } catch {
      error = undefined;
    }
    if (status === 401) {
      return new AdminError(
        'E_UNAUTHORIZED',
        `${this.address.text} ${this.#token === undefined ? 'wants a token' : 'refuses the token'}`,
        status,
        {
          hint: 'name its file with --token-file: admin.token in the data_dir of the sidecar',
        },
      );
    }
    if (typeof error?.message !== 'string') return this.#strange(`it answered with status ${status}`);
    const code = isErrorCode(error.code) ? error.code : 'E_INVALID';
    const hint = typeof error.hint === 'string' && error.hint !== '' ? { hint: error.hint } : {};
    return new AdminError(code, error.message, status, hint);
  }

  #strange(what: string, cause?: unknown): Error {
    return new AdminError(
      'E_INVALID',
      `what listens at ${this.address.text} does not speak as a sidecar does: ${what}`,
      0,
      {
        hint: 'is it another program, or a sidecar of another version?',
        cause,
      },
    );
  }

  #distrusted(code: string, cause: unknown): Error {
    const [problem = '', hint = ''] = certificateProblems[code] ?? [];
    return new AdminError('E_UNAUTHORIZED', `what listens at ${this.address.text} is not trusted: ${problem}`, 0, {
      hint,
      cause,
    });
  }

  #explain(error: unknown, signal: AbortSignal | undefined): unknown {
    if (error instanceof LegateError || signal?.aborted === true) return error;
    const at = this.address.text;
    const start = 'is it running? Start it with legate agent -c FILE, or name its address with --admin';
    const none = (message: string, hint: string): Error => new NoSidecarError(message, { hint, cause: error });
    const code = systemCode(error) ?? '';
    switch (code) {
      case 'ENOENT':
        return none(`no sidecar at ${at}: there is no such socket`, start);
      case 'ECONNREFUSED':
        return none(`no sidecar at ${at}: nobody listens there any more`, start);
      case 'EACCES':
      case 'EPERM':
        return none(
          `no right to open ${at} (user id ${process.geteuid?.() ?? '?'})`,
          'the socket is for the user that the sidecar runs as: use sudo, or --admin HOST:PORT with --token-file',
        );
      case 'ENOTSOCK':
      case 'EPROTOTYPE':
        return none(`no sidecar at ${at}: that is not a socket to connect to`, start);
      case 'UND_ERR_CONNECT_TIMEOUT':
        return none(`no sidecar at ${at}: no connection within ${connectTimeoutMs} ms`, start);
      case 'UND_ERR_SOCKET':
      case 'ECONNRESET':
      case 'EPIPE':
        return none(`the sidecar at ${at} went away before it answered`, 'is it restarting? legate status tells');
      case 'UND_ERR_HEADERS_TIMEOUT':
      case 'UND_ERR_BODY_TIMEOUT':
        return new AdminError('E_TIMEOUT', `the sidecar at ${at} did not answer within ${answerTimeoutMs} ms`, 0, {
          hint: 'its log and legate status may say what holds it up',
          cause: error,
        });
      default:
        if (this.address.secure && code in certificateProblems) return this.#distrusted(code, error);
        if (code === 'EPROTO' || code.startsWith('ERR_SSL_')) return this.#strange('it does not speak TLS', error);
        if (code.startsWith('HPE_')) return this.#strange('it does not speak HTTP', error);
        return none(`no sidecar at ${at}: ${describeError(error)}`, start);
    }
  }
}

async function readBody(body: Dispatcher.ResponseData['body'], limit: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    const part = Buffer.from(chunk);
    length += part.length;
    if (length > limit) throw new AdminError('E_TOO_LARGE', `the answer is larger than ${limit} bytes`, 0, {});
    chunks.push(part);
  }
  return Buffer.concat(chunks);
}
