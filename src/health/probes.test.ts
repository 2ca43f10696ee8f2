import { createServer as createHttpServer, type RequestListener } from 'node:http';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { type CheckSpec, checkDefaults } from '../model/check.ts';
import { httpProbe } from './http.ts';
import type { ProbeResult } from './probe.ts';
import { probeTcp } from './tcp.ts';
import { Trust } from './trust.ts';

const check = (over: Partial<CheckSpec> = {}): CheckSpec => ({ kind: 'http', ...checkDefaults, ...over });
const never = new AbortController().signal;
const probeHttp = httpProbe(new Trust());

async function listening(t: Test, server: Server): Promise<{ address: string; port: number; sockets: Set<Socket> }> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    return new Promise((resolve) => server.close(resolve));
  });
  return { address: '127.0.0.1', port: (server.address() as AddressInfo).port, sockets };
}

async function unused(t: Test): Promise<{ address: string; port: number }> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  t.comment(`port ${port} is free`);
  return { address: '127.0.0.1', port };
}

t.test('tcp: a connection is a pass, everything else a failure in words', async (t) => {
  const { sockets, ...open } = await listening(t, createServer());
  t.same(await probeTcp(open, check(), never), { verdict: 'pass', output: `connected to 127.0.0.1:${open.port}` });
  await t.resolves(
    new Promise<void>((resolve) => {
      const poll = (): unknown => (sockets.size === 0 ? resolve() : setTimeout(poll, 5));
      poll();
    }),
    'the probe hangs up',
  );
  const closed = await unused(t);
  t.same(await probeTcp(closed, check(), never), {
    verdict: 'fail',
    output: `connection refused at 127.0.0.1:${closed.port}`,
  });
  t.match(await probeTcp({ address: '255.255.255.255', port: 1 }, check(), never), { verdict: 'fail' });
  t.match(await probeTcp({ address: '::1', port: closed.port }, check(), never), {
    verdict: 'fail',
    output: /\[::1\]:/,
  });
  const cut = AbortSignal.abort();
  t.match(await probeTcp(open, check(), cut), { verdict: 'fail' });
});

t.test('http: the status decides', async (t) => {
  const answer: RequestListener = (request, response) => {
    const [, status = '200'] = (request.url ?? '').split('/');
    if (status === '302') response.setHeader('location', '/200');
    response.writeHead(Number(status));
    response.end(request.method === 'HEAD' ? undefined : `${request.method} says ${status}\u001b[31m`);
  };
  const open = await listening(t, createHttpServer(answer));
  const cases: [path: string, verdict: ProbeResult['verdict'], output: string | RegExp][] = [
    ['/200', 'pass', 'GET /200: 200 OK: GET says 200\\u001b[31m'],
    ['/204', 'pass', /204 No Content$/],
    ['/299', 'pass', /299/],
    ['/429', 'warn', /429 Too Many Requests/],
    ['/302', 'fail', /302 Found to \/200, not followed/],
    ['/404', 'fail', /404 Not Found/],
    ['/503', 'fail', /503 Service Unavailable/],
  ];
  for (const [path, verdict, output] of cases) {
    t.match(await probeHttp(open, check({ path }), never), { verdict, output }, path);
  }
  t.match(await probeHttp(open, check({ path: '/200', method: 'HEAD' }), never), {
    verdict: 'pass',
    output: 'HEAD /200: 200 OK',
  });
  t.match(await probeHttp(open, check({ path: '/a b\r\nx: y' }), never), {
    verdict: 'fail',
    output: /cannot be asked/,
  });
  t.match(await probeHttp(await unused(t), check(), never), {
    verdict: 'fail',
    output: /^GET \/: connection refused at 127/,
  });
});

t.test('http: servers that misbehave neither hang nor fill us', async (t) => {
  const raw = (serve: (socket: Socket) => void) =>
    listening(
      t,
      createServer((socket) => {
        socket.once('data', () => serve(socket));
      }),
    );
  const head = 'HTTP/1.1 200 OK\r\n';
  const flood = (socket: Socket, piece: string): void => {
    const write = (): void => {
      while (!socket.destroyed && socket.write(piece));
      if (!socket.destroyed) socket.once('drain', write);
    };
    write();
  };
  const cases: [what: string, serve: (socket: Socket) => void, expected: object][] = [
    [
      'garbage',
      (socket) => socket.end('\u0000\u0001 nothing like it\r\n\r\n'),
      { verdict: 'fail', output: /is not HTTP/ },
    ],
    ['closes at once', (socket) => socket.destroy(), { verdict: 'fail', output: /socket hang up|reset/ }],
    [
      'a body without end',
      (socket) => flood(socket, `${head}\r\n${'x'.repeat(65536)}`),
      { verdict: 'pass', output: /^GET \/: 200 OK: x+…$/ },
    ],
    [
      'headers without end',
      (socket) => flood(socket, `${head}a: ${'y'.repeat(1000)}\r\n`.repeat(8)),
      { verdict: 'fail' },
    ],
    ['cut in the body', (socket) => socket.end(`${head}content-length: 100\r\n\r\nhalf`), { verdict: 'fail' }],
    [
      'changes the protocol',
      (socket) => socket.write('HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n'),
      { verdict: 'fail' },
    ],
    [
      'early hints before the answer',
      (socket) => socket.end(`HTTP/1.1 103 Early Hints\r\n\r\n${head}content-length: 2\r\n\r\nok`),
      { verdict: 'pass', output: 'GET /: 200 OK: ok' },
    ],
  ];
  for (const [what, serve, expected] of cases) {
    const { sockets, ...open } = await raw(serve);
    const result = await probeHttp(open, check(), AbortSignal.timeout(5000));
    t.match(result, expected, what);
    t.notMatch(result.output, /cut off/, `${what}: ended by itself`);
    t.ok(result.output.length <= 500, what);
    await new Promise<void>((resolve) => {
      const poll = (): unknown => (sockets.size === 0 ? resolve() : setTimeout(poll, 5));
      poll();
    });
  }
  const silent = await raw(() => undefined);
  const cut = new AbortController();
  const asked = probeHttp(silent, check(), cut.signal);
  cut.abort();
  t.match(await asked, { verdict: 'fail', output: 'GET /: cut off' });
});
