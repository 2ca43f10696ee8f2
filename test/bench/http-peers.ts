import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { waitFor } from '../support/wait.ts';
import { proxyEnvoy } from './http-envoy.ts';
import { freeTcpPort, loopback, memoryOf } from './tools.ts';

export const proxyNames = ['legate', 'haproxy', 'nginx', 'http-proxy', 'envoy'] as const;
export type ProxyName = (typeof proxyNames)[number];

/** A running proxy before the origin; each has one process with one thread that does the work. */
export interface RunningProxy {
  readonly name: ProxyName;
  readonly pid: number;
  readonly http: number;
  /** Undefined where it speaks no HTTP/2. */
  readonly http2: number | undefined;
  /** Waits until its memory is what it needs: garbage is collected where there is somebody who does. */
  settle(): Promise<void>;
  end(): Promise<void>;
}

export interface Origin {
  readonly http: number;
  readonly http2: number;
}

/** Megabytes between two looks at a process that has come to rest, and how often it is looked at most. */
const restMegabytes = 0.1;
const mostLooks = 20;
const lookMs = 150;

/** The processes of the benchmark. Each ends with this one. */
export class HttpPeers {
  readonly #folder: string;
  readonly #envoy: string | undefined;
  readonly #children = new Set<ChildProcess>();

  constructor(folder: string, envoy: string | undefined) {
    this.#folder = folder;
    this.#envoy = envoy;
  }

  /** HAProxy, which answers itself: 33 bytes, or the file `large` of the folder. */
  async startOrigin(): Promise<Origin> {
    const origin = { http: await freeTcpPort(), http2: await freeTcpPort() };
    await this.#haproxy('origin', originConfig(this.#folder, origin), origin.http);
    return origin;
  }

  /** With `collects`, those of Node collect garbage when they are to settle. */
  async start(name: ProxyName, origin: Origin, { collects = false } = {}): Promise<RunningProxy> {
    if (name === 'legate' || name === 'http-proxy') return this.#node(name, origin, collects);
    const [http, http2] = [await freeTcpPort(), await freeTcpPort()];
    const ports = { http, http2 };
    const child =
      name === 'haproxy'
        ? await this.#haproxy(name, haproxyConfig(ports, origin), http)
        : name === 'nginx'
          ? await this.#nginx(ports, origin)
          : await this.#startEnvoy(ports, origin);
    return { name, pid: child.pid ?? 0, ...ports, settle: () => rest(child), end: () => this.#end(child) };
  }

  async end(): Promise<void> {
    await Promise.all([...this.#children].map((child) => this.#end(child)));
  }

  async #node(name: 'legate' | 'http-proxy', { http, http2 }: Origin, collects: boolean): Promise<RunningProxy> {
    const [script, ...args] =
      name === 'legate' ? ['./tcp-roles.js', 'http-relay', http, http2] : ['./http-proxy-role.js', http];
    const child = fork(fileURLToPath(new URL(String(script), import.meta.url)), args.map(String), {
      execArgv: collects ? ['--expose-gc'] : [],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.#keep(child);
    const [ports] = (await once(child, 'message', { signal: AbortSignal.timeout(10_000) })) as [number[]];
    return {
      name,
      pid: child.pid ?? 0,
      http: ports[0] ?? 0,
      http2: ports[1],
      async settle() {
        await collect(child);
        await rest(child);
        await collect(child);
      },
      end: () => this.#end(child),
    };
  }

  async #haproxy(name: string, config: string, port: number): Promise<ChildProcess> {
    const file = `${this.#folder}/${name}-${port}.cfg`;
    await writeFile(file, config);
    return this.#spawn(port, 'haproxy', ['-q', '-db', '-f', file]);
  }

  async #nginx(ports: Origin, origin: Origin): Promise<ChildProcess> {
    const file = `${this.#folder}/nginx-${ports.http}.conf`;
    await writeFile(file, nginxConfig(this.#folder, ports, origin));
    return this.#spawn(ports.http, 'nginx', ['-p', this.#folder, '-c', file]);
  }

  async #startEnvoy(ports: Origin, origin: Origin): Promise<ChildProcess> {
    if (this.#envoy === undefined) throw new Error('there is no Envoy');
    const file = `${this.#folder}/envoy-${ports.http}.json`;
    const at = (port: number): { address: string; port: number } => ({ address: loopback, port });
    const config = proxyEnvoy(
      { listen: at(ports.http), origin: at(origin.http) },
      { listen: at(ports.http2), origin: at(origin.http2) },
    );
    await writeFile(file, JSON.stringify(config));
    return this.#spawn(ports.http, this.#envoy, [
      '-c',
      file,
      '--concurrency',
      '1',
      '--disable-hot-restart',
      '-l',
      'off',
    ]);
  }

  async #spawn(port: number, command: string, args: readonly string[]): Promise<ChildProcess> {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', command, ...args], { stdio: 'ignore' });
    this.#keep(child);
    await waitFor(`${command} on port ${port}`, () => accepts(port), { timeoutMs: 30_000 });
    return child;
  }

  #keep(child: ChildProcess): void {
    child.on('error', () => undefined);
    this.#children.add(child);
  }

  async #end(child: ChildProcess): Promise<void> {
    this.#children.delete(child);
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }
}

async function collect(child: ChildProcess): Promise<void> {
  const done = once(child, 'message', { signal: AbortSignal.timeout(20_000) });
  child.send('collect');
  await done;
}

/** Until its memory does not change any more. */
async function rest({ pid = 0 }: ChildProcess): Promise<void> {
  let before = Number.NaN;
  for (let look = 0; look < mostLooks; look += 1) {
    await new Promise((resolve) => setTimeout(resolve, lookMs));
    const { anonymous } = memoryOf(pid);
    if (Math.abs(anonymous - before) < restMegabytes) return;
    before = anonymous;
  }
}

const common = `global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
`;

function originConfig(folder: string, { http, http2 }: Origin): string {
  return `${common.replace('nbthread 1', 'nbthread 1\n  tune.bufsize 98304')}frontend origin
  bind ${loopback}:${http} backlog 4096
  bind ${loopback}:${http2} backlog 4096 proto h2
  http-request return status 200 content-type application/octet-stream file ${folder}/large if { path /large }
  http-request return status 200 content-type text/plain string "thirty-three bytes of the backend"
`;
}

/** With its own buffers, and what we do as well: who the client is, and connections to the origin that are kept. */
function haproxyConfig(ports: Origin, origin: Origin): string {
  const listen = (version: keyof Origin, words: string): string => `listen ${version}
  bind ${loopback}:${ports[version]} backlog 4096${words}
  option forwardfor
  http-reuse always
  server origin ${loopback}:${origin[version]}${words}
`;
  return `${common}${listen('http', '')}${listen('http2', ' proto h2')}`;
}

/** One process that is master and worker, so that its processor time is all of it. It speaks HTTP/1.1 to origins of HTTP/2 too. */
function nginxConfig(folder: string, ports: Origin, origin: Origin): string {
  const places = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (each) => `${each}_temp_path ${folder}/${each};`,
  );
  return `daemon off; master_process off; pid ${folder}/nginx-${ports.http}.pid; error_log /dev/null;
worker_rlimit_nofile 20000;
events { worker_connections 10000; }
http {
  access_log off; keepalive_requests 1000000; ${places.join(' ')}
  upstream origin { server ${loopback}:${origin.http}; keepalive 512; keepalive_requests 1000000; }
  server {
    listen ${loopback}:${ports.http} backlog=4096;
    listen ${loopback}:${ports.http2} http2 backlog=4096;
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
