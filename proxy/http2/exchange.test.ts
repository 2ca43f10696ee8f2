import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  createServer,
  type Http2Server,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import type { Service } from '../../src/catalog/snapshot.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, deadPort, instanceOf, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';

type Serve = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void;

interface Instance {
  readonly port: number;
  readonly server: Http2Server;
  readonly sessions: Set<ServerHttp2Session>;
  /** Streams that came, by their state: all, and those that have not been closed. */
  readonly streams: { total: number; open: number };
  /** With which code each stream was closed. */
  readonly codes: number[];
}

async function instance(t: Test, serve: Serve, settings: object = {}): Promise<Instance> {
  const server = createServer({ settings });
  const sessions = new Set<ServerHttp2Session>();
  const streams = { total: 0, open: 0 };
  const codes: number[] = [];
  server.on('session', (session) => {
    sessions.add(session);
    session.on('error', () => undefined);
    session.on('close', () => sessions.delete(session));
  });
  server.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    streams.total += 1;
    streams.open += 1;
    stream.on('error', () => undefined);
    stream.on('close', () => {
      streams.open -= 1;
      codes.push(stream.rstCode ?? -1);
    });
    serve(stream, headers);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, server, sessions, streams, codes };
}

/** Instances that say who they are. */
const naming =
  (name: string): Serve =>
  (stream) => {
    stream.respond({ ':status': 200 });
    stream.end(name);
  };

function before(t: Test, ports: readonly number[], fields: Partial<Service> = {}): Promise<Bed> {
  const protocol = fields.protocol ?? 'http2';
  const instances = ports.map((port, index) => instanceOf({ name: `i${index}`, port, protocol }));
  return startBed(t, { services: [serviceOf(instances, { protocol, ...fields })] });
}

function client(t: Test, bed: Bed): ClientHttp2Session {
  const session = connect(`http://127.0.0.1:${bed.port}`);
  session.on('error', () => undefined);
  t.teardown(() => session.destroy());
  return session;
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly trailers: IncomingHttpHeaders;
  readonly body: Buffer;
  readonly code: number;
}

function answerOf(stream: ClientHttp2Stream): Promise<Answer> {
  let headers: IncomingHttpHeaders = {};
  let trailers: IncomingHttpHeaders = {};
  const chunks: Buffer[] = [];
  stream.on('response', (given) => {
    headers = given;
  });
  stream.on('trailers', (given) => {
    trailers = given;
  });
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  stream.on('error', () => undefined);
  return new Promise((resolve) => {
    stream.on('close', () =>
      resolve({
        status: Number(headers[':status'] ?? 0),
        headers,
        trailers,
        body: Buffer.concat(chunks),
        code: stream.rstCode ?? -1,
      }),
    );
  });
}

function ask(session: ClientHttp2Session, path = '/', headers: OutgoingHttpHeaders = {}, body?: Buffer | string) {
  const stream = session.request({ ':path': path, ...headers }, { endStream: body === undefined });
  const answer = answerOf(stream);
  if (body !== undefined) stream.end(body);
  return answer;
}

/** Nothing is left of any request. */
function quiet(bed: Bed, ...instances: Instance[]): Promise<unknown> {
  return waitFor('all streams are closed', () => {
    const [link] = bed.plane.links();
    const active = link?.backends.reduce((sum, backend) => sum + backend.active, 0);
    return active === 0 && instances.every(({ streams }) => streams.open === 0);
  });
}

t.test('the streams of one connection are balanced one by one', async (t) => {
  const instances = [
    await instance(t, naming('a')),
    await instance(t, naming('b')),
    await instance(t, naming('c')),
  ];
  const bed = await before(
    t,
    instances.map(({ port }) => port),
  );
  const session = client(t, bed);
  const answers = await Promise.all(Array.from({ length: 30 }, () => ask(session)));
  const bodies = answers.map(({ body }) => body.toString());
  for (const name of ['a', 'b', 'c']) t.equal(bodies.filter((body) => body === name).length, 10, `${name} had its share`);
  await quiet(bed, ...instances);
  t.same(
    instances.map(({ sessions }) => sessions.size),
    [1, 1, 1],
    'over one connection each',
  );
  t.same(new Set(instances.flatMap(({ codes }) => codes)), new Set([0]), 'and none was reset');
  const second = await ask(client(t, bed));
  t.equal(second.status, 200);
  t.same(
    instances.map(({ sessions }) => sessions.size),
    [1, 1, 1],
    'which other clients share',
  );
  t.equal(await bed.metric('legate_http2_instance_connections'), 3);
  const [link] = bed.plane.links();
  t.equal(link?.connections.total, 2);
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="here/i0",end="2xx"}'), 11);
});

t.test('bodies, trailers and heads', async (t) => {
  let seen: IncomingHttpHeaders = {};
  let sent: IncomingHttpHeaders = {};
  const one = await instance(t, (stream, headers) => {
    seen = headers;
    stream.on('trailers', (trailers) => {
      sent = trailers;
    });
    stream.additionalHeaders({ ':status': 103, link: '</a>' });
    stream.respond({ ':status': 201, 'set-cookie': ['a=1', 'b=2'] }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': '1' }));
    stream.pipe(stream);
  });
  const bed = await before(t, [one.port]);
  const session = client(t, bed);
  const stream = session.request(
    { ':method': 'POST', ':path': '/x?y', te: 'trailers', cookie: 'a=b', 'x-forwarded-for': '10.0.0.9' },
    { waitForTrailers: true },
  );
  let early: IncomingHttpHeaders = {};
  stream.on('headers', (headers) => {
    early = headers;
  });
  stream.on('wantTrailers', () => stream.sendTrailers({ 'x-mine': '2' }));
  const answer = answerOf(stream);
  stream.end('hello');
  const { status, headers, trailers, body, code } = await answer;
  t.match(early, { ':status': 103, link: '</a>' });
  t.match({ status, code, body: body.toString() }, { status: 201, code: 0, body: 'hello' });
  t.same(headers['set-cookie'], ['a=1', 'b=2']);
  t.match(trailers, { 'x-sum': '1' });
  t.match(sent, { 'x-mine': '2' });
  t.match(seen, {
    ':method': 'POST',
    ':path': '/x?y',
    ':authority': `127.0.0.1:${bed.port}`,
    te: 'trailers',
    cookie: 'a=b',
    via: '2 legate',
    'x-forwarded-for': '10.0.0.9, 127.0.0.1',
    'x-forwarded-proto': 'http',
    'x-request-id': /^[0-9a-f]{32}$/,
    traceparent: /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/,
  });
  const head = await ask(session, '/', { ':method': 'HEAD' });
  t.equal(head.status, 201);
  await quiet(bed, one);
});

t.test('20 MB both ways are whole', async (t) => {
  const one = await instance(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.pipe(stream);
  });
  const bed = await before(t, [one.port]);
  const body = Buffer.alloc(20_000_003, 'legate carries this ');
  const answer = await ask(client(t, bed), '/', { ':method': 'POST' }, body);
  const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
  t.equal(digest(answer.body), digest(body));
  const { received = 0, sent = 0 } = bed.plane.links()[0]?.bytes ?? {};
  await waitFor('it is counted', () => (bed.plane.links()[0]?.bytes.received ?? 0) > body.length);
  t.ok(received >= 0 && sent >= 0);
  await quiet(bed, one);
});
