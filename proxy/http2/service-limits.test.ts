import { once } from 'node:events';
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  createServer,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import type { Protocol } from '../../src/model/instance.ts';
import type { FurtherSettings } from '../../src/model/service-settings.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, instanceOf, serviceOf, startBed } from '../link-plane.fixture.ts';

const { NGHTTP2_CANCEL } = constants;

/** An instance that says its name to `/`, `half` of an answer to `/half`, echoes tunnels, and keeps all else waiting. */
interface Instance {
  readonly port: number;
  readonly requests: IncomingHttpHeaders[];
  /** Those that wait. */
  readonly held: ServerHttp2Stream[];
  /** How each stream was closed. */
  readonly codes: number[];
  /** The same, with its path before the code. */
  readonly ends: string[];
}

async function instance(t: Test, name: string, enableConnectProtocol = true): Promise<Instance> {
  const server = createServer({ settings: { enableConnectProtocol } });
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('error', () => undefined);
  });
  const requests: IncomingHttpHeaders[] = [];
  const held: ServerHttp2Stream[] = [];
  const codes: number[] = [];
  const ends: string[] = [];
  server.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    requests.push(headers);
    stream.on('error', () => undefined);
    stream.on('close', () => {
      codes.push(stream.rstCode ?? -1);
      ends.push(`${headers[':path']} ${stream.rstCode}`);
    });
    if (headers[':method'] === 'CONNECT') {
      stream.respond({ ':status': 200 });
      stream.pipe(stream);
      return;
    }
    stream.resume();
    if (headers[':path'] === '/') {
      stream.respond({ ':status': 200 });
      stream.end(name);
    } else if (headers[':path'] === '/half') {
      stream.respond({ ':status': 200, 'content-type': headers['content-type'] ?? 'text/plain' });
      stream.write('half');
    } else held.push(stream);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, requests, held, codes, ends };
}

async function before(
  t: Test,
  instances: readonly Instance[],
  settings: FurtherSettings,
  protocol: Protocol = 'http2',
) {
  const clock = new ManualClock();
  const records = instances.map(({ port }, index) => instanceOf({ name: `i${index}`, port, protocol }));
  const bed = await startBed(t, { services: [serviceOf(records, { protocol, ...settings })], clock });
  const set = (more: FurtherSettings): void => bed.set(serviceOf(records, { protocol, ...more }));
  const session = connect(`http://127.0.0.1:${bed.port}`);
  session.on('error', () => undefined);
  t.teardown(() => session.destroy());
  return { bed, clock, set, session };
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly trailers: IncomingHttpHeaders;
  readonly body: string;
  readonly code: number;
}

function answerOf(stream: ClientHttp2Stream): Promise<Answer> {
  let headers: IncomingHttpHeaders = {};
  let trailers: IncomingHttpHeaders = {};
  let body = '';
  stream.on('response', (given) => {
    headers = given;
  });
  stream.on('trailers', (given) => {
    trailers = given;
  });
  stream.on('data', (chunk: Buffer) => {
    body += chunk;
  });
  stream.on('error', () => undefined);
  return new Promise((resolve) => {
    stream.on('close', () =>
      resolve({ status: Number(headers[':status'] ?? 0), headers, trailers, body, code: stream.rstCode ?? -1 }),
    );
  });
}

function open(session: ClientHttp2Session, path: string, headers: OutgoingHttpHeaders = {}, endStream = true) {
  const stream = session.request({ ':path': path, ...headers }, { endStream });
  stream.on('error', () => undefined);
  return stream;
}

const ask = (session: ClientHttp2Session, path: string, headers?: OutgoingHttpHeaders): Promise<Answer> =>
  answerOf(open(session, path, headers));
const held = (count: number, ...instances: readonly Instance[]): Promise<unknown> =>
  waitFor(`${count} wait`, () => instances.reduce((sum, { held }) => sum + held.length, 0) === count);
const idle = (bed: Bed): Promise<unknown> =>
  waitFor('nothing runs', () => bed.plane.links()[0]?.backends.every(({ active }) => active === 0));
const count = (bed: Bed, what: string): Promise<number> => bed.metric(`legate_http_${what}_total{service="db"}`);
const finish = (stream: ServerHttp2Stream | undefined, text: string): void => {
  if (stream === undefined || stream.closed) return;
  stream.respond({ ':status': 200 });
  stream.end(text);
};

t.test('timeout, of calls as well', async (t) => {
  const one = await instance(t, 'a');
  const { bed, clock, set, session } = await before(t, [one], {});
  const unlimited = ask(session, '/slow');
  await held(1, one);
  set({ timeoutMs: 80 });
  const limited = ask(session, '/slow');
  const call = { ':method': 'POST', 'content-type': 'application/grpc', te: 'trailers' };
  const calls = [ask(session, '/slow', call), ask(session, '/slow', { ...call, 'grpc-timeout': '30m' })];
  await held(4, one);
  await clock.advance(30);
  t.match(await calls[1], { status: 200, headers: { 'grpc-status': '4', 'grpc-message': /limit of 30 ms/ } });
  const half = open(session, '/half');
  const halfEnds = answerOf(half);
  const halfCall = ask(session, '/half', call);
  await waitFor('half', () => one.requests.length === 6);
  await clock.advance(50);
  t.match(await limited, { status: 504, headers: { 'legate-reason': /longer than 80ms/ } });
  t.match(await calls[0], { status: 200, headers: { 'grpc-status': '4', 'grpc-message': /longer than 80ms/ } });
  finish(one.held[0], 'in the end');
  t.equal((await unlimited).body, 'in the end', 'what holds for a request is what held when it came');
  await clock.advance(30);
  t.match(await halfEnds, { status: 200, body: 'half', code: NGHTTP2_CANCEL });
  t.match(await halfCall, { status: 200, body: 'half', code: 0, trailers: { 'grpc-status': '4' } });
  t.equal(await count(bed, 'timeouts'), 5);
  const upload = open(session, '/slow', { ':method': 'POST' }, false);
  const refused = answerOf(upload);
  upload.write('some');
  await held(5, one);
  await clock.advance(80);
  t.match(await refused, { status: 504 });
  set({ timeoutMs: 20_000 });
  const drips = open(session, '/slow', { ':method': 'POST' }, false);
  const ended = answerOf(drips);
  await held(6, one);
  let taken = 0;
  one.held[5]?.on('data', (chunk: Buffer) => {
    taken += chunk.length;
  });
  for (let second = 1; second < 20; second += 1) {
    drips.write('x');
    await waitFor('a byte', () => taken === second, { everyMs: 1 });
    await clock.advance(1000);
  }
  t.notOk(drips.closed);
  await clock.advance(1250);
  t.match(await ended, { status: 504, headers: { 'legate-reason': /longer than 20s/ } }, 'a byte a second');
  await idle(bed);
});

t.test('try_timeout and retries', async (t) => {
  const instances = [await instance(t, 'a'), await instance(t, 'b')];
  const { bed, clock, set, session } = await before(t, instances, { tryTimeoutMs: 40 });
  const repeated = ask(session, '/slow');
  await held(1, ...instances);
  await clock.advance(40);
  await held(2, ...instances);
  for (const one of instances) finish(one.held[0], 'late');
  t.match(await repeated, { status: 200, body: 'late' });
  t.match([await count(bed, 'retries'), await count(bed, 'timeouts')], [1, 1]);
  const post = ask(session, '/slow', { ':method': 'POST' });
  const call = ask(session, '/slow', { ':method': 'POST', 'content-type': 'application/grpc' });
  await held(4, ...instances);
  set({ retries: 0, tryTimeoutMs: 40 });
  const once = ask(session, '/slow');
  await held(5, ...instances);
  await clock.advance(40);
  for (const answer of [post, once])
    t.match(await answer, { status: 504, headers: { 'legate-reason': 'no response within 40ms' } });
  t.match(await call, { headers: { 'grpc-status': '4' } });
  set({});
  const patient = ask(session, '/slow', { ':method': 'POST', 'content-type': 'application/grpc' });
  await held(6, ...instances);
  await clock.advance(600_000);
  const waiting = instances.flatMap((one) => one.held).find((stream) => !stream.closed && !stream.headersSent);
  finish(waiting, 'a call may wait');
  t.match(await patient, { body: 'a call may wait' }, 'where nobody chose');
  await idle(bed);
});

t.test('max_body', async (t) => {
  const one = await instance(t, 'a');
  const { bed, session } = await before(t, [one], { maxBodyBytes: 8 });
  const declared = open(session, '/', { ':method': 'POST', 'content-length': '9' }, false);
  t.match(await answerOf(declared), { status: 413, headers: { 'legate-reason': /larger than 8/ } });
  t.equal(one.requests.length, 0, 'nobody was asked');
  for (const [path, last, expected] of [
    ['/', 'more', { status: 200, body: 'a' }],
    ['/slow', 'more!', { status: 413 }],
    ['/half', 'more!', { status: 200, body: 'half', code: NGHTTP2_CANCEL }],
  ] as const) {
    const { length } = one.requests;
    const stream = open(session, path, { ':method': 'POST' }, false);
    const answer = answerOf(stream);
    const begins = path === '/half' ? once(stream, 'data') : undefined;
    stream.write('long');
    await waitFor('it is asked', () => one.requests.length === length + 1);
    await begins;
    stream.end(last);
    t.match(await answer, expected, path);
  }
  const told = ['/slow', '/half'].map((path) => `${path} ${NGHTTP2_CANCEL}`);
  await waitFor('the instance is told', () => told.every((end) => one.ends.includes(end)));
  const call = open(session, '/slow', { ':method': 'POST', 'content-type': 'application/grpc' }, false);
  call.write('more than that');
  t.match(await answerOf(call), { headers: { 'grpc-status': '8' } });
  t.equal(await bed.metric('legate_http_refused_total{reason="body-too-large"}'), 4);
  await idle(bed);
});

t.test('max_requests', async (t) => {
  const one = await instance(t, 'a');
  const limits = { maxRequests: 1, maxQueue: 2, queueTimeoutMs: 500 };
  const { bed, clock, set, session } = await before(t, [one], limits);
  const queued = (expected: number): Promise<unknown> =>
    waitFor(`${expected} wait`, async () => (await bed.metric('legate_http_queued_count{service="db"}')) === expected);
  const first = ask(session, '/slow1');
  await held(1, one);
  const second = open(session, '/slow2');
  await queued(1);
  const third = ask(session, '/slow3', { ':method': 'POST', 'content-type': 'application/grpc' });
  await queued(2);
  t.match(await ask(session, '/slow4'), {
    status: 503,
    headers: { 'retry-after': '1', 'legate-reason': /too many wait/ },
  });
  second.close(NGHTTP2_CANCEL);
  await queued(1);
  await clock.advance(300);
  const fifth = ask(session, '/slow5');
  await queued(2);
  await clock.advance(200);
  t.match(await third, { headers: { 'grpc-status': '8', 'grpc-message': /not its turn within 500ms/ } });
  finish(one.held[0], 'one');
  t.equal((await first).body, 'one');
  await held(2, one);
  t.equal(one.requests[1]?.[':path'], '/slow5');
  const gone = ask(session, '/slow6');
  await queued(1);
  set({});
  await held(3, one);
  for (const stream of one.held.slice(1)) finish(stream, 'more');
  t.same([(await fifth).body, (await gone).body], ['more', 'more']);
  t.equal(await count(bed, 'rejected'), 2);
  set(limits);
  const runs = open(session, '/slow7');
  await held(4, one);
  const waits = open(session, '/slow8');
  await queued(1);
  session.destroy();
  t.ok(runs.destroyed && waits.destroyed);
  await queued(0);
  await idle(bed);
  await waitFor('the instance is left alone', () => one.held.every(({ closed }) => closed));
});

t.test('forwarding', async (t) => {
  const one = await instance(t, 'a');
  const { set, session } = await before(t, [one], {});
  const said = { 'x-forwarded-for': '10.0.0.9', 'x-forwarded-proto': 'https', forwarded: 'for=10.0.0.9' };
  for (const [forwarding, address, proto, forwarded] of [
    ['append', '10.0.0.9, 127.0.0.1', 'https', 'for=10.0.0.9'],
    ['set', '127.0.0.1', 'http', undefined],
    ['leave', '10.0.0.9', 'https', 'for=10.0.0.9'],
  ] as const) {
    set({ forwarding });
    await ask(session, '/', said);
    const headers = one.requests.at(-1);
    t.same(
      [headers?.['x-forwarded-for'], headers?.['x-forwarded-proto'], headers?.forwarded],
      [address, proto, forwarded],
      forwarding,
    );
  }
});

t.test('upgrade and connect', async (t) => {
  const one = await instance(t, 'a');
  const { bed, clock, set, session } = await before(t, [one], { timeoutMs: 50 });
  await ask(session, '/');
  const websocket = { ':method': 'CONNECT', ':protocol': 'websocket', ':authority': 'db', ':scheme': 'http' };
  const echoed = async (stream: ClientHttp2Stream): Promise<void> => {
    const answer = answerOf(stream);
    stream.write('hello');
    await once(stream, 'data');
    await clock.advance(1000);
    stream.end(' again');
    t.match(await answer, { status: 200, body: 'hello again', code: 0 });
  };
  await echoed(open(session, '/chat', websocket, false));
  t.match(one.requests.at(-1), { ':protocol': 'websocket', ':path': '/chat' });
  const plain = { ':method': 'CONNECT', ':authority': 'db:80' };
  const tunnel = (): ClientHttp2Stream => {
    const stream = session.request(plain, { endStream: false });
    stream.on('error', () => undefined);
    return stream;
  };
  t.match(await answerOf(tunnel()), { status: 405 });
  set({ connect: 'on', upgrade: 'off', timeoutMs: 50 });
  await echoed(tunnel());
  t.match(await answerOf(open(session, '/chat', websocket, false)), {
    status: 403,
    headers: { 'legate-reason': /upgrade: off/ },
  });
  const old = await instance(t, 'old', false);
  const other = await before(t, [old], {});
  await ask(other.session, '/');
  t.match(await answerOf(open(other.session, '/chat', websocket, false)), { status: 501 });
  await idle(bed);
  await idle(other.bed);
});

t.test('hedge_after', async (t) => {
  const instances = [await instance(t, 'a'), await instance(t, 'b')];
  const { bed, clock, set, session } = await before(t, instances, { hedgeAfterMs: 20 });
  const all = (): ServerHttp2Stream[] => instances.flatMap((one) => one.held);
  const failures = (): Promise<number> => bed.metric('legate_link_connect_failures_total{service="db"}');
  /** Asks, and gives its answer, who was asked first and who second. */
  const both = async (stream: ClientHttp2Stream) => {
    const { length } = all();
    const answer = answerOf(stream);
    await held(length + 1, ...instances);
    const first = instances.findIndex((one) => one.held.at(-1)?.closed === false);
    await clock.advance(20);
    await held(length + 2, ...instances);
    const [a, b] = [instances[first]?.held.at(-1), instances[1 - first]?.held.at(-1)];
    return { answer, first: a, second: b };
  };
  const cancelled = (): number =>
    instances.flatMap(({ codes }) => codes).filter((code) => code === NGHTTP2_CANCEL).length;
  const put = open(session, '/1', { ':method': 'PUT' }, false);
  put.end('a body that is kept');
  const one = await both(put);
  finish(one.second, 'from the second');
  t.match(await one.answer, { status: 200, body: 'from the second', code: 0 });
  await waitFor('the first is left alone', () => cancelled() === 1 && one.first?.closed === true);
  const two = await both(open(session, '/2'));
  finish(two.first, 'from the first');
  t.match(await two.answer, { body: 'from the first' });
  await waitFor('the second is left alone', () => cancelled() === 2 && two.second?.closed === true);
  t.same([await count(bed, 'hedges'), await failures()], [2, 0], 'who lost has not failed');
  const three = await both(open(session, '/3'));
  three.first?.close(constants.NGHTTP2_INTERNAL_ERROR);
  await waitFor('it is gone', async () => (await failures()) === 1);
  finish(three.second, 'who lives');
  t.match(await three.answer, { status: 200, body: 'who lives' });
  const four = await both(open(session, '/4'));
  four.second?.close(constants.NGHTTP2_INTERNAL_ERROR);
  await waitFor('it is gone', async () => (await failures()) === 2);
  finish(four.first, 'who stayed');
  t.match(await four.answer, { status: 200, body: 'who stayed' });
  const stream = open(session, '/5');
  const five = await both(stream);
  stream.close(NGHTTP2_CANCEL);
  await waitFor('both are left alone', () => five.first?.closed === true && five.second?.closed === true);
  const { length } = all();
  const calls = [
    ask(session, '/6', { ':method': 'POST' }),
    ask(session, '/6', { ':method': 'POST', 'content-type': 'application/grpc' }),
  ];
  await held(length + 2, ...instances);
  await clock.advance(1000);
  t.equal(all().length, length + 2, 'what may not be done twice is asked once');
  for (const waiting of all().slice(-2)) waiting.close(NGHTTP2_CANCEL);
  for (const waiting of all()) if (!waiting.closed) waiting.close(NGHTTP2_CANCEL);
  await Promise.all(calls);
  set({ hedgeAfterMs: 20, tryTimeoutMs: 50, retries: 0 });
  const last = await both(open(session, '/7'));
  await clock.advance(30);
  await waitFor('the first has had its time', () => last.first?.closed === true);
  await clock.advance(20);
  t.match(await last.answer, { status: 504, headers: { 'legate-reason': /no response within 50ms/ } });
  await idle(bed);
});
