import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { type Bed, dial, instanceOf, outcome, serviceOf, startBed } from '../proxy/link-plane.fixture.ts';
import { unless } from './support/needs.ts';
import { smugglingCases } from './support/smuggling-cases.ts';
import { waitFor } from './support/wait.ts';

interface Origin {
  readonly port: number;
  /** The requests that came, by their targets. */
  readonly targets: string[];
}

async function startOrigin(t: Test): Promise<Origin> {
  const targets: string[] = [];
  const server = createServer((request, response) => {
    targets.push(request.url ?? '');
    request.resume();
    request.on('end', () => response.end('ok'));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, targets };
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** A real server between the relay and the origin: what it takes for a request arrives there. */
async function startServer(t: Test, program: 'haproxy' | 'nginx', origin: number): Promise<number> {
  const folder = await mkdtemp(`${tmpdir()}/legate-smuggling-`);
  const port = await freePort();
  const file = `${folder}/${program}.conf`;
  await writeFile(file, program === 'haproxy' ? haproxyConfig(port, origin) : nginxConfig(folder, port, origin));
  const args = program === 'haproxy' ? ['-db', '-f', file] : ['-p', folder, '-c', file, '-g', 'daemon off;'];
  const child = spawn(program, args, { stdio: 'ignore' });
  t.teardown(async () => {
    child.kill('SIGTERM');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    await rm(folder, { recursive: true, force: true });
  });
  await waitFor(`${program} to listen`, async () => {
    const socket = dial(t, port);
    const [how] = await Promise.race([
      once(socket, 'connect').then(() => ['yes']),
      once(socket, 'error').then(() => ['no']),
    ]);
    socket.destroy();
    return how === 'yes';
  });
  return port;
}

function haproxyConfig(port: number, origin: number): string {
  const times = 'timeout connect 5s\n  timeout client 30s\n  timeout server 30s';
  return `defaults\n  mode http\n  ${times}\nfrontend f\n  bind 127.0.0.1:${port}\n  default_backend b\nbackend b\n  server o 127.0.0.1:${origin}\n`;
}

function nginxConfig(folder: string, port: number, origin: number): string {
  const paths = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((name) => `${name}_temp_path ${folder}/${name};`)
    .join(' ');
  return `pid ${folder}/pid; error_log /dev/null; events {} http { access_log off; ${paths} server { listen 127.0.0.1:${port}; location / { proxy_pass http://127.0.0.1:${origin}; } } }`;
}

/** Sends the bytes, waits until nothing more comes for a moment or the connection is closed, and gives what came. */
async function send(t: Test, bed: Bed, bytes: string): Promise<string> {
  const socket = dial(t, bed.port);
  const all = outcome(socket);
  socket.write(Buffer.from(bytes, 'utf8'));
  socket.end();
  const { data } = await all;
  socket.destroy();
  return data.toString('latin1');
}

async function run(t: Test, origin: Origin, port: number): Promise<void> {
  const instances = [instanceOf({ name: 'a', port, protocol: 'http' })];
  const bed = await startBed(t, { services: [serviceOf(instances, { protocol: 'http' })] });
  let wrong = 0;
  for (const { name, bytes, status, requests = 0 } of smugglingCases) {
    origin.targets.length = 0;
    const answer = await send(t, bed, bytes);
    // Whatever was let through behind it has arrived once this has.
    await send(t, bed, 'GET /marker HTTP/1.1\r\nHost: db\r\nConnection: close\r\n\r\n');
    const arrived = origin.targets.filter((target) => target !== '/marker');
    const isRight =
      answer.startsWith(`HTTP/1.1 ${status} `) && arrived.length === requests && !arrived.includes('/smuggled');
    if (isRight) continue;
    wrong += 1;
    t.fail(
      `${name}: ${JSON.stringify(answer.slice(0, 40))} for ${status}; arrived: ${JSON.stringify(arrived)} for ${requests}`,
    );
  }
  t.equal(wrong, 0, `${smugglingCases.length} cases`);
}

t.test('the corpus is large, and each case is its own', (t) => {
  t.ok(smugglingCases.length >= 150, `${smugglingCases.length} cases`);
  t.equal(new Set(smugglingCases.map(({ bytes }) => bytes)).size, smugglingCases.length);
  t.end();
});

t.test("nothing is smuggled to the runtime's own server", async (t) => {
  const origin = await startOrigin(t);
  await run(t, origin, origin.port);
});

for (const program of ['haproxy', 'nginx'] as const) {
  t.test(`nothing is smuggled to ${program}`, { skip: unless(`command:${program}`) }, async (t) => {
    const origin = await startOrigin(t);
    await run(t, origin, await startServer(t, program, origin.port));
  });
}
