import { type ChildProcess, fork, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import type { Bench, Figure } from './bench.ts';
import { block, blockBytes, type Transfer } from './tcp-roles.ts';
import { freeTcpPort, median, processorMsOf } from './tools.ts';
import { describeLoad, type Load, wrk } from './wrk.ts';

/** Interleaved rounds of ours and the peer; figures are medians. With three seconds a pair this stays under 90 s. */
const rounds = 4;
const loadSeconds = 2;
const bulkBytes = 1024 * blockBytes;
const hashedBytes = 192 * blockBytes;

interface Proxy {
  readonly name: string;
  readonly pid: number;
  readonly httpPort: number;
  readonly bulkPort: number;
}

export const tcpBench: Bench = {
  name: 'tcp',
  skip: () => unless('command:haproxy', 'command:wrk'),
  async run(say) {
    const folder = await mkdtemp(`${tmpdir()}/legate-bench-tcp-`);
    const children: ChildProcess[] = [];
    try {
      return await compare(folder, children, say);
    } finally {
      for (const child of children) child.kill('SIGKILL');
      await rm(folder, { recursive: true, force: true });
    }
  },
};

async function compare(folder: string, children: ChildProcess[], say: (line: string) => void): Promise<Figure[]> {
  const backendPort = await freeTcpPort();
  const [sourcePort = 0] = (await startRole(children, 'source')).first;
  const sink = await startRole(children, 'sink');
  await startHaproxy(folder, children, 'backend', [backendPort], backendConfig(backendPort));
  const ports = [await freeTcpPort(), await freeTcpPort()] as const;
  const haproxy = await startHaproxy(folder, children, 'proxy', ports, proxyConfig(ports, [backendPort, sourcePort]));
  const relay = await startRole(children, 'relay', backendPort, sourcePort);
  const [httpPort = 0, bulkPort = 0] = relay.first;
  const ours: Proxy = { name: 'legate', pid: relay.child.pid ?? 0, httpPort, bulkPort };
  const peer: Proxy = { name: 'haproxy', pid: haproxy.pid ?? 0, httpPort: ports[0], bulkPort: ports[1] };
  await verifyContent(sink.child, [ours, peer], say);
  return measure(ours, peer, sink.child, say);
}

async function measure(ours: Proxy, peer: Proxy, sink: ChildProcess, say: (line: string) => void): Promise<Figure[]> {
  const plans: [string, (proxy: Proxy) => Promise<Load>][] = [
    ['64 connections', (proxy) => ask(proxy, 64)],
    ['512 connections', (proxy) => ask(proxy, 512)],
    ['new connections', (proxy) => ask(proxy, 64, 'Connection: close')],
    ['bulk', (proxy) => bulk(proxy, sink)],
  ];
  // Compilers and caches of both warm up before anything counts.
  for (const proxy of [ours, peer]) {
    await ask(proxy, 64);
    await ask(proxy, 64, 'Connection: close');
  }
  const results = new Map<string, { ours: Load[]; peer: Load[] }>();
  for (let round = 1; round <= rounds; round += 1) {
    for (const [what, load] of plans) {
      const result = results.get(what) ?? { ours: [], peer: [] };
      results.set(what, result);
      const mine = await load(ours);
      const other = await load(peer);
      result.ours.push(mine);
      result.peer.push(other);
      say(`round ${round}, ${what}: ${describeLoad(ours.name, mine)}; ${describeLoad(peer.name, other)}`);
    }
  }
  const figure = (
    plan: string,
    what: string,
    unit: string,
    of: (load: Load) => number,
    better: Figure['better'],
    aim: number,
  ): Figure => {
    const result = results.get(plan) ?? { ours: [], peer: [] };
    const value = median(result.peer.map(of));
    return { what, unit, ours: median(result.ours.map(of)), peer: { name: 'haproxy tcp', value }, better, aim };
  };
  const perSecond = (load: Load): number => load.perSecond;
  const perCpu = (load: Load): number => load.perCpuSecond;
  return [
    figure('64 connections', 'requests per second, 64 connections', '1/s', perSecond, 'higher', 0.7),
    figure('64 connections', 'requests per CPU second, 64 connections', '1/s', perCpu, 'higher', 0.7),
    figure('512 connections', 'requests per CPU second, 512 connections', '1/s', perCpu, 'higher', 0.7),
    figure('512 connections', '99th percentile of latency, 512 connections', 'ms', (load) => load.p99Ms, 'lower', 2),
    figure('new connections', 'new connections per second', '1/s', perSecond, 'higher', 0.55),
    figure('bulk', 'bulk bytes per second', 'B/s', perSecond, 'higher', 1),
    figure('bulk', 'bulk bytes per CPU second', 'B/s', perCpu, 'higher', 1),
  ];
}

function ask({ httpPort, pid }: Proxy, connections: number, header?: string): Promise<Load> {
  const url = `http://127.0.0.1:${httpPort}/`;
  return wrk({ url, pid, connections, seconds: loadSeconds, ...(header !== undefined && { header }) });
}

async function bulk(proxy: Proxy, sink: ChildProcess): Promise<Load> {
  const beforeMs = processorMsOf(proxy.pid);
  const { bytes, seconds, wrong } = await transfer(sink, proxy.bulkPort, bulkBytes, false);
  const cpu = (processorMsOf(proxy.pid) - beforeMs) / 1000;
  if (bytes !== bulkBytes || wrong > 0)
    throw new Error(`${proxy.name} delivered ${bytes} bytes, ${wrong} of them wrong`);
  return { perSecond: bytes / seconds, perCpuSecond: bytes / cpu, p99Ms: Number.NaN };
}

async function verifyContent(
  sink: ChildProcess,
  proxies: readonly Proxy[],
  say: (line: string) => void,
): Promise<void> {
  const hash = createHash('sha256');
  const content = block();
  for (let sent = 0; sent < hashedBytes; sent += blockBytes) hash.update(content);
  const expected = hash.digest('hex');
  for (const proxy of proxies) {
    const { bytes, sha256 } = await transfer(sink, proxy.bulkPort, hashedBytes, true);
    if (bytes !== hashedBytes || sha256 !== expected)
      throw new Error(`${proxy.name} changed the content of ${bytes} bytes`);
  }
  say(`content of ${hashedBytes} bytes arrived unchanged through both (SHA-256)`);
}

function transfer(sink: ChildProcess, port: number, bytes: number, hashed: boolean): Promise<Transfer> {
  return new Promise((resolve) => {
    sink.once('message', (message) => resolve(message as Transfer));
    sink.send({ port, bytes, hashed });
  });
}

async function startRole(
  children: ChildProcess[],
  role: string,
  ...numbers: number[]
): Promise<{ child: ChildProcess; first: readonly number[] }> {
  const script = fileURLToPath(new URL('./tcp-roles.js', import.meta.url));
  const child = fork(script, [role, ...numbers.map(String)], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  children.push(child);
  const [first] = await once(child, 'message', { signal: AbortSignal.timeout(10_000) });
  return { child, first: first as readonly number[] };
}

async function startHaproxy(
  folder: string,
  children: ChildProcess[],
  name: string,
  ports: readonly number[],
  config: string,
): Promise<ChildProcess> {
  const file = `${folder}/${name}.cfg`;
  await writeFile(file, config);
  const child = spawn('haproxy', ['-q', '-db', '-f', file], { stdio: 'ignore' });
  children.push(child);
  for (const port of ports) await waitFor(`${name} on port ${port}`, () => accepts(port));
  return child;
}

const common = `global
  nbthread 1
  maxconn 4000
defaults
  timeout connect 5s
  timeout client 60s
  timeout server 60s
`;

function backendConfig(port: number): string {
  return `${common}frontend backend
  mode http
  bind 127.0.0.1:${port} backlog 4096
  http-request return status 200 content-type text/plain string "thirty-three bytes of the backend"
`;
}

function proxyConfig(ports: readonly number[], targets: readonly number[]): string {
  const listen = (name: string, index: number): string => `listen ${name}
  mode tcp
  bind 127.0.0.1:${ports[index]} backlog 4096
  server only 127.0.0.1:${targets[index]}
`;
  return `${common}${listen('http', 0)}${listen('bulk', 1)}`;
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    const done = (result: boolean) => () => {
      socket.destroy();
      resolve(result);
    };
    socket.on('connect', done(true));
    socket.on('error', done(false));
  });
}
