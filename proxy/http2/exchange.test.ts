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
import type { AddressInfo, Socket } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setImmediate as turn } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { Service } from '../../src/catalog/snapshot.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, deadPort, dial, instanceOf, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';
import { resetStream } from './outside-parser.ts';

type Serve = (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void;

interface Instance {
  readonly port: number;
  readonly server: Http2Server;
  readonly sessions: Set<ServerHttp2Session>;
  readonly sockets: Set<Socket>;
  /** Streams that came, by their state: all, and those that have not been closed. */
  readonly streams: { total: number; open: number };
  /** With which code each stream was closed. */
  readonly codes: number[];
}

async function instance(t: Test, serve: Serve, settings: object = {}): Promise<Instance> {
  const server = createServer({ settings });
  const sessions = new Set<ServerHttp2Session>();
  const sockets = new Set<Socket>();
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
  });
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
  t.teardown(async () => {
    await turn();
    for (const session of sessions) session.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, server, sessions, sockets, streams, codes };
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
  t.teardown(async () => {
    await turn();
    session.destroy();
  });
  return session;
}

/** Sessions that are closed refuse streams while they read, unless their goodbye is out; see `resetStream`. */
function sayGoodbye(session: ServerHttp2Session): void {
  if (session.destroyed || session.closed) return;
  session.goaway();
  const close = (): void => {
    if (session.destroyed) return;
    if (session.state.outboundQueueSize === 0) session.close();
    else setImmediate(close);
  };
  setImmediate(close);
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
  if (Buffer.isBuffer(body)) void pipeline(Readable.from(pieces(body)), stream).catch(() => undefined);
  else if (body !== undefined) stream.end(body);
  return answer;
}

/** A client of the runtime may not write more at once than its session's memory. */
function* pieces(body: Buffer): Iterable<Buffer> {
  for (let at = 0; at < body.length; at += 65_536) yield body.subarray(at, at + 65_536);
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
  const instances = [await instance(t, naming('a')), await instance(t, naming('b')), await instance(t, naming('c'))];
  const bed = await before(
    t,
    instances.map(({ port }) => port),
  );
  const session = client(t, bed);
  const answers = await Promise.all(Array.from({ length: 30 }, () => ask(session)));
  const bodies = answers.map(({ body }) => body.toString());
  for (const name of ['a', 'b', 'c'])
    t.equal(bodies.filter((body) => body === name).length, 10, `${name} had its share`);
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
  t.match({ status: answer.status, code: answer.code, body: answer.body.length }, { status: 200, code: 0 });
  t.equal(digest(answer.body), digest(body));
  const counted = (): { received: number; sent: number } => bed.plane.links()[0]?.bytes ?? { received: 0, sent: 0 };
  await waitFor('it is counted', () => Math.min(counted().received, counted().sent) > body.length);
  await quiet(bed, one);
});

t.test('resets go both ways, with their code, and never look like an end', async (t) => {
  let ended = 0;
  const one = await instance(t, (stream, headers) => {
    stream.on('end', () => {
      if (!stream.aborted) ended += 1;
    });
    stream.resume();
    if (headers[':path'] === '/part') {
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.write('half of it', () => resetStream(stream, constants.NGHTTP2_INTERNAL_ERROR));
    } else if (headers[':path'] === '/none') resetStream(stream, constants.NGHTTP2_ENHANCE_YOUR_CALM);
  });
  const bed = await before(t, [one.port]);
  const session = client(t, bed);
  const part = await ask(session, '/part');
  t.match({ status: part.status, code: part.code }, { status: 200, code: constants.NGHTTP2_INTERNAL_ERROR });
  const none = await ask(session, '/none', { ':method': 'POST' });
  t.match({ status: none.status, code: none.code }, { status: 0, code: constants.NGHTTP2_ENHANCE_YOUR_CALM });
  ended = 0;
  const upload = session.request({ ':method': 'POST', ':path': '/hang' }, { waitForTrailers: true });
  upload.on('error', () => undefined);
  upload.write('half');
  await waitFor('it is there', () => one.streams.open === 1);
  upload.close(constants.NGHTTP2_CANCEL);
  await quiet(bed, one);
  t.equal(one.codes.at(-1), constants.NGHTTP2_CANCEL);
  t.equal(ended, 0, 'half a body was not given out for a whole one');
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="",end="client gone"}'), 1);
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="here/i0",end="broken"}'), 2);
});

t.test('instances that cannot be asked', async (t) => {
  const fine = await instance(t, naming('fine'));
  const garbage = await startBackend(t, (socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'));
  const closing = await startBackend(t, (socket) => socket.once('data', () => socket.destroy()));
  const bed = await before(t, [await deadPort(), garbage.port, closing.port, fine.port]);
  const session = client(t, bed);
  for (let turn = 0; turn < 6; turn += 1)
    t.equal((await ask(session)).body.toString(), 'fine', 'the client does not notice');
  for (let turn = 0; turn < 6; turn += 1)
    t.equal((await ask(session, '/', { ':method': 'POST' }, 'x')).body.toString(), 'fine', 'whatever it asks');
  const dying = await instance(t, (stream) => setImmediate(() => stream.session?.destroy()));
  const failing = client(t, await before(t, [dying.port]));
  const post = await ask(failing, '/', { ':method': 'POST' }, 'hi');
  t.match(post, { status: 502, headers: { 'legate-reason': /./ } }, 'what may not be done twice is asked once');
  t.equal(dying.streams.total, 1);
  const none = await ask(client(t, await before(t, [await deadPort()])));
  t.match(none, { status: 503, code: 0, headers: { 'retry-after': '1' } });
  t.match(none.body.toString(), /^legate: .*ECONNREFUSED/);
});

t.test('an instance that dies in the middle', async (t) => {
  const dying = await instance(t, (stream, headers) => {
    if (headers[':path'] === '/slow') {
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.write('half');
    }
  });
  const fine = await instance(t, naming('fine'));
  const bed = await before(t, [dying.port, fine.port]);
  const session = client(t, bed);
  const halves = Array.from({ length: 8 }, () => ask(session, '/slow'));
  const gets = Array.from({ length: 8 }, () => ask(session, '/'));
  const posts = Array.from({ length: 8 }, () => ask(session, '/', { ':method': 'POST' }, 'x'));
  await waitFor('all are there', () => dying.streams.open === 12);
  for (const socket of dying.sockets) socket.resetAndDestroy();
  const codes = (await Promise.all(halves)).map(({ status, code, body }) => `${status} ${code} ${body}`);
  t.same(new Set(codes), new Set([`200 0 fine`, `200 ${constants.NGHTTP2_INTERNAL_ERROR} half`]));
  for (const { status, body } of await Promise.all(gets))
    t.match({ status, body: `${body}` }, { status: 200, body: 'fine' });
  const statuses = (await Promise.all(posts)).map(({ status }) => status);
  t.same(new Set(statuses), new Set([200, 502]));
  await quiet(bed, fine);
});

t.test('an instance that says goodbye under load loses no request', async (t) => {
  const serve =
    (name: string): Serve =>
    (stream) =>
      setTimeout(() => {
        if (stream.destroyed) return;
        stream.respond({ ':status': 200 });
        stream.end(name);
      }, 5);
  const instances = [await instance(t, serve('a')), await instance(t, serve('b'))];
  const bed = await before(
    t,
    instances.map(({ port }) => port),
  );
  const session = client(t, bed);
  const goodbye = setInterval(() => {
    for (const { sessions } of instances) for (const one of sessions) sayGoodbye(one);
  }, 100);
  t.teardown(() => clearInterval(goodbye));
  const statuses = new Map<string, number>();
  for (let round = 0; round < 40; round += 1) {
    const answers = Array.from({ length: 20 }, (_, turn) =>
      turn % 2 === 0 ? ask(session) : ask(session, '/', { ':method': 'POST' }, 'x'),
    );
    for (const { status, code, headers } of await Promise.all(answers)) {
      const how = `${status} ${code} ${headers['legate-reason'] ?? ''}`;
      statuses.set(how, (statuses.get(how) ?? 0) + 1);
    }
  }
  t.same([...statuses], [['200 0 ', 800]]);
  clearInterval(goodbye);
  await quiet(bed, ...instances);
});

t.test('what an instance refuses to look at goes elsewhere', async (t) => {
  const refusing = await instance(t, (stream) => resetStream(stream, constants.NGHTTP2_REFUSED_STREAM));
  const fine = await instance(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.pipe(stream);
  });
  const bed = await before(t, [refusing.port, fine.port]);
  const session = client(t, bed);
  for (let turn = 0; turn < 20; turn += 1) {
    const { body } = await ask(session, '/', { ':method': 'POST' }, 'mine');
    t.equal(body.toString(), 'mine');
  }
  const only = client(t, await before(t, [refusing.port]));
  t.match(await ask(only, '/', { ':method': 'POST' }, 'mine'), { status: 503 });
});

t.test('an instance with few streams gets several connections', async (t) => {
  const held: ServerHttp2Stream[] = [];
  const one = await instance(t, (stream) => held.push(stream), { maxConcurrentStreams: 10 });
  const bed = await before(t, [one.port]);
  const session = client(t, bed);
  const answers = Array.from({ length: 25 }, () => ask(session));
  await waitFor('all are there', () => held.length === 25);
  t.ok(one.sessions.size >= 3, `${one.sessions.size} connections`);
  for (const stream of held) {
    stream.respond({ ':status': 200 });
    stream.end();
  }
  for (const { status } of await Promise.all(answers)) t.equal(status, 200);
});

t.test('a client that vanishes leaves nothing behind', async (t) => {
  const one = await instance(t, (stream) => {
    stream.respond({ ':status': 200 });
    stream.write('x');
  });
  const bed = await before(t, [one.port]);
  for (const how of ['end', 'reset'] as const) {
    const socket = dial(t, bed.port);
    socket.on('error', () => undefined);
    const session = connect('http://db', { createConnection: () => socket });
    session.on('error', () => undefined);
    for (let turn = 0; turn < 20; turn += 1) {
      const stream = session.request({ ':method': 'POST', ':path': '/' });
      stream.on('error', () => undefined);
      stream.write('y');
    }
    await waitFor('all are there', () => one.streams.open === 20);
    if (how === 'end') socket.destroy();
    else socket.resetAndDestroy();
    await quiet(bed, one);
    await waitFor('the connection is gone', () => bed.plane.activeConnections() === 0);
  }
  t.equal(await bed.metric('legate_http2_streams_count'), 0);
  t.equal(await bed.metric('legate_http2_instance_connections'), 1, 'what is kept is shared');
  t.equal(one.sessions.size, 1);
});

t.test('a slow client holds up its own answer, and nothing else', async (t) => {
  let written = 0;
  const one = await instance(t, (stream, headers) => {
    stream.respond({ ':status': 200 });
    if (headers[':path'] !== '/big') stream.end('small');
    else {
      const write = (): void => {
        while (!stream.destroyed && stream.write(Buffer.alloc(16_384))) written += 16_384;
      };
      stream.on('drain', write);
      write();
    }
  });
  const bed = await before(t, [one.port]);
  const session = client(t, bed);
  const slow = session.request({ ':path': '/big' });
  slow.on('error', () => undefined);
  await once(slow, 'response');
  for (let turn = 0; turn < 20; turn += 1) t.equal((await ask(session)).body.toString(), 'small');
  t.ok(written < 1_048_576, `${written} bytes wait, and no more`);
  slow.close(constants.NGHTTP2_CANCEL);
  await quiet(bed, one);
});

t.test('what is refused', async (t) => {
  const one = await instance(t, naming('a'));
  const bed = await before(t, [one.port]);
  const session = client(t, bed);
  t.match(await ask(session, '/', { ':authority': 'db', host: 'other' }), {
    status: 400,
    headers: { 'legate-reason': /host/ },
  });
  t.match(await ask(session, 'x'), { code: constants.NGHTTP2_PROTOCOL_ERROR });
  t.match(await ask(session, '/a b'), { code: constants.NGHTTP2_PROTOCOL_ERROR });
  t.match(await ask(session, '/', { ':method': 'TRACE' }), { status: 405 });
  const tunnel = session.request({ ':method': 'CONNECT', ':authority': 'db:80' });
  t.match(await answerOf(tunnel), { status: 405, headers: { allow: /GET/ } });
  const circle = Array.from({ length: 16 }, () => '2 legate').join(', ');
  t.match(await ask(session, '/', { via: circle }), {
    status: 508,
    headers: { 'legate-reason': /leads back to itself/ },
  });
  t.equal(one.streams.total, 0);
  t.equal((await ask(session)).status, 200, 'others of the same connection are not');
});

t.test('a sidecar that leaves tells its clients', async (t) => {
  const held: ServerHttp2Stream[] = [];
  const one = await instance(t, (stream) => held.push(stream));
  const bed = await before(t, [one.port]);
  const session = client(t, bed);
  const answer = ask(session);
  await waitFor('it is there', () => held.length === 1);
  const goodbye = once(session, 'goaway');
  const drained = bed.plane.drain(5000);
  t.equal((await goodbye)[0], constants.NGHTTP2_NO_ERROR);
  held[0]?.respond({ ':status': 200 });
  held[0]?.end('late');
  t.equal((await answer).body.toString(), 'late', 'what runs comes to its end');
  await drained;
  t.equal(bed.plane.activeConnections(), 0);
});

t.test('an answer that does not wait for the whole request', async (t) => {
  const size = 200_000;
  const one = await instance(t, (stream) => {
    stream.respond({ ':status': 200 }, { waitForTrailers: true });
    stream.on('wantTrailers', () => {
      stream.sendTrailers({ 'x-last': 'word' });
      setImmediate(() => stream.close(constants.NGHTTP2_NO_ERROR));
    });
    stream.end(Buffer.alloc(size));
  });
  const bed = await before(t, [one.port]);
  const stream = client(t, bed).request({ ':method': 'POST', ':path': '/' });
  const answer = answerOf(stream);
  stream.write('the beginning');
  const { status, code, body, trailers } = await answer;
  t.match(
    { status, code, size: body.length, trailers },
    { status: 200, code: 0, size, trailers: { 'x-last': 'word' } },
  );
  await quiet(bed, one);
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="here/i0",end="2xx"}'), 1);
});
