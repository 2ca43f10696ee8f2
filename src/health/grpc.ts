import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { describeError, systemCode } from '../base/errors.ts';
import { type Endpoint, formatEndpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import { decodeAnswer, encodeRequest, maxAnswerBytes } from './grpc-health.ts';
import { outputText, type Probe, type ProbeResult } from './probe.ts';
import { connectFailure } from './tcp.ts';
import { type Trust, tlsFailure } from './trust.ts';

const method = '/grpc.health.v1.Health/Check';
const maxHeaderBytes = 16 * 1024;
const hungUp = 'it hung up without an answer';
/** In megabytes, the least that Node takes. */
const maxSessionMemory = 1;

/** Codes of gRPC (statuscodes.md) that say something particular about a health check. */
const notFound = '5';
const unimplemented = '12';
const codeNames: Readonly<Record<string, string>> = {
  1: 'CANCELLED',
  2: 'UNKNOWN',
  3: 'INVALID_ARGUMENT',
  4: 'DEADLINE_EXCEEDED',
  7: 'PERMISSION_DENIED',
  8: 'RESOURCE_EXHAUSTED',
  13: 'INTERNAL',
  14: 'UNAVAILABLE',
  16: 'UNAUTHENTICATED',
};

/**
 * Asks the standard health service (grpc.health.v1.Health/Check) once, over a connection of its own, and passes on
 * SERVING. It is spoken here over Node's HTTP/2 and not through @grpc/grpc-js, whose client keeps the connection open
 * when a server takes it and never answers.
 */
export function grpcProbe(trust: Trust): Probe {
  return async (target, check, signal) => {
    const tls = check.tls === undefined ? undefined : await trust.optionsFor(check.tls);
    const question = check.grpcService === undefined ? 'grpc' : `grpc ${check.grpcService}`;
    let socket: Socket | undefined;
    let session: ClientHttp2Session | undefined;
    const found = await new Promise<ProbeResult>((resolve) => {
      const end = (verdict: ProbeResult['verdict'], output: string): void => {
        signal.removeEventListener('abort', onAbort);
        resolve({ verdict, output: outputText(`${question}: ${output}`) });
      };
      const onAbort = (): void => end('fail', 'cut off');
      if (signal.aborted) return onAbort();
      signal.addEventListener('abort', onAbort, { once: true });
      const ask = async (): Promise<void> => {
        const [http2, { connect: connectTls }] = await Promise.all([import('node:http2'), import('node:tls')]);
        if (signal.aborted) return;
        const where = { host: target.address, port: target.port };
        socket = tls === undefined ? connect(where) : connectTls({ ...tls, ...where, ALPNProtocols: ['h2'] });
        // Its end is told by who waits for it, or is of no interest any more.
        socket.on('error', () => undefined);
        await ready(socket, tls !== undefined, target);
        if (signal.aborted) return;
        const scheme = tls === undefined ? 'http' : 'https';
        const authority = formatEndpoint(target);
        const opened = socket;
        session = http2.connect(`${scheme}://${authority}`, {
          createConnection: () => opened,
          maxSessionMemory,
          maxHeaderListPairs: 64,
          maxReservedRemoteStreams: 0,
          settings: { enablePush: false, maxHeaderListSize: maxHeaderBytes },
        });
        converse(session, { scheme, authority, check }, end);
      };
      ask().catch((error: unknown) => end('fail', describeError(error)));
    });
    // The session may be reading: destroyed then, it frees a stream that it goes on to use (CVE-2026-56848).
    await turn();
    session?.destroy();
    socket?.destroy();
    return found;
  };
}

/** Resolves when the connection stands; rejects with what people are told. */
function ready(socket: Socket, secure: boolean, endpoint: Endpoint): Promise<void> {
  return new Promise((resolve, reject) => {
    const failed = (error: Error): void =>
      reject(new Error(secure ? tlsFailure(error, endpoint) : connectFailure(error, endpoint)));
    socket.once('error', failed);
    socket.once('close', () => reject(new Error(`${formatEndpoint(endpoint)} is not a gRPC server (${hungUp})`)));
    socket.once(secure ? 'secureConnect' : 'connect', () => {
      socket.removeListener('error', failed);
      if (secure && (socket as TLSSocket).alpnProtocol !== 'h2') {
        reject(new Error(`${formatEndpoint(endpoint)} speaks TLS but not HTTP/2, so it is not a gRPC server`));
      } else resolve();
    });
  });
}

interface Question {
  readonly scheme: string;
  readonly authority: string;
  readonly check: CheckSpec;
}

type End = (verdict: ProbeResult['verdict'], output: string) => void;

/** Sends the request (PROTOCOL-HTTP2.md) and reads the answer; whichever event comes first ends it. */
function converse(session: ClientHttp2Session, { scheme, authority, check }: Question, end: End): void {
  const notGrpc = (why: string): void => end('fail', `${authority} is not a gRPC server (${why})`);
  session.on('error', (error) => notGrpc(protocolFailure(error)));
  session.on('close', () => notGrpc(hungUp));
  session.on('goaway', (code) => notGrpc(`it sent GOAWAY with code ${code}`));
  const stream = session.request({
    ':method': 'POST',
    ':scheme': scheme,
    ':authority': authority,
    ':path': method,
    'content-type': 'application/grpc',
    te: 'trailers',
    'user-agent': 'legate-health',
    'grpc-timeout': `${Math.min(check.timeoutMs, 99_999_999)}m`,
  });
  stream.on('error', (error) => notGrpc(protocolFailure(error)));
  stream.on('close', () => notGrpc(hungUp));
  readAnswer(stream, check, end, notGrpc);
  stream.end(encodeRequest(check.grpcService ?? ''));
}

function readAnswer(stream: ClientHttp2Stream, check: CheckSpec, end: End, notGrpc: (why: string) => void): void {
  const chunks: Buffer[] = [];
  let bytes = 0;
  let isAnswered = false;
  let status: string | undefined;
  const takeStatus = (headers: IncomingHttpHeaders): void => {
    const given = headers['grpc-status'];
    if (typeof given !== 'string') return;
    status = given;
    if (given !== '0') end('fail', refusalOf(given, headers['grpc-message'], check));
  };
  stream.on('response', (headers) => {
    isAnswered = true;
    const type = headers['content-type'] ?? 'no content type';
    if (headers[':status'] !== 200) return notGrpc(`HTTP status ${headers[':status'] ?? 'none'}`);
    if (!/^application\/grpc($|[+;])/.test(type)) return notGrpc(`its answer is ${type}`);
    takeStatus(headers);
  });
  stream.on('trailers', takeStatus);
  stream.on('data', (chunk: Buffer) => {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > maxAnswerBytes) end('fail', `its answer has more than ${maxAnswerBytes} bytes`);
  });
  stream.on('end', () => {
    if (!isAnswered) return notGrpc(hungUp);
    if (status === undefined) return notGrpc('it ends its answer without a status');
    const answer = decodeAnswer(Buffer.concat(chunks));
    if ('fault' in answer) return end('fail', `its answer ${answer.fault}`);
    end(answer.status === 'SERVING' ? 'pass' : 'fail', answer.status);
  });
}

function refusalOf(code: string, message: string | string[] | undefined, { grpcService }: CheckSpec): string {
  if (code === unimplemented) return 'the server has no health service (UNIMPLEMENTED)';
  if (code === notFound)
    return `its health service does not know ${grpcService ?? 'the server as a whole'} (NOT_FOUND)`;
  const name = codeNames[code] ?? `status ${code}`;
  return typeof message === 'string' && message !== '' ? `${name}: ${percentDecoded(message)}` : name;
}

/** PROTOCOL-HTTP2.md: grpc-message is percent-encoded; what is not is shown as it came. */
function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function protocolFailure(error: Error): string {
  const code = systemCode(error);
  // Which of these is seen first depends on the moment: they are one thing in words.
  if (code === 'ECONNRESET' || code === 'EPIPE') return hungUp;
  return code === 'ERR_HTTP2_ERROR'
    ? `what it says is not HTTP/2: ${error.message.toLowerCase()}`
    : describeError(error);
}
