import { execFileSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import type { ConditionDocument, InstanceDocument, StatusDocument } from '../../sidecar/admin/documents.ts';
import type { Agent, Teardown } from './agent.ts';
import { waitFor } from './wait.ts';

/** A server on loopback that answers each connection with `text` and ends with the test. */
export async function sayingServer(t: Teardown, text: string, port = 0): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.end(`${text}\n`);
  });
  return { server, port: await listening(t, server, port) };
}

/** A server that sends back what it gets, half-close included. */
export async function echoServer(t: Teardown): Promise<number> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  return listening(t, server, 0);
}

async function listening(t: Teardown, server: Server, port: number): Promise<number> {
  const open = new Set<Socket>();
  server.on('connection', (socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
    for (const socket of open) socket.destroy();
  });
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

/**
 * A port of loopback that was free a moment ago. Below those that the kernel gives to connections and to who asks for any,
 * so that none of the many others on this machine gets it before it is used.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < 100; tries += 1) {
    const port = randomInt(26_000, 32_000);
    const server = createServer().listen(port, '127.0.0.1');
    const free = await once(server, 'listening').then(
      () => true,
      () => false,
    );
    if (!free) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
  throw new Error('100 ports of loopback are taken');
}

/** What a connection, which may send something first, is answered with until its end; rejects when it fails or takes more than 5 s. */
export function ask(port: number, address = '127.0.0.1', send = ''): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const socket = connect(port, address);
    socket.setTimeout(5000, () => socket.destroy(new Error('no answer in 5 s')));
    socket.end(send);
    socket.on('data', (chunk) => {
      text += chunk.toString();
    });
    socket.on('error', reject);
    socket.on('close', () => resolve(text.trim()));
  });
}

export const statusOf = (agent: Agent): Promise<StatusDocument> => agent.json<StatusDocument>('/api/status');

export async function instancesOf(agent: Agent): Promise<InstanceDocument[]> {
  return (await agent.json<{ instances: InstanceDocument[] }>('/api/instances')).instances;
}

/** Waits until `status` shows something wrong that matches, in message or hint. */
export function complaint(agent: Agent, pattern: RegExp, timeoutMs = 10_000): Promise<ConditionDocument> {
  return waitFor(
    `status to say ${pattern}`,
    async () => {
      const { todo } = await statusOf(agent);
      const found = todo.find((each) => pattern.test(`${each.message} ${each.hint}`));
      if (found === undefined) throw new Error(`it says: ${todo.map((each) => each.message).join('; ')}`);
      return found;
    },
    { timeoutMs },
  );
}

/** Waits until nothing is wrong any more that matches. */
export function noComplaint(agent: Agent, pattern: RegExp, timeoutMs = 10_000): Promise<unknown> {
  return waitFor(
    `status no longer to say ${pattern}`,
    async () => {
      const { todo } = await statusOf(agent);
      const found = todo.find((each) => pattern.test(`${each.message} ${each.hint}`));
      if (found !== undefined) throw new Error(`it says: ${found.message}`);
      return true;
    },
    { timeoutMs },
  );
}

/** The value of a metric without labels; 0 when there is none. */
export async function metricOf(agent: Agent, name: string): Promise<number> {
  const { text } = await agent.api('GET', '/metrics');
  return Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (.+)$`, 'm').exec(text)?.[1] ?? 0);
}

/** User and system time that a process has used, in milliseconds (the kernel counts hundredths of a second). */
export function cpuMsOf(pid: number): number {
  const fields = statFieldsOf(pid);
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

function statFieldsOf(pid: number): string[] {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
}

export const descriptorsOf = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

export function rssOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
}

export interface ProcessEntry {
  readonly pid: number;
  readonly state: string;
  readonly command: string;
}

/** All processes below `pid`, ended ones that nobody has waited for included (state Z). */
export function descendantsOf(pid: number): ProcessEntry[] {
  const children = new Map<number, ProcessEntry[]>();
  for (const name of readdirSync('/proc').filter((each) => /^\d+$/.test(each))) {
    try {
      const [state = '', parent = ''] = statFieldsOf(Number(name));
      const command = readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
      const list = children.get(Number(parent)) ?? [];
      list.push({ pid: Number(name), state, command });
      children.set(Number(parent), list);
    } catch {
      // It has ended meanwhile.
    }
  }
  const found: ProcessEntry[] = [];
  for (const queue = [pid]; queue.length > 0; ) {
    const next = children.get(queue.pop() ?? 0) ?? [];
    found.push(...next);
    queue.push(...next.map((each) => each.pid));
  }
  return found;
}

export function isRunning(pid: number): boolean {
  try {
    return statFieldsOf(pid)[0] !== 'Z';
  } catch {
    return false;
  }
}

/** Mounts a file system in memory of `megabytes` at `folder`, which must be there, until the test ends. */
export function mountSmallDisk(t: Teardown, folder: string, megabytes: number): void {
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=700`, 'tmpfs', folder]);
  t.teardown(() => {
    execFileSync('umount', ['-l', folder]);
  });
}
