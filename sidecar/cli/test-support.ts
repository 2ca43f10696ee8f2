import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import { shownInstance } from '../../test/support/records.ts';
import type {
  DeclaredLinkDocument,
  HostDocument,
  InstanceDocument,
  LinkDocument,
  ServicesDocument,
  StatusDocument,
} from '../admin/documents.ts';
import type { Session } from './session.ts';
import { type OutputStream, Terminal } from './terminal.ts';

/** What one test's fake sidecar answers with. */
export type Answer =
  | { readonly status?: number; readonly json: unknown }
  | { readonly status?: number; readonly body: Uint8Array | string; readonly headers?: Record<string, string> };

export interface SeenRequest {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

export interface FakeAdmin {
  readonly address: string;
  readonly seen: SeenRequest[];
  /** Sends `event: change` to everybody who follows /api/events. */
  change(): void;
  close(): Promise<void>;
}

/** An admin API with canned answers, on a unix socket in a folder of its own, or on a port of loopback. */
export async function fakeAdmin(
  t: Test,
  answer: (request: SeenRequest) => Answer | Promise<Answer>,
  options: { readonly tcp?: boolean; readonly socketPath?: string } = {},
): Promise<FakeAdmin> {
  const seen: SeenRequest[] = [];
  const streams = new Set<ServerResponse>();
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    if (request.url === '/api/events') {
      streams.add(response);
      response.on('close', () => streams.delete(response));
      response.writeHead(200, { 'content-type': 'text/event-stream' }).write('event: change\ndata: 0\n\n');
      return;
    }
    const entry = {
      method: request.method ?? '',
      url: request.url ?? '',
      headers: request.headers,
      body: Buffer.concat(chunks),
    };
    seen.push(entry);
    const made = await answer(entry);
    if ('json' in made) {
      response.writeHead(made.status ?? 200, { 'content-type': 'application/json' }).end(JSON.stringify(made.json));
    } else response.writeHead(made.status ?? 200, made.headers ?? {}).end(made.body);
  });
  const socketPath = options.socketPath ?? join(temporaryFolder(t), 'admin.sock');
  await new Promise<void>((resolve) => {
    if (options.tcp) server.listen(0, '127.0.0.1', resolve);
    else server.listen(socketPath, resolve);
  });
  const close = (): Promise<void> => closeServer(server);
  t.teardown(close);
  const bound = server.address();
  const address = typeof bound === 'object' && bound !== null ? `127.0.0.1:${bound.port}` : `unix:${socketPath}`;
  const change = (): void => {
    for (const stream of streams) stream.write('event: change\ndata: 1\n\n');
  };
  return { address, seen, change, close };
}

function closeServer(server: Server): Promise<void> {
  server.closeAllConnections();
  return new Promise((resolve) => server.close(() => resolve()));
}

export function temporaryFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'legate-test-cli-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Collects what is written. */
export class FakeStream implements OutputStream {
  text = '';
  readonly isTTY: boolean;
  readonly columns: number | undefined;
  readonly rows: number | undefined;

  constructor(options: { readonly tty?: boolean; readonly columns?: number; readonly rows?: number } = {}) {
    this.isTTY = options.tty ?? false;
    this.columns = options.columns;
    this.rows = options.rows;
  }

  write(chunk: string | Uint8Array): void {
    this.text += typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString('latin1');
  }
}

export interface FakeSession {
  readonly session: Session;
  readonly stdout: FakeStream;
  readonly stderr: FakeStream;
  interrupt(): void;
}

export function fakeSession(
  options: {
    readonly env?: Record<string, string>;
    readonly tty?: boolean;
    readonly columns?: number;
    readonly rows?: number;
    readonly stdin?: string;
    readonly nowMs?: number;
  } = {},
): FakeSession {
  const stdout = new FakeStream(options as { tty?: boolean });
  const stderr = new FakeStream(options as { tty?: boolean });
  const env = { TERM: 'xterm', ...options.env };
  const controller = new AbortController();
  const terminal = new Terminal({ stdout, stderr, env, nowMs: () => options.nowMs ?? canned.nowMs });
  const stdin = (async function* () {
    yield Buffer.from(options.stdin ?? '');
  })();
  return {
    session: { terminal, env, stdin, interruption: () => controller.signal },
    stdout,
    stderr,
    interrupt: () => controller.abort(),
  };
}

export interface Finished {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts the real command line; `finished` resolves at its end. Ended with the test if it has not by itself. */
export function spawnLegate(
  t: Test,
  args: readonly string[],
  options: { readonly env?: Record<string, string>; readonly stdin?: Uint8Array | string } = {},
): { readonly child: ChildProcess; readonly finished: Promise<Finished> } {
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  const child = spawn(process.execPath, [main, ...args], { env: { PATH: process.env.PATH ?? '', ...options.env } });
  t.teardown(() => child.kill('SIGKILL'));
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => {
    stdout += chunk.toString('latin1');
  });
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString('utf8');
  });
  child.stdin.end(options.stdin ?? '');
  const finished = new Promise<Finished>((resolve) => {
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
  return { child, finished };
}

const nowMs = Date.parse('2030-01-02T03:04:05Z');

function instance(more: Partial<InstanceDocument> & { name: string; service: string }): InstanceDocument {
  return shownInstance({ hostId: '0011223344556677', address: '172.17.0.4', source: 'docker:db-1', ...more });
}

const instances: readonly InstanceDocument[] = [
  instance({ name: '77ab00112233-5432', service: 'db', tags: ['primary'] }),
  instance({
    name: '9c1f00112233-5432',
    service: 'db',
    address: '172.17.0.5',
    status: 'critical',
    output: 'connect ECONNREFUSED 172.17.0.5:5432, and then a long tail of words that nobody can read on one line',
    source: 'docker:a-container-with-quite-a-long-name-that-somebody-generated',
    since: new Date(nowMs - 4 * 60_000).toISOString(),
  }),
  instance({ name: 'db-5432', service: 'db', address: '127.0.0.1', draining: true, source: 'file', weight: 5 }),
];

const services: ServicesDocument = {
  services: [
    {
      name: 'cache',
      port: 6379,
      protocol: 'tcp',
      balance: 'round-robin',
      vip: '240.77.3.9',
      instances: [instance({ name: 'cache-6379', service: 'cache' })],
      usable: 1,
      brake: null,
      faults: [],
    },
    {
      name: 'db',
      port: 5432,
      protocol: 'tcp',
      balance: 'least-connections',
      vip: '240.77.118.4',
      instances,
      usable: 1,
      brake: null,
      faults: ['web-1/abc-53-udp speaks udp, the service tcp'],
    },
    {
      name: 'mail',
      port: 25,
      protocol: 'tcp',
      balance: 'round-robin',
      vip: null,
      instances: [instance({ name: 'mail-25', service: 'mail', status: 'lost' })],
      usable: 0,
      brake: null,
      faults: [],
    },
    {
      name: 'web',
      port: 80,
      protocol: 'tcp',
      balance: 'random',
      vip: null,
      instances: [],
      usable: 0,
      brake: null,
      faults: [],
    },
  ],
  refused: [
    {
      source: 'docker:shop-7f3',
      service: 'shop',
      reason: 'legate.port "54 32" is not a port (1 to 65535)',
      hint: 'correct the label and run the container anew',
    },
  ],
};

const hosts: readonly HostDocument[] = [
  {
    id: '0011223344556677',
    name: 'web-1',
    address: '10.77.0.1',
    version: '0.1.0',
    alive: true,
    self: true,
    instances: 14,
  },
  {
    id: '8899aabbccddeeff',
    name: 'web-2',
    address: '10.77.0.2',
    version: '0.1.0',
    alive: false,
    self: false,
    instances: 2,
  },
];

const links: readonly LinkDocument[] = [
  {
    service: 'cache',
    kind: 'vip',
    address: '240.77.3.9:6379',
    tls: null,
    state: 'open',
    problem: null,
    balance: 'round-robin',
    instances: 1,
    connections: { active: 12, total: 1234567, failed: 0, retried: 3, held: 0 },
    consumers: [{ name: 'web', active: 12, total: 1234567 }],
    bytes: { received: 123_456_789, sent: 4321 },
    rates: { received: 0, sent: 0, connections: 0 },
    backends: [
      {
        id: 'web-1/cache-6379',
        address: '172.17.0.9:6379',
        host: 'web-1',
        via: 'direct',
        near: 'host',
        status: 'passing',
        tunnel: null,
        active: 12,
        total: 1234567,
        ejectedUntil: null,
        ejectedFor: null,
        ejections: 0,
        suspect: false,
      },
    ],
    lastError: null,
    denied: { total: 0, last: null },
  },
  {
    service: 'db',
    kind: 'listen',
    address: '127.0.0.1:15432',
    tls: null,
    state: 'down',
    problem: '127.0.0.1:15432 is held by postgres (pid 812)',
    balance: 'least-connections',
    instances: 3,
    connections: { active: 0, total: 0, failed: 0, retried: 0, held: 0 },
    consumers: [],
    bytes: { received: 0, sent: 0 },
    rates: { received: 0, sent: 0, connections: 0 },
    backends: [],
    lastError: null,
    denied: { total: 0, last: null },
  },
  {
    service: 'db',
    kind: 'vip',
    address: '240.77.118.4:5432',
    tls: null,
    state: 'open',
    problem: null,
    balance: 'least-connections',
    instances: 3,
    connections: { active: 64, total: 400, failed: 2, retried: 7, held: 0 },
    consumers: [],
    bytes: { received: 1500, sent: 96_000_000 },
    rates: { received: 200, sent: 1_600_000, connections: 3.5 },
    backends: [
      {
        id: 'web-1/77ab00112233-5432',
        address: '172.17.0.4:5432',
        host: 'web-1',
        via: 'direct',
        near: 'host',
        status: 'passing',
        tunnel: null,
        active: 64,
        total: 201,
        ejectedUntil: null,
        ejectedFor: null,
        ejections: 0,
        suspect: false,
      },
      {
        id: 'db-2/5432',
        address: 'db-2 via tunnel',
        host: 'db-2',
        via: 'tunnel',
        near: 'other',
        status: 'passing',
        tunnel: { state: 'connecting', problem: 'connection refused at 10.77.0.2:7711' },
        active: 0,
        total: 0,
        ejectedUntil: null,
        ejectedFor: null,
        ejections: 0,
        suspect: false,
      },
      {
        id: 'web-1/9c1f00112233-5432',
        address: '172.17.0.5:5432',
        host: 'web-1',
        via: 'direct',
        near: 'host',
        status: 'passing',
        tunnel: null,
        active: 0,
        total: 199,
        ejectedUntil: new Date(nowMs + 7000).toISOString(),
        ejectedFor: 'failures',
        ejections: 1,
        suspect: false,
      },
    ],
    lastError: { at: new Date(nowMs - 3000).toISOString(), message: '172.17.0.5:5432: connection refused' },
    denied: { total: 0, last: null },
  },
  {
    service: 'mail',
    kind: 'vip',
    address: '240.77.9.9:25',
    tls: null,
    state: 'refusing',
    problem: null,
    balance: 'round-robin',
    instances: 1,
    connections: { active: 0, total: 5, failed: 5, retried: 0, held: 0 },
    consumers: [],
    bytes: { received: 0, sent: 0 },
    rates: { received: 0, sent: 0, connections: 0 },
    backends: [],
    lastError: null,
    denied: { total: 0, last: null },
  },
  {
    service: 'web',
    kind: 'vip',
    address: '240.77.9.8:80',
    tls: null,
    state: 'refusing',
    problem: null,
    balance: 'round-robin',
    instances: 0,
    connections: { active: 0, total: 0, failed: 0, retried: 0, held: 0 },
    consumers: [],
    bytes: { received: 0, sent: 0 },
    rates: { received: 0, sent: 0, connections: 0 },
    backends: [],
    lastError: null,
    denied: { total: 0, last: null },
  },
];

const status: StatusDocument = {
  host: { id: '0011223344556677', name: 'web-1', address: '10.77.0.1' },
  mesh: 'home',
  policy: null,
  identity: { role: 'none', certificateUntil: null, serial: null, roots: [], problem: null },
  version: '0.1.0',
  pid: 4711,
  startedAt: '2029-12-29T23:04:05Z',
  uptimeMs: (3 * 24 + 4) * 3_600_000,
  store: {
    kind: 'embedded',
    where: 'the embedded store',
    state: 'connected',
    since: '2029-12-29T23:04:05Z',
    revision: '81204',
    snapshot: { origin: 'store', ageMs: 210 },
    problem: null,
    wanted: null,
  },
  docker: { state: 'connected', version: '20.10.24', problem: null },
  vip: { state: 'on', range: '240.77.0.0/16', reason: null },
  callers: { state: 'on', reason: null, bound: 12 },
  here: { containers: 14, instances: 14, services: 9, links: 11 },
  names: [
    { listen: '240.77.0.53:53', purpose: 'virtual address', state: 'up', problem: null, queries: 12 },
    {
      listen: '172.18.0.1:53',
      purpose: 'bridge br-shop',
      state: 'down',
      problem: 'port 53 is held by dnsmasq (pid 812)',
      queries: 0,
    },
    { listen: '127.0.0.1:7753', purpose: 'configured', state: 'up', problem: null, queries: 3 },
  ],
  todo: [
    {
      id: 'dns.listen.172.18.0.1:53',
      severity: 'warning',
      message: 'containers on br-shop get no answers from 172.18.0.1:53: it is held by dnsmasq (pid 812)',
      hint: 'set dns.bridges to off, or stop that program',
      since: new Date(nowMs - 4 * 60_000).toISOString(),
      count: 12,
    },
  ],
};

const declared: readonly DeclaredLinkDocument[] = [
  {
    ...{ container: 'shop', consumer: 'shop', alias: 'cache', service: 'cache', problem: null, since: null },
    ...{ address: '240.77.3.9:6379', state: 'open' },
  },
  {
    ...{ container: 'shop', consumer: 'shop', alias: 'later', service: 'search', problem: null },
    ...{ address: null, state: 'waiting', since: new Date(nowMs - 72_000).toISOString() },
  },
  {
    ...{ container: 'shop', consumer: 'shop', alias: 'post', service: 'mail', problem: null, since: null },
    ...{ address: '240.77.9.9:25', state: 'refusing' },
  },
  {
    ...{ container: 'on-host', consumer: null, alias: 'kv', service: 'cache', address: null, since: null },
    ...{ state: 'down', problem: 'its address is not known' },
  },
];

/** Documents as a sidecar with some troubles has them, at one fixed moment. */
export const canned = { nowMs, instance, instances, services, hosts, links, declared, status };

/** Answers the documents above. */
export function cannedAnswer({ method, url }: SeenRequest): Answer {
  const path = url.split('?', 1)[0];
  if (method === 'GET' && path === '/api/status') return { json: status };
  if (method === 'GET' && path === '/api/hosts') return { json: { hosts } };
  if (method === 'GET' && path === '/api/services') return { json: services };
  if (method === 'GET' && path === '/api/instances') return { json: { instances } };
  if (method === 'GET' && path === '/api/links') return { json: { links, declared } };
  return {
    status: 404,
    json: { error: { code: 'E_NOT_FOUND', message: `there is no ${url}`, hint: 'legate services lists them' } },
  };
}
