import { X509Certificate } from 'node:crypto';
import { connect, type TLSSocket } from 'node:tls';
import { describeError, LegateError, systemCode } from '../base/errors.ts';
import { within } from '../base/within.ts';
import { type Endpoint, formatEndpoint } from '../model/address.ts';
import type { Credentials } from '../model/credentials.ts';
import { hostIdOfNames } from '../model/spiffe.ts';
import { fingerprintOf, rootOfChain, timeProblem } from './chain.ts';
import { applicationProtocols, defaultTunnelPort } from './desk.ts';
import { frameOf, readFrame } from './frames.ts';
import type { JoinToken } from './token.ts';

const connectLimitMs = 10_000;
/** A request waits for the store, and for others before it. */
const answerLimitMs = 30_000;

/** Whom we expect at the other end, and what we show. */
export type DeskVisit =
  | { readonly kind: 'enrol'; readonly mesh: string; readonly token: JoinToken }
  | { readonly kind: 'renew'; readonly credentials: Credentials; readonly authority: string };

/**
 * Asks the desk at `endpoint`. Nothing is sent before the other side has shown to be the authority's host. Errors:
 * E_UNREACHABLE, E_TIMEOUT and E_UNAUTHORIZED, with the likely cause.
 */
export async function askDesk(
  endpoint: Endpoint,
  visit: DeskVisit,
  request: Uint8Array,
  { nowMs, signal }: { readonly nowMs: number; readonly signal: AbortSignal },
): Promise<Uint8Array> {
  const socket = await open(endpoint, visit, signal);
  try {
    checkServer(socket, endpoint, visit, nowMs);
    socket.write(frameOf(request));
    return await within(answerLimitMs, signal, (until) => readFrame(socket, until)).catch((error: unknown) => {
      throw signal.aborted ? signal.reason : explainAnswer(error, endpoint, visit);
    });
  } finally {
    socket.destroy();
  }
}

/** What answers at an address, whoever it is; nothing is sent to it. E_UNREACHABLE and E_TIMEOUT as `askDesk`. */
export async function shownCertificate(
  endpoint: Endpoint,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<X509Certificate | undefined> {
  const socket = await open(endpoint, { kind: 'look', credentials }, signal);
  const shown = socket.getPeerX509Certificate();
  socket.destroy();
  return shown;
}

type Visit = DeskVisit | { readonly kind: 'look'; readonly credentials: Credentials };

function open(endpoint: Endpoint, visit: Visit, signal: AbortSignal): Promise<TLSSocket> {
  const protocol = visit.kind === 'look' ? applicationProtocols.tunnel : applicationProtocols[visit.kind];
  const shown = visit.kind === 'enrol' ? {} : { cert: visit.credentials.chain, key: visit.credentials.key };
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: endpoint.address,
      port: endpoint.port,
      ALPNProtocols: [protocol],
      minVersion: 'TLSv1.3',
      // Who it is shows `checkServer`, against what TLS itself does not know.
      rejectUnauthorized: false,
      checkServerIdentity: () => undefined,
      ...shown,
    });
    const fail = (error: unknown): void => {
      end();
      socket.on('error', () => undefined);
      socket.destroy();
      reject(error);
    };
    const onError = (error: Error): void => fail(explainConnect(error, endpoint));
    const onEnd = (): void => fail(explainConnect(new Error('the connection was closed'), endpoint));
    const onAbort = (): void => fail(signal.reason);
    let isConnected = false;
    socket.once('connect', () => {
      isConnected = true;
    });
    const timer = setTimeout(
      () => fail(isConnected ? anotherProgram(endpoint) : explainConnect(undefined, endpoint)),
      connectLimitMs,
    );
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.off('error', onError).off('close', onEnd);
    };
    socket.once('error', onError).once('close', onEnd);
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) onAbort();
    socket.once('secureConnect', () => {
      end();
      socket.on('error', () => undefined);
      resolve(socket);
    });
  });
}

function checkServer(socket: TLSSocket, endpoint: Endpoint, visit: DeskVisit, nowMs: number): void {
  const at = formatEndpoint(endpoint);
  const wrong = (message: string, hint: string): LegateError => new LegateError('E_UNAUTHORIZED', message, { hint });
  if (socket.alpnProtocol !== applicationProtocols[visit.kind]) {
    throw wrong(`what listens at ${at} is no sidecar of a mesh`, 'name the host on which legate init was run');
  }
  const chain = chainOf(socket);
  const [certificate] = chain;
  const mesh = visit.kind === 'enrol' ? visit.mesh : visit.credentials.mesh;
  if (certificate === undefined)
    throw wrong(`${at} shows no certificate`, 'name the host on which legate init was run');
  const roots =
    visit.kind === 'enrol'
      ? chain.filter((each) => fingerprintOf(each) === visit.token.fingerprint)
      : visit.credentials.roots.map((each) => new X509Certificate(each));
  const found = rootOfChain(chain, roots);
  if ('problem' in found) {
    throw wrong(
      `${at} is not the authority that ${visit.kind === 'enrol' ? 'the token names' : 'this host knows'}; nothing was sent to it`,
      visit.kind === 'enrol'
        ? 'it may be another mesh, or somebody in between; or the authority has another root since: make a new token there'
        : `somebody may be in between; if the root was replaced while this host was away: ${joinAgain(endpoint)}`,
    );
  }
  const named = hostIdOfNames(certificate.subjectAltName, mesh);
  if (typeof named === 'string') {
    throw wrong(`${at}: ${named}`, 'set `mesh` in the configuration to the name of the mesh that is to be joined');
  }
  const expected = visit.kind === 'enrol' ? visit.token.authority : visit.authority;
  if (named.hostId !== expected) {
    throw wrong(
      `${at} is another host of the mesh, not its authority; nothing was sent to it`,
      'name the host on which legate init was run',
    );
  }
  const problem =
    timeProblem(certificate, nowMs, `the authority's`) ?? timeProblem(found.root, nowMs, `the authority's root`);
  if (problem !== undefined) throw wrong(problem, 'set the clocks of both hosts, for instance with chronyc makestep');
}

/** What a host does that cannot show or check certificates any more. */
function joinAgain(endpoint: Endpoint): string {
  return `legate token on the authority's host, then here, the sidecar stopped: legate join ${formatEndpoint(endpoint)} --again --token TOKEN`;
}

/** What the other side sent, its own certificate first. */
function chainOf(socket: TLSSocket): readonly X509Certificate[] {
  const chain: X509Certificate[] = [];
  let current = socket.getPeerX509Certificate();
  while (current !== undefined && chain.length < 8) {
    chain.push(current);
    const next: X509Certificate | undefined = current.issuerCertificate;
    if (next === undefined || next.fingerprint256 === current.fingerprint256) break;
    current = next;
  }
  return chain;
}

function explainConnect(error: unknown, endpoint: Endpoint): LegateError {
  const at = formatEndpoint(endpoint);
  const code = systemCode(error) ?? '';
  const details = (hint: string): { hint: string; cause?: unknown } => ({
    hint,
    ...(error !== undefined && { cause: error }),
  });
  if (error === undefined || code === 'ETIMEDOUT') {
    return new LegateError('E_TIMEOUT', `no connection to ${at} within ${connectLimitMs / 1000} s`, {
      hint: `a firewall may drop ${endpoint.port}/tcp on the way or on that host; or the address is wrong`,
    });
  }
  if (code === 'ECONNREFUSED') {
    const hint = `is legate agent running there, and was legate init run there? A firewall may also reject ${endpoint.port}/tcp`;
    return new LegateError('E_UNREACHABLE', `nobody listens at ${at}`, details(hint));
  }
  if (/ALPN|no.application.protocol/i.test(`${code} ${describeError(error)}`)) {
    const hint = 'name the host on which legate init was run, and whose sidecar runs';
    if (endpoint.port === defaultTunnelPort) {
      return new LegateError('E_UNREACHABLE', `${at} is not the authority of a mesh`, { hint });
    }
    // OpenSSL's words for it say nothing to anybody.
    return new LegateError('E_UNREACHABLE', `no host is let in at ${at}: something else speaks TLS there`, {
      hint: `${endpoint.port} may be the port of its store; a host joins at that of its tunnels: legate join ${endpoint.address}, with a port only where that is not ${defaultTunnelPort}`,
    });
  }
  if (/^ERR_SSL|EPROTO|SSL/.test(code)) {
    return anotherProgram(endpoint);
  }
  const hint = 'check the address, the routes and the firewalls between the two hosts';
  return new LegateError('E_UNREACHABLE', `no connection to ${at} (${code || 'closed'})`, details(hint));
}

/** The connection was made, and what is heard on it is nothing or no TLS. */
function anotherProgram(endpoint: Endpoint): LegateError {
  return new LegateError('E_UNREACHABLE', `something else than a sidecar answers at ${formatEndpoint(endpoint)}`, {
    hint: 'name the address and the tunnel port (7711) of the host on which legate init was run',
  });
}

function explainAnswer(error: unknown, endpoint: Endpoint, visit: DeskVisit): unknown {
  const at = formatEndpoint(endpoint);
  if (error instanceof DOMException && error.name === 'TimeoutError') {
    return new LegateError('E_TIMEOUT', `the authority at ${at} did not answer within ${answerLimitMs / 1000} s`, {
      hint: 'its log and its legate status may say what holds it up',
    });
  }
  const hint =
    visit.kind === 'renew' ? 'this host may be revoked, or its certificate may have ended' : 'its log may say why';
  return new LegateError('E_UNREACHABLE', `the authority at ${at} closed the connection (${describeError(error)})`, {
    hint,
    cause: error,
  });
}
