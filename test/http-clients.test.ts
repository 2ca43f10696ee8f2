import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { createServer as createHttp2Server, type ServerHttp2Session } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { WebSocket, WebSocketServer } from 'ws';
import { type Bed, instanceOf, serviceOf, startBed } from '../proxy/link-plane.fixture.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** HTTP links between programs that others wrote: curl, wrk, nghttp2's tools, the `ws` package, Chromium, HAProxy and nginx. */

const run = promisify(execFile);

async function before(t: Test, ports: readonly number[], protocol: 'http' | 'http2' = 'http'): Promise<Bed> {
  const instances = ports.map((port, index) => instanceOf({ name: `i${index}`, port, protocol }));
  return startBed(t, { services: [serviceOf(instances, { protocol })] });
}

async function listening(t: Test, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

const large = Buffer.alloc(300_000, 'legate');

/** Says who it is, sends bodies back, and has a large answer in chunks. */
function naming(t: Test, name: string): Promise<number> {
  const server = createServer((request, response) => {
    if (request.url === '/large') {
      for (let at = 0; at < large.length; at += 10_000) response.write(large.subarray(at, at + 10_000));
      response.end();
    } else if (request.method === 'POST') request.pipe(response);
    else response.end(name);
  });
  return listening(t, server);
}

async function servedHttp2(t: Test): Promise<{ port: number; asked: () => number }> {
  const server = createHttp2Server();
  const sessions = new Set<ServerHttp2Session>();
  let asked = 0;
  server.on('session', (session) => sessions.add(session));
  server.on('stream', (stream) => {
    asked += 1;
    stream.on('error', () => undefined);
    stream.respond({ ':status': 200 });
    stream.pipe(stream);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, asked: () => asked };
}

t.test('curl', { skip: unless('command:curl') }, async (t) => {
  const bed = await before(t, [await naming(t, 'one'), await naming(t, 'two')]);
  const url = `http://127.0.0.1:${bed.port}`;
  const curl = async (...args: string[]): Promise<string> => (await run('curl', ['-sS', ...args])).stdout;
  const format = '-w %{http_code} %{num_connects}\\n';
  const several = await curl(format, `${url}/a`, `${url}/b`, `${url}/c`, `${url}/d`);
  t.equal(several.match(/one/g)?.length, 2, 'requests of one connection are spread');
  t.same(
    [...several.matchAll(/200 (\d)/g)].map(([, connects]) => connects),
    ['1', '0', '0', '0'],
  );
  t.equal(await curl('-d', 'hello', url), 'hello');
  t.equal(await curl('-H', 'Transfer-Encoding: chunked', '-d', 'hello', url), 'hello');
  t.equal(await curl('-H', 'Expect: 100-continue', '-d', 'hello', url), 'hello');
  t.equal(await curl('--http1.0', '-d', 'hello', url), 'hello');
  t.equal((await curl('--compressed', `${url}/large`)).length, large.length);
  t.match(await curl('-I', url), /^HTTP\/1\.1 200 OK\r\n/, 'HEAD');
  const folder = await mkdtemp(`${tmpdir()}/legate-curl-`);
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  await writeFile(`${folder}/body`, large);
  t.equal(await curl('-T', `${folder}/body`, '-X', 'POST', url), large.toString());
});

t.test('wrk', { skip: unless('command:wrk') }, async (t) => {
  const bed = await before(t, [await naming(t, 'one'), await naming(t, 'two')]);
  const args = ['-t', '1', '-c', '16', '-d', '2s', `http://127.0.0.1:${bed.port}/`];
  const { stdout } = await run('wrk', args, { timeout: 30_000 });
  t.notMatch(stdout, /Socket errors|Non-2xx/);
  t.match(stdout, /\d+ requests in/);
});

t.test(
  "nghttp2's tools and curl over HTTP/2",
  { skip: unless('command:h2load', 'command:nghttp', 'command:curl') },
  async (t) => {
    const instances = [await servedHttp2(t), await servedHttp2(t), await servedHttp2(t)];
    const bed = await before(
      t,
      instances.map(({ port }) => port),
      'http2',
    );
    const url = `http://127.0.0.1:${bed.port}/`;
    const folder = await mkdtemp(`${tmpdir()}/legate-h2-`);
    t.teardown(() => rm(folder, { recursive: true, force: true }));
    await writeFile(`${folder}/body`, large.subarray(0, 20_000));
    const loads = [
      ['-n', '900', '-c', '1', '-m', '50'],
      ['-n', '300', '-c', '10', '-m', '10', '-d', `${folder}/body`],
    ];
    for (const load of loads) {
      const { stdout } = await run('h2load', [...load, url], { timeout: 60_000 });
      t.match(stdout, new RegExp(`${load[1]} succeeded, 0 failed, 0 errored, 0 timeout`));
    }
    const shares = instances.map(({ asked }) => asked());
    t.equal(
      shares.reduce((sum, share) => sum + share, 0),
      1200,
    );
    t.ok(
      shares.every((share) => share > 300 && share < 500),
      `also those of a single connection are spread: ${shares}`,
    );
    const curl = await run('curl', ['-sS', '--http2-prior-knowledge', '-d', 'hello', '-w', ' %{http_version}', url]);
    t.equal(curl.stdout, 'hello 2');
    const nghttp = await run('nghttp', ['-v', '-d', `${folder}/body`, url], { timeout: 30_000 });
    t.notMatch(nghttp.stdout, /RST_STREAM|GOAWAY.*error_code=(?!NO_ERROR)/);
  },
);

for (const program of ['haproxy', 'nginx'] as const) {
  t.test(
    `${program} as an instance`,
    { skip: unless(`command:${program}`, 'command:curl', 'command:wrk') },
    async (t) => {
      const folder = await mkdtemp(`${tmpdir()}/legate-clients-`);
      const origin = await naming(t, 'origin');
      const reserved = createServer();
      const port = await listening(t, reserved);
      reserved.close();
      const times = 'timeout connect 5s\n  timeout client 30s\n  timeout server 30s';
      const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
      const paths = temporary.map((name) => `${name}_temp_path ${folder}/${name};`).join(' ');
      const configs = {
        haproxy: `defaults\n  mode http\n  ${times}\nlisten l\n  bind 127.0.0.1:${port}\n  server o 127.0.0.1:${origin}\n`,
        nginx: `pid ${folder}/pid; error_log /dev/null; events {} http { access_log off; ${paths} server { listen 127.0.0.1:${port}; location / { proxy_pass http://127.0.0.1:${origin}; } } }`,
      };
      await writeFile(`${folder}/conf`, configs[program]);
      const args = {
        haproxy: ['-db', '-f', `${folder}/conf`],
        nginx: ['-p', folder, '-c', `${folder}/conf`, '-g', 'daemon off;'],
      };
      await ended(t, spawn(program, args[program], { stdio: 'ignore' }), folder);
      const bed = await before(t, [port]);
      const url = `http://127.0.0.1:${bed.port}`;
      const curl = async (...more: string[]): Promise<string> => (await run('curl', ['-sS', ...more])).stdout;
      await waitFor(`${program} to answer`, async () => (await curl(url)) === 'origin');
      t.equal(await curl('-d', 'hello', url), 'hello');
      t.equal(await curl('-H', 'Transfer-Encoding: chunked', '-d', 'hello', url), 'hello');
      t.equal((await curl(`${url}/large`)).length, large.length);
      t.equal(await curl('-I', '-o', '/dev/null', '-w', '%{http_code}', url), '200');
      const { stdout } = await run('wrk', ['-t', '1', '-c', '16', '-d', '1s', url], { timeout: 30_000 });
      t.notMatch(stdout, /Socket errors|Non-2xx/);
    },
  );
}

/** Ends the program with the test, and removes its folder then. */
async function ended(t: Test, child: ChildProcess, folder: string): Promise<void> {
  t.teardown(async () => {
    child.kill('SIGTERM');
    const last = setTimeout(() => child.kill('SIGKILL'), 5000);
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    clearTimeout(last);
    await rm(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  });
}

/** A server of the `ws` package that sends everything back; `/who` says its name, `/close` closes with a code. */
async function echoing(
  t: Test,
  name: string,
): Promise<{ port: number; sockets: WebSocketServer['clients']; stop: () => void }> {
  const server = createServer((_request, response) => response.end(name));
  const sockets = new WebSocketServer({ server, handleProtocols: (protocols) => [...protocols][0] ?? false });
  sockets.on('connection', (socket, request) => {
    socket.on('error', () => undefined);
    if (request.url === '/who') socket.send(name);
    if (request.url === '/close') socket.close(4321, 'enough');
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
  const port = await listening(t, server);
  const stop = (): void => {
    for (const client of sockets.clients) client.terminate();
    server.close();
  };
  t.teardown(stop);
  return { port, sockets: sockets.clients, stop };
}

function webSocket(t: Test, bed: Bed, path = '/', protocols: string[] = []): WebSocket {
  const socket = new WebSocket(`ws://127.0.0.1:${bed.port}${path}`, protocols);
  socket.on('error', () => undefined);
  t.teardown(() => socket.terminate());
  return socket;
}

async function said(socket: WebSocket): Promise<{ data: Buffer; isBinary: boolean }> {
  const [data, isBinary] = (await once(socket, 'message')) as [Buffer, boolean];
  return { data, isBinary };
}

t.test('WebSockets of the ws package', async (t) => {
  const instances = [await echoing(t, 'one'), await echoing(t, 'two')];
  const bed = await before(
    t,
    instances.map(({ port }) => port),
  );
  const socket = webSocket(t, bed, '/', ['chat']);
  await once(socket, 'open');
  t.equal(socket.protocol, 'chat');
  socket.send('text é');
  t.same(await said(socket), { data: Buffer.from('text é'), isBinary: false });
  socket.send(Buffer.from([0, 255, 13, 10]));
  t.same(await said(socket), { data: Buffer.from([0, 255, 13, 10]), isBinary: true });
  socket.ping('are you there');
  t.equal(String((await once(socket, 'pong'))[0]), 'are you there');
  for (const [part, fin] of [
    ['frag', false],
    ['ment', false],
    ['ed', true],
  ] as const)
    socket.send(part, { fin });
  t.equal((await said(socket)).data.toString(), 'fragmented');
  const megabyte = Buffer.alloc(1_048_576, 'legate');
  socket.send(megabyte);
  t.ok((await said(socket)).data.equals(megabyte), '1 MiB');
  const server = [...instances.flatMap(({ sockets }) => [...sockets])][0];
  const clientsWord = once(server as WebSocket, 'close');
  socket.close(4000, 'bye');
  const [code, reason] = await clientsWord;
  t.same([code, String(reason)], [4000, 'bye'], "the client's code");
  const closed = webSocket(t, bed, '/close');
  const [ownCode, ownReason] = await once(closed, 'close');
  t.same([ownCode, String(ownReason)], [4321, 'enough'], "the server's code");
  const many = Array.from({ length: 20 }, () => webSocket(t, bed, '/who'));
  const names = await Promise.all(many.map(async (one) => (await said(one)).data.toString()));
  t.equal(names.filter((name) => name === 'one').length, 10, 'many are spread');
  const echoes = many.map(async (one, at) => {
    one.send(`number ${at}`);
    return (await said(one)).data.toString() === `number ${at}`;
  });
  t.notOk((await Promise.all(echoes)).includes(false), 'and each has its own');
  const ends = many.map(async (one) => (await once(one, 'close'))[0] as number);
  instances[0]?.stop();
  for (const [at, name] of names.entries()) {
    if (name === 'one') t.equal(await ends[at], 1006, 'its instance is gone, and it is told');
  }
  const left = many.filter((_, at) => names[at] === 'two');
  t.ok(
    left.every((one) => one.readyState === WebSocket.OPEN),
    'the others go on',
  );
  const again = webSocket(t, bed, '/who');
  t.equal((await said(again)).data.toString(), 'two', 'whoever comes again is served by another one');
  for (const one of [...left, again]) one.close();
  await waitFor('nothing to be left', () => bed.plane.activeConnections() === 0 && instances[1]?.sockets.size === 0);
});

const page = `<!doctype html><title>legate</title><script>
const report = { errors: [] };
const step = async (name, run) => { try { report[name] = await run(); } catch (error) { report.errors.push(name + ': ' + error); } };
(async () => {
  await step('webSocket', () => new Promise((resolve, reject) => {
    const socket = new WebSocket('ws://' + location.host + '/socket');
    const got = [];
    socket.onopen = () => { socket.send('hello'); socket.send(new Uint8Array(70000)); };
    socket.onmessage = ({ data }) => {
      got.push(typeof data === 'string' ? data : data.size);
      if (got.length === 2) socket.close(3001, 'done');
    };
    socket.onclose = ({ code, wasClean }) => resolve([...got, code, wasClean]);
    setTimeout(() => reject('no answer'), 20000);
  }));
  await step('stream', async () => {
    const reader = (await fetch('/stream')).body.getReader();
    let text = '', reads = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return [text, reads > 1];
      reads += 1;
      text += new TextDecoder().decode(value);
      // The server goes on only when the browser has what came before.
      await fetch('/seen', { method: 'POST', body: text });
    }
  });
  await step('events', () => new Promise((resolve, reject) => {
    const source = new EventSource('/events');
    source.onmessage = ({ data }) => { source.close(); resolve(data); };
    source.onerror = () => reject('lost');
  }));
  await step('many', async () => (await Promise.all([...Array(40).keys()].map(async (at) => (await fetch('/echo', { method: 'PUT', body: 'x'.repeat(at * 1000) })).text()))).every((text, at) => text.length === at * 1000));
  await fetch('/report', { method: 'POST', body: JSON.stringify(report) });
})();
</script>`;

t.test('Chromium', { skip: unless('command:chromium'), timeout: 110_000 }, async (t) => {
  let report: unknown;
  let isTold = false;
  let seen = (_text: string): void => undefined;
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = Buffer.concat(chunks).toString();
    if (request.url === '/') response.setHeader('Content-Type', 'text/html').end(page);
    else if (request.url === '/stream') {
      let text = '';
      for (const word of ['one ', 'two ', 'three']) {
        text += word;
        const whole = text;
        const isSeen = new Promise<void>((resolve) => {
          seen = (what) => what === whole && resolve();
        });
        response.write(word);
        await isSeen;
      }
      response.end();
    } else if (request.url === '/events') {
      response.setHeader('Content-Type', 'text/event-stream');
      const timer = setInterval(() => response.write('data: an event\n\n'), 50);
      response.on('close', () => {
        clearInterval(timer);
        isTold = true;
      });
    } else if (request.url === '/report') {
      report = JSON.parse(body);
      response.end();
    } else {
      if (request.url === '/seen') seen(body);
      response.end(body);
    }
  });
  const sockets = new WebSocketServer({ server });
  sockets.on('connection', (socket) => {
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
  const bed = await before(t, [await listening(t, server)]);
  const folder = await mkdtemp(`${tmpdir()}/legate-chromium-`);
  const options = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    `--user-data-dir=${folder}`,
  ];
  const url = `http://127.0.0.1:${bed.port}/`;
  const child = spawn('chromium', [...options, '--remote-debugging-port=0', url], {
    stdio: 'ignore',
    env: { ...process.env, HOME: folder },
  });
  await ended(t, child, folder);
  await waitFor('the page to report', () => report, { timeoutMs: 90_000, everyMs: 100 });
  t.strictSame(report, {
    errors: [],
    webSocket: ['hello', 70_000, 3001, true],
    stream: ['one two three', true],
    events: 'an event',
    many: true,
  });
  await waitFor('the instance to be told that nobody hears its events', () => isTold);
  child.kill('SIGTERM');
  await waitFor('nothing to be left', () => bed.plane.activeConnections() === 0, { timeoutMs: 20_000 });
});
