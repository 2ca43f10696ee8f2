import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import type { Bench, BenchOptions, Figure } from './bench.ts';
import { freeTcpPort, loopback, median, memoryOf } from './tools.ts';
import { describeLoad, type Load, wrk } from './wrk.ts';

/** Interleaved rounds; figures are medians. */
const defaultRounds = 3;
const idleClients = 1000;
const largeBytes = 65_536;

interface Proxy {
  readonly name: string;
  readonly pid: number;
  readonly port: number;
}

interface Plan {
  readonly what: string;
  readonly path: '/' | '/large';
  readonly connections: number;
  readonly header?: string;
}

const plans: readonly Plan[] = [
  { what: '64 clients', path: '/', connections: 64 },
  { what: '512 clients', path: '/', connections: 512 },
  { what: '64 KiB', path: '/large', connections: 64 },
  { what: 'new connections', path: '/', connections: 64, header: 'Connection: close' },
];

export const httpBench: Bench = {
  name: 'http',
  skip: () => unless('command:haproxy', 'command:nginx', 'command:wrk'),
  async run(say, options) {
    const folder = await mkdtemp(`${tmpdir()}/legate-bench-http-`);
    const children: ChildProcess[] = [];
    try {
      return await compare(folder, children, say, options);
    } finally {
      for (const child of children) child.kill('SIGKILL');
      await rm(folder, { recursive: true, force: true });
    }
  },
};

async function compare(
  folder: string,
  children: ChildProcess[],
  say: (line: string) => void,
  { rounds = defaultRounds, quick }: BenchOptions,
): Promise<Figure[]> {
  const origin = await freeTcpPort();
  await writeFile(`${folder}/large`, Buffer.alloc(largeBytes, 'legate'));
  await startHaproxy(folder, children, 'origin', origin, originConfig(folder, origin));
  const haproxyPort = await freeTcpPort();
  const haproxy = await startHaproxy(folder, children, 'haproxy', haproxyPort, haproxyConfig(haproxyPort, origin));
  const nginx = await startNginx(folder, children, origin);
  const ours = await startRelay(children, origin);
  const proxies: readonly Proxy[] = [ours, { name: 'haproxy http', pid: haproxy, port: haproxyPort }, nginx];
  const seconds = quick ? 1 : 3;
  const load = (proxy: Proxy, { path, connections, header }: Plan, of = seconds): Promise<Load> => {
    const url = `http://${loopback}:${proxy.port}${path}`;
    return wrk({ url, pid: proxy.pid, connections, seconds: of, ...(header !== undefined && { header }) });
  };
  // Compilers and caches warm up before anything counts.
  for (const proxy of proxies) for (const plan of plans) await load(proxy, plan, 1);
  const results = new Map<string, Load[]>();
  for (let round = 1; round <= rounds; round += 1) {
    for (const plan of plans) {
      const told: string[] = [];
      for (const proxy of proxies) {
        const one = await load(proxy, plan);
        const key = `${plan.what} ${proxy.name}`;
        results.set(key, [...(results.get(key) ?? []), one]);
        told.push(describeLoad(proxy.name, one));
      }
      say(`round ${round}, ${plan.what}: ${told.join('; ')}`);
    }
  }
  const memory = new Map<string, number>();
  for (const proxy of proxies) {
    const kilobytes = await idleKilobytes(proxy);
    memory.set(proxy.name, kilobytes);
    say(`${proxy.name}: ${kilobytes.toFixed(1)} KB an idle client`);
  }
  const of = (plan: string, proxy: Proxy, value: (load: Load) => number): number =>
    median((results.get(`${plan} ${proxy.name}`) ?? []).map(value));
  const figure = (
    plan: string,
    what: string,
    unit: string,
    value: (load: Load) => number,
    better: Figure['better'],
    aims: readonly (number | undefined)[],
  ): Figure[] =>
    proxies.slice(1).map((peer, index) => {
      const aim = aims[index];
      const against = { name: peer.name, value: of(plan, peer, value) };
      return { what, unit, ours: of(plan, ours, value), peer: against, better, ...(aim !== undefined && { aim }) };
    });
  const perCpu = (one: Load): number => one.perCpuSecond;
  const perSecond = (one: Load): number => one.perSecond;
  return [
    ...figure('64 clients', 'requests per CPU second, 64 clients', '1/s', perCpu, 'higher', [0.7]),
    ...figure('64 clients', 'requests per second, 64 clients', '1/s', perSecond, 'higher', []),
    ...figure('512 clients', 'requests per CPU second, 512 clients', '1/s', perCpu, 'higher', [0.7]),
    ...figure('512 clients', '99th percentile, 512 clients', 'ms', (one) => one.p99Ms, 'lower', [2]),
    ...figure('64 KiB', 'answers of 64 KiB per CPU second', '1/s', perCpu, 'higher', [0.7]),
    ...figure('new connections', 'new connections per second', '1/s', perSecond, 'higher', []),
    {
      what: 'memory of an idle client',
      unit: 'KB',
      ours: memory.get(ours.name) ?? Number.NaN,
      better: 'lower',
      aim: 15,
    },
  ];
}

/** Resident memory that each of many clients takes which have asked once and now wait. */
async function idleKilobytes({ pid, port }: Proxy): Promise<number> {
  const before = memoryOf(pid).megabytes;
  const sockets = Array.from({ length: idleClients }, () => connect(port, loopback));
  try {
    await Promise.all(
      sockets.map(async (socket) => {
        socket.write('GET / HTTP/1.1\r\nHost: bench\r\n\r\n');
        await once(socket, 'data', { signal: AbortSignal.timeout(20_000) });
      }),
    );
    return ((memoryOf(pid).megabytes - before) * 1000) / idleClients;
  } finally {
    for (const socket of sockets) socket.destroy();
  }
}

async function startRelay(children: ChildProcess[], origin: number): Promise<Proxy> {
  const script = fileURLToPath(new URL('./tcp-roles.js', import.meta.url));
  const child = fork(script, ['http-relay', String(origin)], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  children.push(child);
  const [[port = 0] = []] = (await once(child, 'message', { signal: AbortSignal.timeout(10_000) })) as [number[]];
  return { name: 'legate', pid: child.pid ?? 0, port };
}

async function startHaproxy(
  folder: string,
  children: ChildProcess[],
  name: string,
  port: number,
  config: string,
): Promise<number> {
  const file = `${folder}/${name}.cfg`;
  await writeFile(file, config);
  const child = spawn('haproxy', ['-q', '-db', '-f', file], { stdio: 'ignore' });
  children.push(child);
  await waitFor(`${name} on port ${port}`, () => accepts(port));
  return child.pid ?? 0;
}

async function startNginx(folder: string, children: ChildProcess[], origin: number): Promise<Proxy> {
  const port = await freeTcpPort();
  const file = `${folder}/nginx.conf`;
  await writeFile(file, nginxConfig(folder, port, origin));
  const child = spawn('nginx', ['-p', folder, '-c', file], { stdio: 'ignore' });
  children.push(child);
  await waitFor(`nginx on port ${port}`, () => accepts(port));
  return { name: 'nginx', pid: child.pid ?? 0, port };
}

const common = `global
  nbthread 1
  maxconn 4000
  tune.bufsize 98304
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
`;

function originConfig(folder: string, port: number): string {
  return `${common}frontend origin
  bind ${loopback}:${port} backlog 4096
  http-request return status 200 content-type application/octet-stream file ${folder}/large if { path /large }
  http-request return status 200 content-type text/plain string "thirty-three bytes of the backend"
`;
}

/** With its own buffers, and what we do as well: who the client is, and connections to the origin that are kept. */
function haproxyConfig(port: number, origin: number): string {
  return `${common.replace(/ {2}tune.*\n/, '')}listen proxy
  bind ${loopback}:${port} backlog 4096
  option forwardfor
  http-reuse always
  server origin ${loopback}:${origin}
`;
}

/** One process that is master and worker, so that its processor time is all of it. */
function nginxConfig(folder: string, port: number, origin: number): string {
  const places = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (each) => `${each}_temp_path ${folder}/${each};`,
  );
  return `daemon off; master_process off; pid ${folder}/nginx.pid; error_log /dev/null;
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 1000000; ${places.join(' ')}
  upstream origin { server ${loopback}:${origin}; keepalive 128; keepalive_requests 1000000; }
  server {
    listen ${loopback}:${port} backlog=4096;
    location / {
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
}
`;
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, loopback);
    const done = (result: boolean) => () => {
      socket.destroy();
      resolve(result);
    };
    socket.on('connect', done(true));
    socket.on('error', done(false));
  });
}
