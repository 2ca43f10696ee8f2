import { execFile } from 'node:child_process';
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  connect,
  constants,
  createServer,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Stream,
} from 'node:http2';
import { type AddressInfo, createConnection, createServer as createTcpServer, type Socket } from 'node:net';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { Service } from '../../src/catalog/snapshot.ts';
import type { Policy } from '../../src/model/policy.ts';
import { unless } from '../../test/support/needs.ts';
import { intents, policyOf } from '../../test/support/policies.ts';
import { waitFor } from '../../test/support/wait.ts';
import { maxFields, maxHeadBytes, maxTargetBytes } from '../http/head.ts';
import { type Bed, instanceOf, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';
import { Permission } from '../permission.ts';

type Serve = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void;

async function served(t: Test, serve: Serve): Promise<{ port: number; streams: Set<ServerHttp2Stream> }> {
  const streams = new Set<ServerHttp2Stream>();
  // What is added on the way to an instance has to have room there too.
  const server = createServer({ maxHeaderListPairs: 2 * maxFields });
  server.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    streams.add(stream);
    stream.on('error', () => undefined);
    stream.on('close', () => streams.delete(stream));
    serve(stream, headers);
  });
  const sockets = new Set<Socket>();
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.resetAndDestroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, streams };
}

function services(ports: readonly number[], fields: Partial<Service> = {}): Service[] {
  const instances = ports.map((port, index) => instanceOf({ name: `i${index}`, port, protocol: 'http2' }));
  return [serviceOf(instances, { protocol: 'http2', ...fields })];
}

function client(t: Test, bed: Bed): ClientHttp2Session {
  const session = connect(`http://127.0.0.1:${bed.port}`);
  session.on('error', () => undefined);
  t.teardown(() => session.destroy());
  return session;
}

interface Answer {
  readonly headers: IncomingHttpHeaders;
  readonly trailers: IncomingHttpHeaders;
  readonly code: number;
}

function ask(
  session: ClientHttp2Session,
  headers: OutgoingHttpHeaders = {},
  whole = true,
  begun: () => void = () => undefined,
): Promise<Answer> {
  const stream = session.request({ ':path': '/', ...headers }, { endStream: whole });
  let head: IncomingHttpHeaders = {};
  let trailers: IncomingHttpHeaders = {};
  stream.on('response', (given) => {
    head = given;
    begun();
  });
  stream.on('trailers', (given) => {
    trailers = given;
  });
  stream.on('error', () => undefined);
  stream.resume();
  if (!whole) stream.write('x');
  return new Promise((resolve) => {
    stream.on('close', () => resolve({ headers: head, trailers, code: stream.rstCode ?? -1 }));
  });
}

const grpc = { ':method': 'POST', 'content-type': 'application/grpc', te: 'trailers' };

t.test('what takes too long', async (t) => {
  const one = await served(t, (stream, headers) => {
    if (headers[':path'] === '/half') stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
  });
  const clock = new ManualClock();
  const bed = await startBed(t, { services: services([one.port]), clock });
  const session = client(t, bed);
  const slow = ask(session, { ':method': 'POST' });
  const stuck = ask(session, { ':method': 'POST' }, false);
  const call = ask(session, grpc, false);
  const limited = ask(session, { ...grpc, 'grpc-timeout': '2S' }, false);
  const half = ask(session, { ...grpc, ':path': '/half', 'grpc-timeout': '2S' }, false);
  await waitFor('all are there', () => one.streams.size === 5);
  await clock.advance(3000);
  t.match((await limited).headers, { ':status': 200, 'grpc-status': '4', 'content-type': 'application/grpc' });
  t.match((await half).trailers, { 'grpc-status': '4' }, 'also behind the beginning of an answer');
  await waitFor('the instance is told', () => one.streams.size === 3);
  await clock.advance(60_000);
  t.match((await slow).headers, { ':status': 504 });
  t.match((await stuck).headers, { ':status': 408 });
  await waitFor('the instance is told', () => one.streams.size === 1);
  await clock.advance(600_000);
  t.equal(one.streams.size, 1, 'calls may be silent for long');
  session.destroy();
  await call;
});

t.test('heads of more than is allowed', async (t) => {
  const one = await served(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.end();
  });
  const bed = await startBed(t, { services: services([one.port]) });
  const fields = (count: number, bytes = 1): OutgoingHttpHeaders =>
    Object.fromEntries(Array.from({ length: count }, (_, at) => [`x-${at}`, 'y'.repeat(bytes)]));
  // GET, http, / and an authority such as 127.0.0.1:12345, each with 32 more.
  const own = ':methodGET:schemehttp:path/:authority'.length + `127.0.0.1:${bed.port}`.length + 4 * 32;
  const whole = maxHeadBytes - own - 'x-0'.length - 32;
  const path = (bytes: number): OutgoingHttpHeaders => ({ ':path': '/'.padEnd(bytes, 'a') });
  const cases: readonly (readonly [string, OutgoingHttpHeaders, number, string?])[] = [
    ['as large as it may be', fields(1, whole), 200],
    ['a byte more', fields(1, whole + 1), 431, 'a head that is too large'],
    ['60000 bytes in one field', fields(1, 60_000), 431, 'a head that is too large'],
    ['and in three', fields(3, 20_000), 431, 'a head that is too large'],
    ['as many fields as it may have', fields(maxFields), 200],
    ['one more', fields(maxFields + 1), 431, `more than ${maxFields} fields`],
    ['as long a path as it may be', path(maxTargetBytes), 200],
    ['a byte more', path(maxTargetBytes + 1), 414, 'a target that is too long'],
    ['a path larger than a head', path(40_000), 414, 'a target that is too long'],
    ['with a body', { ...fields(1, 40_000), ':method': 'POST' }, 431, 'a head that is too large'],
  ];
  const session = client(t, bed);
  await once(session, 'remoteSettings');
  for (const [name, headers, status, reason] of cases) {
    const answer = await ask(session, headers, headers[':method'] === undefined);
    t.equal(answer.headers[':status'], status, name);
    t.equal(answer.headers['legate-reason'], reason, name);
  }
  const refused = cases.filter(([, , status]) => status !== 200).length;
  t.equal(await bed.metric('legate_http_refused_total{reason="too-large"}'), refused);
  t.notOk(session.closed, 'all of that over one connection');
});

t.test('an idle connection is closed in order', async (t) => {
  const one = await served(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.end();
  });
  const clock = new ManualClock();
  const bed = await startBed(t, { services: services([one.port]), clock });
  const session = client(t, bed);
  t.match((await ask(session)).headers, { ':status': 200 });
  const goodbye = once(session, 'goaway');
  await clock.advance(76_000);
  t.equal((await goodbye)[0], constants.NGHTTP2_NO_ERROR);
  await waitFor('it is gone', () => bed.plane.activeConnections() === 0);
  t.equal(await bed.metric('legate_http2_instance_connections'), 0);
});

t.test('an instance that is silent', async (t) => {
  const settings = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]);
  const dead = await startBackend(t, (socket) => {
    socket.resume();
    socket.on('end', () => socket.end());
    socket.write(settings);
  });
  const clock = new ManualClock();
  const bed = await startBed(t, { services: services([dead.port]), clock });
  const answer = ask(client(t, bed), { ':method': 'POST' });
  await waitFor(
    'it is asked',
    async () => (await bed.metric('legate_http2_streams_count')) === 1 && dead.sockets.size === 1,
  );
  await waitFor('its time is over', async () => {
    await clock.advance(2000);
    return dead.sockets.size === 0;
  });
  t.match((await answer).headers, { ':status': 502, 'legate-reason': /no sign of life/ });
});

t.test('policy cuts what runs, and says why', async (t) => {
  const one = await served(t, (stream, headers) => {
    if (headers[':path'] === '/half') stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
  });
  const policy = new Latest<Policy | undefined>(undefined);
  const clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() } as never;
  const permission = new Permission({ policy, clock, log: silentLog, metrics: new Metrics() });
  const bed = await startBed(t, { services: services([one.port]), permission });
  const session = client(t, bed);
  let hasBegun = false;
  const begun = (): void => {
    hasBegun = true;
  };
  const answers = [ask(session), ask(session, grpc, false), ask(session, { ...grpc, ':path': '/half' }, false, begun)];
  await waitFor('all are there, and one is half answered', () => one.streams.size === 3 && hasBegun);
  policy.set(policyOf({ intents: intents('deny host db') }));
  const [plain, call, half] = await Promise.all(answers);
  t.match(plain?.headers, { ':status': 403 });
  t.match(call?.headers, { 'grpc-status': '7' });
  t.match(half?.trailers, { 'grpc-status': '7' });
  await waitFor('nothing is left', () => bed.plane.activeConnections() === 0 && one.streams.size === 0);
});

t.test('what is logged, and what instances are told', async (t) => {
  const first: Buffer[] = [];
  const wrapped = await served(t, (stream) => {
    stream.respond({ ':status': 500 });
    stream.end('no');
  });
  const server = createTcpServer((socket) => {
    socket.once('data', (chunk: Buffer) => {
      first.push(chunk);
      const { port } = wrapped;
      const onward = createConnection(port);
      const size = 16 + chunk.readUInt16BE(14);
      onward.write(chunk.subarray(size));
      socket.pipe(onward).pipe(socket);
      for (const each of [socket, onward]) each.on('error', () => undefined);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const lines: { message: string; fields: unknown }[] = [];
  const log = { ...silentLog, info: (message: string, fields?: unknown) => lines.push({ message, fields }) };
  const { port } = server.address() as AddressInfo;
  const bed = await startBed(t, { services: services([port], { proxyProtocol: 'v2' }), log, accessLog: 1 });
  const sessions = [client(t, bed), client(t, bed)];
  for (const session of sessions) t.match((await ask(session, { ':path': '/x' })).headers, { ':status': 500 });
  t.equal(first.length, 2, 'each client has a connection of its own');
  t.equal(first[0]?.subarray(0, 12).toString('hex'), '0d0a0d0a000d0a515549540a');
  for (const session of sessions) session.close();
  await waitFor('nothing is left', async () => (await bed.metric('legate_http2_instance_connections')) === 0);
  const requests = lines.filter(({ message }) => message === 'request');
  t.equal(requests.length, 2);
  t.match(requests[0]?.fields, {
    'http.method': 'GET',
    'http.target': '/x',
    'http.status': 500,
    'link.instance': 'here/i0',
    'link.end': '5xx',
    'link.sent_bytes': 2,
  });
});

t.test('h2load', { skip: unless('command:h2load') }, async (t) => {
  const body = 'x'.repeat(2000);
  const serve: Serve = (stream) => {
    stream.respond({ ':status': 200 });
    stream.end(body);
  };
  const ports = [(await served(t, serve)).port, (await served(t, serve)).port];
  const bed = await startBed(t, { services: services(ports) });
  const args = ['-n', '3000', '-c', '4', '-m', '40', `http://127.0.0.1:${bed.port}/`];
  const { stdout } = await promisify(execFile)('h2load', args, { timeout: 60_000 });
  t.match(stdout, /3000 succeeded, 0 failed, 0 errored/);
});

t.test('curl and nghttp', { skip: unless('command:curl', 'command:nghttp') }, async (t) => {
  const one = await served(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.pipe(stream);
  });
  const bed = await startBed(t, { services: services([one.port]) });
  const url = `http://127.0.0.1:${bed.port}/`;
  const run = promisify(execFile);
  const curl = await run('curl', ['-s', '--http2-prior-knowledge', '-d', 'hello', '-w', ' %{http_version}', url]);
  t.equal(curl.stdout, 'hello 2');
  // It does not wait for what it is told of limits.
  const large = ['-s', '--http2-prior-knowledge', '-H', `x-a: ${'y'.repeat(33_000)}`, '-w', '%{http_code}', url];
  t.equal((await run('curl', large)).stdout, 'legate: a head that is too large\n431');
  const nghttp = await run('nghttp', ['-v', '-d', '/etc/hostname', url]);
  t.notMatch(nghttp.stdout, /RST_STREAM/);
  t.match(nghttp.stdout, /recv .*DATA frame .*\n.*END_STREAM/);
});
