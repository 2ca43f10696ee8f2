import { connect } from 'node:net';
import { describeError, systemCode } from '../base/errors.ts';
import { type Endpoint, formatEndpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import type { ProbeResult } from './probe.ts';

const reasons: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'connection reset',
  EHOSTUNREACH: 'no route to the host',
  ENETUNREACH: 'no route to the network',
  ETIMEDOUT: 'no answer to the connection request',
  EPERM: 'the host forbids the connection (a firewall rule?)',
  EACCES: 'the host forbids the connection (a firewall rule?)',
};

/** A connect failure in words. */
export function connectFailure(error: unknown, endpoint: Endpoint): string {
  const reason = reasons[systemCode(error) ?? ''] ?? describeError(error);
  return `${reason} at ${formatEndpoint(endpoint)}`;
}

/** Passes when a connection can be made; it is closed at once. */
export function probeTcp(endpoint: Endpoint, _check: CheckSpec, signal: AbortSignal): Promise<ProbeResult> {
  return new Promise((resolve) => {
    const socket = connect({ host: endpoint.address, port: endpoint.port });
    const end = (result: ProbeResult): void => {
      signal.removeEventListener('abort', onAbort);
      socket.destroy();
      resolve(result);
    };
    const onAbort = (): void => end({ verdict: 'fail', output: 'cut off' });
    socket.once('connect', () => {
      // A connection to a free port of our own range of ephemeral ports can meet itself.
      const itself = socket.localPort === endpoint.port && socket.localAddress === endpoint.address;
      if (itself) end({ verdict: 'fail', output: `connection refused at ${formatEndpoint(endpoint)}` });
      else end({ verdict: 'pass', output: `connected to ${formatEndpoint(endpoint)}` });
    });
    socket.on('error', (error) => end({ verdict: 'fail', output: connectFailure(error, endpoint) }));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
}
