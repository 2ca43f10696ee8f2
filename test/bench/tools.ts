import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';

export const loopback = '127.0.0.1';
/** `/proc/<pid>/stat` counts in hundredths of a second, on every Linux that we know. */
const msPerTick = 10;

/** Processor time of all threads of a process so far; children not counted. */
export function processorMsOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * msPerTick;
}

/** Resident memory of a process in megabytes: now, the most it ever had, and what of it now is of no file. */
export function memoryOf(pid: number): {
  readonly megabytes: number;
  readonly peak: number;
  readonly anonymous: number;
} {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const value = (name: string): number =>
    (Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1]) * 1024) / 1e6;
  return { megabytes: value('VmRSS'), peak: value('VmHWM'), anonymous: value('RssAnon') };
}

export async function freeTcpPort(): Promise<number> {
  const server = createServer().listen(0, loopback);
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

export async function freeUdpPort(): Promise<number> {
  const socket = createSocket('udp4').bind(0, loopback);
  await once(socket, 'listening');
  const { port } = socket.address();
  socket.close();
  await once(socket, 'close');
  return port;
}

export function percentile(values: readonly number[], part: number): number {
  return values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * part))] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return percentile(values, 0.5);
}
