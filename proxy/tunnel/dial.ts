import { isIP } from 'node:net';
import { connect, type SecureContext, type TLSSocket } from 'node:tls';
import type { Clock } from '../../src/base/clock.ts';
import { describeError, systemCode } from '../../src/base/errors.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { applicationProtocols } from '../../src/pki/desk.ts';
import { RecordReader } from './record-reader.ts';
import { type PeerIdentity, peerOf, type TrustContext } from './trust.ts';

/** From the first packet to the end of the handshake. */
export const dialMs = 5000;

/** Why a host cannot be reached: what, and what to do. */
export interface DialProblem {
  readonly problem: string;
  readonly hint: string;
  /** A sidecar answers there, and this is wrong with its certificate or with ours. */
  readonly isAnswer?: true;
}

export interface DialOptions {
  readonly endpoint: Endpoint;
  /** The host that is meant: another one there is a problem. */
  readonly hostId: string;
  readonly context: SecureContext;
  readonly trust: () => TrustContext | undefined;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export interface Dialled {
  readonly socket: TLSSocket;
  /** Which the socket is read by. */
  readonly reader: RecordReader;
  readonly peer: PeerIdentity;
}

/** Connects to a sidecar and makes sure that it is the one. Never rejects; nothing stays open when it gives a problem. */
export function dialTunnel({
  endpoint,
  hostId,
  context,
  trust,
  clock,
  signal,
}: DialOptions): Promise<Dialled | DialProblem> {
  return new Promise((resolve) => {
    const at = formatEndpoint(endpoint);
    let connected = false;
    const reader = new RecordReader();
    // A constant of its own: Node documents `onread` here, and its types do not know it.
    const options = {
      onread: reader.onread,
      host: endpoint.address,
      port: endpoint.port,
      ...(isIP(endpoint.address) === 0 && { servername: endpoint.address }),
      secureContext: context,
      ALPNProtocols: [applicationProtocols.tunnel],
      // Checked below, where there are words for it.
      rejectUnauthorized: false,
      checkServerIdentity: () => undefined,
    };
    const socket = connect(options);
    socket.setNoDelay(true);
    const finish = (result: Dialled | DialProblem): void => {
      cancelTimer();
      signal.removeEventListener('abort', onAbort);
      if ('problem' in result) socket.destroy();
      // Once it is resolved, whatever the listeners below still hear changes nothing.
      resolve(result);
    };
    const onAbort = (): void => finish({ problem: 'not dialled any more', hint: '' });
    const cancelTimer = clock.after(dialMs, () => finish(silent(at, connected)));
    signal.addEventListener('abort', onAbort, { once: true });
    socket.once('connect', () => {
      connected = true;
    });
    socket.on('error', (error) => finish(explainDial(error, at, connected)));
    socket.once('close', () => finish(closedAtOnce(at)));
    socket.once('secureConnect', () => {
      const now = trust();
      if (now === undefined) return onAbort();
      finish(check(socket, reader, now, hostId, at));
    });
    if (signal.aborted) onAbort();
  });
}

function check(
  socket: TLSSocket,
  reader: RecordReader,
  trust: TrustContext,
  hostId: string,
  at: string,
): Dialled | DialProblem {
  if (socket.alpnProtocol !== applicationProtocols.tunnel) {
    return { problem: `what listens at ${at} does not speak ${applicationProtocols.tunnel}`, hint: otherProgram };
  }
  const peer = peerOf(socket, trust);
  if (typeof peer === 'string') return { problem: `${at}: ${peer}`, hint: certificateHint(peer), isAnswer: true };
  if (peer.hostId !== hostId) {
    return {
      problem: `at ${at} is host ${peer.hostId} instead of ${hostId}`,
      hint: 'two hosts advertise this address: correct `advertise` of one of them',
    };
  }
  return { socket, reader, peer };
}

const otherVersion =
  'it is another program, or a sidecar whose version has no protocol in common with this one: `legate hosts` shows versions';
const otherProgram = 'another program holds this port there: correct `tunnel.listen` or stop it';

function certificateHint(problem: string): string {
  if (problem.includes('ended'))
    return "if the clocks are right it has to join again: legate token on the authority's host, legate join --again there";
  if (problem.includes('clocks')) return 'set the clocks of both hosts';
  if (problem.includes('revoked')) return 'to let it in again: legate token, then legate join --again there';
  return 'it has to join this mesh (`legate join`), or this address is not a host of the mesh';
}

function silent(at: string, connected: boolean): DialProblem {
  return connected
    ? {
        problem: `${at} accepts and then says nothing`,
        hint: 'is its sidecar overloaded or stopped, or is it another program?',
      }
    : { problem: `no answer from ${at}`, hint: `is the host up, and does a firewall there let ${portOf(at)}/tcp in?` };
}

function closedAtOnce(at: string): DialProblem {
  return { problem: `${at} closes the connection at once`, hint: 'see the log of its sidecar' };
}

function portOf(at: string): string {
  return at.slice(at.lastIndexOf(':') + 1);
}

/** What the other side's alerts say of our own certificate (RFC 8446, section 6.2), by OpenSSL's names for them. */
const alerts: readonly (readonly [RegExp, string])[] = [
  [/ALERT_CERTIFICATE_EXPIRED/, 'our certificate has ended'],
  [/ALERT_UNKNOWN_CA/, 'our certificate comes from an authority that it does not trust'],
  [/ALERT_BAD_CERTIFICATE/, 'our certificate is bad'],
  [/ALERT_CERTIFICATE_REVOKED/, 'our certificate is revoked'],
  [/ALERT_UNSUPPORTED_CERTIFICATE|ALERT_CERTIFICATE_UNKNOWN/, 'it does not accept our certificate'],
  [/ALERT_CERTIFICATE_REQUIRED/, 'it got no certificate of ours'],
  [/ALERT_ACCESS_DENIED/, 'it denies us access'],
];

function explainDial(error: unknown, at: string, connected: boolean): DialProblem {
  const code = systemCode(error) ?? '';
  const port = portOf(at);
  const firewall = `is the host up, and does a firewall there let ${port}/tcp in?`;
  if (code === 'ECONNREFUSED')
    return {
      problem: `connection refused at ${at}`,
      hint: `is its sidecar running, does a firewall there let ${port}/tcp in?`,
    };
  if (code === 'ETIMEDOUT' || code === 'EHOSTDOWN') return { problem: `no answer from ${at}`, hint: firewall };
  if (code === 'EHOSTUNREACH' || code === 'ENETUNREACH')
    return {
      problem: `no route to ${at}`,
      hint: `${firewall} Is \`advertise\` there an address that this host can reach?`,
    };
  for (const [pattern, words] of alerts)
    if (pattern.test(code))
      return {
        problem: `${at} refuses this host: ${words}`,
        hint: 'see `legate status` on both hosts',
        isAnswer: true,
      };
  if (/NO_APPLICATION_PROTOCOL/.test(code))
    return { problem: `what listens at ${at} does not speak ${applicationProtocols.tunnel}`, hint: otherVersion };
  if (/WRONG_VERSION|PACKET_LENGTH|PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL/.test(code))
    return { problem: `what listens at ${at} is no sidecar (no TLS 1.3)`, hint: otherProgram };
  if (code === 'ECONNRESET' && connected) return closedAtOnce(at);
  return { problem: `${at}: ${describeError(error)}`, hint: firewall };
}
