import { type ClientRequest, type IncomingMessage, request } from 'node:http';
import { describeError, systemCode } from '../base/errors.ts';
import { type Endpoint, formatEndpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import { outputText, type Probe, type ProbeResult } from './probe.ts';
import { connectFailure } from './tcp.ts';
import { type TlsOptions, type Trust, tlsFailure } from './trust.ts';

/** Bytes of a body that are read; the connection is then closed, whatever follows. */
const maxBodyBytes = 4096;
const maxHeaderBytes = 16 * 1024;

/**
 * Passes on a status of 200 to 299, warns on 429 (RFC 6585 section 4: alive, but asked too much), fails on every other
 * one. Redirects are not followed: where they lead is not the instance. The beginning of the body is kept as output.
 */
export function httpProbe(trust: Trust): Probe {
  return async (target, check, signal) => {
    if (check.tls === undefined) return probe(target, check, signal, request, {});
    const [https, tls] = await Promise.all([import('node:https'), trust.optionsFor(check.tls)]);
    return probe(target, check, signal, https.request, tls);
  };
}

function probe(
  endpoint: Endpoint,
  check: CheckSpec,
  signal: AbortSignal,
  ask: typeof request,
  tls: TlsOptions | Record<string, never>,
): Promise<ProbeResult> {
  const method = check.method ?? 'GET';
  const path = check.path ?? '/';
  const question = `${method} ${path}`;
  return new Promise((resolve) => {
    let asked: ClientRequest | undefined;
    const end = (verdict: ProbeResult['verdict'], output: string): void => {
      signal.removeEventListener('abort', onAbort);
      asked?.destroy();
      resolve({ verdict, output: outputText(output) });
    };
    const onAbort = (): void => end('fail', `${question}: cut off`);
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      asked = ask({
        ...tls,
        host: endpoint.address,
        port: endpoint.port,
        method,
        path,
        agent: false,
        maxHeaderSize: maxHeaderBytes,
        headers: { 'user-agent': 'legate-health', accept: '*/*', connection: 'close' },
      });
    } catch (error) {
      // Node refuses paths and methods with characters that no request line may have.
      return end('fail', `${question} cannot be asked: ${describeError(error)}`);
    }
    asked.on('response', (response) => readAnswer(response, question, end));
    asked.on('upgrade', () => end('fail', `${question}: an unexpected change of protocol`));
    asked.on('error', (error) => end('fail', `${question}: ${failureOf(error, endpoint, check)}`));
    asked.end();
  });
}

function readAnswer(
  response: IncomingMessage,
  question: string,
  end: (verdict: ProbeResult['verdict'], output: string) => void,
): void {
  const status = response.statusCode ?? 0;
  const verdict = status >= 200 && status <= 299 ? 'pass' : status === 429 ? 'warn' : 'fail';
  const chunks: Buffer[] = [];
  let length = 0;
  const finish = (): void => {
    const body = Buffer.concat(chunks).subarray(0, maxBodyBytes).toString('utf8').trim();
    const redirect =
      status >= 300 && status <= 399 ? ` to ${response.headers.location ?? 'nowhere'}, not followed` : '';
    end(verdict, `${question}: ${status} ${response.statusMessage ?? ''}${redirect}${body === '' ? '' : `: ${body}`}`);
  };
  // Some servers answer HEAD with a body; what follows the head is nobody's business (RFC 9110 section 9.3.2).
  if (question.startsWith('HEAD ')) {
    finish();
    return;
  }
  response.on('data', (chunk: Buffer) => {
    chunks.push(chunk);
    length += chunk.length;
    if (length >= maxBodyBytes) finish();
  });
  response.on('end', finish);
  response.on('error', (error) => end('fail', `${question}: ${describeError(error)}`));
}

function failureOf(error: Error, endpoint: Endpoint, check: CheckSpec): string {
  const code = systemCode(error) ?? '';
  if (code.startsWith('HPE_')) return `the answer of ${formatEndpoint(endpoint)} is not HTTP (${describeError(error)})`;
  return check.tls === undefined ? connectFailure(error, endpoint) : tlsFailure(error, endpoint);
}
