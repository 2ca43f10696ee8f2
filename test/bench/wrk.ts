import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { processorMsOf } from './tools.ts';

/** What one load has shown. */
export interface Load {
  readonly perSecond: number;
  /** Of the proxy under load. */
  readonly perCpuSecond: number;
  /** NaN where latency is not measured. */
  readonly p99Ms: number;
}

export interface WrkOptions {
  readonly url: string;
  /** The proxy whose processor time counts. */
  readonly pid: number;
  readonly connections: number;
  readonly seconds: number;
  readonly header?: string;
}

/** Asks for the URL over kept connections. Throws when a request failed. */
export async function wrk({ url, pid, connections, seconds, header }: WrkOptions): Promise<Load> {
  const headers = header === undefined ? [] : ['-H', header];
  const beforeMs = processorMsOf(pid);
  const text = await output('wrk', ['-t1', `-c${connections}`, `-d${seconds}s`, '--latency', ...headers, url]);
  const cpuMs = processorMsOf(pid) - beforeMs;
  if (/Non-2xx|Socket errors: connect [1-9]/.test(text)) throw new Error(`requests to ${url} failed: ${text}`);
  const requests = Number(/(\d+) requests in/.exec(text)?.[1]);
  const [, p99 = '', unit = ''] = /99%\s+([\d.]+)(us|ms|s)/.exec(text) ?? [];
  const p99Ms = Number(p99) * (unit === 'us' ? 0.001 : unit === 's' ? 1000 : 1);
  const perSecond = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
  return { perSecond, perCpuSecond: (requests * 1000) / cpuMs, p99Ms };
}

export function describeLoad(name: string, { perSecond, perCpuSecond, p99Ms }: Load): string {
  const p99 = Number.isNaN(p99Ms) ? '' : `, p99 ${p99Ms.toFixed(1)} ms`;
  return `${name} ${Math.round(perSecond)}/s, ${Math.round(perCpuSecond)} per CPU second${p99}`;
}

/** What a program writes; throws when it fails. */
export async function output(command: string, args: readonly string[]): Promise<string> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let written = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    written += text;
  });
  const [status] = await once(child, 'close');
  if (status !== 0) throw new Error(`${command} ended with ${status}`);
  return written;
}
