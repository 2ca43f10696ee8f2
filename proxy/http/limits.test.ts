import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import type { FurtherSettings } from '../../src/model/service-settings.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, dial, instanceOf, outcome, serviceOf, startBed } from '../link-plane.fixture.ts';
import { Admission } from './admission.ts';

/** An instance that says its name to `/`, `half` of an answer to `/half`, and keeps all else waiting. */
interface Instance {
  readonly port: number;
  readonly requests: IncomingMessage[];
  /** Those that wait. */
  readonly held: ServerResponse[];
  readonly sockets: Set<Socket>;
  /** Answers that were given up before their end. */
  aborted: number;
}

async function instance(t: Test, name: string): Promise<Instance> {
  const one = { port: 0, requests: [], held: [], sockets: new Set<Socket>(), aborted: 0 } as Instance & {
    port: number;
  };
  const server = createServer((request, response) => {
    one.requests.push(request);
    request.resume();
    response.on('close', () => {
      if (!response.writableFinished) one.aborted += 1;
    });
    if (request.url === '/') request.on('end', () => response.end(name));
    else if (request.url === '/half') response.write('half');
    else one.held.push(response);
  });
  server.on('connection', (socket) => {
    one.sockets.add(socket);
    socket.on('close', () => one.sockets.delete(socket));
  });
  const echo = (_request: IncomingMessage, socket: Socket): void => {
    one.requests.push(_request);
    const isTunnel = _request.method === 'CONNECT';
    if (_request.url === 'no:1') socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n');
    else if (isTunnel) socket.write('HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\n');
    else socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
    socket.on('data', (chunk) => socket.write(chunk));
    socket.on('end', () => socket.end());
    socket.on('error', () => undefined);
  };
  server.on('upgrade', echo);
  server.on('connect', (request, socket, early: Buffer) => {
    echo(request, socket as Socket);
    if (early.length > 0) socket.write(early);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of one.sockets) socket.destroy();
    return new Promise((resolve) => server.close(resolve));
  });
  one.port = (server.address() as AddressInfo).port;
  return one;
}

/** A service with these instances whose settings may change. */
async function before(t: Test, instances: readonly Instance[], settings: FurtherSettings, clock = new ManualClock()) {
  const records = instances.map(({ port }, index) => instanceOf({ name: `i${index}`, port, protocol: 'http' }));
  const links = [0, 1].map(() => ({ service: 'db', listen: { address: '127.0.0.1', port: 0 } }));
  const bed = await startBed(t, { services: [serviceOf(records, { protocol: 'http', ...settings })], clock, links });
  const set = (more: FurtherSettings): void => bed.set(serviceOf(records, { protocol: 'http', ...more }));
  return { bed, clock, set };
}

/** A client's connection, and what it has been told. */
class Client {
  readonly socket: Socket;
  text = '';
  readonly over: Promise<string>;

  constructor(t: Test, bed: Bed, text = '', port = bed.port) {
    this.socket = dial(t, port);
    this.socket.on('data', (chunk: Buffer) => {
      this.text += chunk.toString('latin1');
    });
    this.over = outcome(this.socket).then(({ how }) => how);
    if (text !== '') this.say(text);
  }

  say(text: string): void {
    this.socket.write(Buffer.from(text, 'latin1'));
  }

  heard(pattern: RegExp): Promise<unknown> {
    return waitFor(`${pattern}, not ${this.text}`, () => pattern.test(this.text));
  }
}

const ask = (path: string, method = 'GET', more = ''): string =>
  `${method} ${path} HTTP/1.1\r\nHost: db\r\n${more}\r\n`;
const arrived = (count: number, ...instances: readonly Instance[]): Promise<unknown> =>
  waitFor(`${count} requests`, () => instances.reduce((sum, { requests }) => sum + requests.length, 0) === count);
const idle = (bed: Bed): Promise<unknown> =>
  waitFor('nothing runs', () => bed.plane.links()[0]?.backends.every(({ active }) => active === 0));
const count = (bed: Bed, what: string): Promise<number> => bed.metric(`legate_http_${what}_total{service="db"}`);

t.test('timeout', async (t) => {
  const one = await instance(t, 'a');
  const { bed, clock, set } = await before(t, [one], {});
  const client = new Client(t, bed, ask('/slow'));
  await arrived(1, one);
  await clock.advance(30_000);
  set({ timeoutMs: 80 });
  one.held[0]?.end('in the end');
  await client.heard(/in the end$/);
  client.say(ask('/slow'));
  await arrived(2, one);
  await clock.advance(79);
  t.notMatch(client.text, /504/);
  await clock.advance(1);
  await client.heard(/504 Gateway Timeout.*Legate-Reason: the request has taken longer than 80ms\r\n/s);
  await waitFor('the instance is left alone', () => one.aborted === 1);
  client.say(ask('/'));
  await client.heard(/\r\n\r\na$/);
  t.equal(await count(bed, 'timeouts'), 1);
  client.say(ask('/half'));
  await client.heard(/half/);
  await clock.advance(80);
  t.equal(await client.over, 'ECONNRESET', 'half an answer is broken off');
  const upload = new Client(t, bed, `${ask('/', 'POST', 'Content-Length: 9\r\n')}some`);
  await arrived(5, one);
  await clock.advance(80);
  await upload.heard(/^HTTP\/1\.1 504 .*Connection: close/s);
  set({ timeoutMs: 3000 });
  const long = new Client(t, bed, ask('/slow'));
  await arrived(6, one);
  await clock.advance(3000 + 250);
  await long.heard(/^HTTP\/1\.1 504 .*longer than 3s/s);
  await idle(bed);
  t.equal(await count(bed, 'timeouts'), 4);
  set({ timeoutMs: 50 });
  const upgraded = new Client(t, bed, ask('/', 'GET', 'Connection: Upgrade\r\nUpgrade: echo\r\n'));
  await upgraded.heard(/^HTTP\/1\.1 101 /);
  await clock.advance(10_000);
  upgraded.say('still there');
  await upgraded.heard(/still there$/);
  upgraded.socket.destroy();
  await idle(bed);
});

t.test('a body that comes byte by byte', async (t) => {
  const one = await instance(t, 'a');
  const { bed, clock, set } = await before(t, [one], {});
  const received = (): number => bed.plane.links().reduce((sum, { bytes }) => sum + bytes.received, 0);
  /** A piece each second to each of them. */
  const drip = async (seconds: number, pieces: readonly (readonly [Client, string])[]): Promise<void> => {
    for (let second = 0; second < seconds; second += 1) {
      const expected = pieces.reduce((sum, [, piece]) => sum + piece.length, received());
      for (const [client, piece] of pieces) client.say(piece);
      await waitFor('what was sent is read', () => received() === expected, { everyMs: 1 });
      await clock.advance(1000);
    }
  };
  const patient = new Client(t, bed, ask('/', 'POST', 'Content-Length: 130\r\n'));
  await arrived(1, one);
  await drip(129, [[patient, 'x']]);
  t.equal(patient.text, '', 'without `timeout` only silence ends it');
  patient.say('x');
  await patient.heard(/^HTTP\/1\.1 200 .*\r\n\r\na$/s);
  set({ timeoutMs: 20_000 });
  const counted = new Client(t, bed, ask('/', 'POST', 'Content-Length: 1000\r\n'));
  const chunked = new Client(t, bed, ask('/', 'PUT', 'Transfer-Encoding: chunked\r\n'));
  await arrived(3, one);
  await drip(19, [
    [counted, 'x'],
    [chunked, '1\r\nx\r\n'],
  ]);
  t.equal(counted.text + chunked.text, '');
  await clock.advance(1250);
  for (const client of [counted, chunked]) await client.heard(/^HTTP\/1\.1 504 .*longer than 20s.*Connection: close/s);
  await waitFor('the instance is told', () => one.aborted === 2);
  t.equal(await count(bed, 'timeouts'), 2);
  await idle(bed);
});

t.test('try_timeout and retries', async (t) => {
  const slow = await instance(t, 'slow');
  const other = await instance(t, 'other');
  const { bed, clock, set } = await before(t, [slow, other], { tryTimeoutMs: 40 });
  const client = new Client(t, bed, ask('/'));
  await client.heard(/(slow|other)$/);
  // Round robin: one of the next two meets each.
  for (const [turn, method, expected] of [
    [0, 'GET', /200 OK.*late/s],
    [1, 'POST', /504 Gateway.*no response within 40ms/s],
  ] as const) {
    const before = slow.held.length + other.held.length;
    const asker = new Client(t, bed, ask('/slow', method, 'Content-Length: 0\r\n'));
    await waitFor('it is asked', () => slow.held.length + other.held.length === before + 1);
    await clock.advance(40);
    if (method === 'GET') {
      await waitFor('another is asked', () => slow.held.length + other.held.length === before + 2);
      for (const response of [...slow.held, ...other.held]) response.end('late');
    }
    await asker.heard(expected);
    t.equal(await count(bed, 'retries'), 1);
    t.equal(await count(bed, 'timeouts'), turn + 1);
  }
  const upload = new Client(t, bed, `${ask('/slow', 'POST', 'Content-Length: 9\r\n')}some`);
  const open = (): number => slow.held.length + other.held.length;
  await waitFor('it is asked', () => open() === 4);
  await clock.advance(1000);
  t.equal(upload.text, '', 'the time of a try begins when all of the request is there');
  upload.say(' more');
  await waitFor('all of it', () => [...slow.requests, ...other.requests].every(({ complete }) => complete));
  await clock.advance(40);
  await upload.heard(/^HTTP\/1\.1 504/);
  set({ tryTimeoutMs: 40, retries: 0 });
  const once = new Client(t, bed, ask('/slow'));
  await waitFor('it is asked', () => open() === 5);
  await clock.advance(40);
  await once.heard(/^HTTP\/1\.1 504/);
  t.equal(open(), 5, 'and nobody else');
  // A kept connection that ends when the request was read: that it was old proves nothing.
  const kept = new Client(t, bed, ask('/') + ask('/'));
  await kept.heard(/(slow|other)[\s\S]*(slow|other)$/);
  const dying = new Client(t, bed, ask('/slow'));
  await waitFor('it is asked', () => open() === 6);
  for (const response of [...slow.held, ...other.held]) response.destroy();
  await dying.heard(/^HTTP\/1\.1 502/);
  t.equal(open(), 6, 'and nobody else');
  await idle(bed);
});

t.test('max_body', async (t) => {
  const one = await instance(t, 'a');
  const { bed, set } = await before(t, [one], { maxBodyBytes: 8 });
  const large = new Client(t, bed, ask('/', 'POST', 'Content-Length: 9\r\nExpect: 100-continue\r\n'));
  t.equal(await large.over, 'end');
  t.match(large.text, /^HTTP\/1\.1 413 .*Legate-Reason: the body of the request is larger than 8\r\n/s);
  t.equal(one.requests.length, 0, 'nobody was asked');
  const chunked = 'Transfer-Encoding: chunked\r\n';
  const fits = new Client(t, bed, `${ask('/', 'POST', chunked)}4\r\nlong\r\n4\r\nmore\r\n0\r\n\r\n`);
  await fits.heard(/200 OK.*a$/s);
  const grows = new Client(t, bed, `${ask('/slow', 'POST', chunked)}4\r\nlong\r\n`);
  await waitFor('it is asked', () => one.requests.length === 2);
  grows.say('5\r\nmore!\r\n0\r\n\r\n');
  t.equal(await grows.over, 'end');
  t.match(grows.text, /^HTTP\/1\.1 413 /);
  await waitFor('the instance is told', () => one.aborted === 1);
  t.equal(one.requests[1]?.complete, false, 'and never had all of it');
  const answered = new Client(t, bed, `${ask('/half', 'POST', chunked)}4\r\nlong\r\n`);
  await answered.heard(/half/);
  answered.say('5\r\nmore!\r\n');
  t.equal(await answered.over, 'ECONNRESET');
  t.equal(await bed.metric('legate_http_refused_total{reason="body-too-large"}'), 3);
  set({});
  const free = new Client(t, bed, `${ask('/', 'POST', 'Content-Length: 9\r\n')}long more`);
  await free.heard(/200 OK/);
  await idle(bed);
});

t.test('a client that has ended its side waits in no queue, and not for long', async (t) => {
  const [one, other] = [await instance(t, 'a'), await instance(t, 'b')];
  const { bed, clock } = await before(t, [one, other], { maxRequests: 1, tryTimeoutMs: 30_000, retries: 2 });
  const first = new Client(t, bed, ask('/slow1'));
  await arrived(1, one, other);
  const second = new Client(t, bed, ask('/slow2', 'POST', 'Content-Length: 0\r\n'));
  await waitFor('one waits', async () => (await bed.metric('legate_http_queued_count{service="db"}')) === 1);
  second.socket.end();
  t.equal(await second.over, 'ECONNRESET');
  t.equal(await bed.metric('legate_http_queued_count{service="db"}'), 0);
  first.socket.end();
  for (let passed = 0; passed < 9000; passed += 250) await clock.advance(250);
  t.equal(one.aborted + other.aborted, 0, 'it may still wait for its answer');
  for (let passed = 0; passed < 2000; passed += 250) await clock.advance(250);
  t.equal(await first.over, 'ECONNRESET');
  await waitFor('the instance is told', () => one.aborted + other.aborted === 1);
  t.equal(one.requests.length + other.requests.length, 1, 'and nobody else was asked');
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="",end="client gone"}'), 2);
  await idle(bed);
});

t.test('max_requests: who waits, for how long, and who does not', async (t) => {
  const one = await instance(t, 'a');
  const limits = { maxRequests: 1, maxQueue: 2, queueTimeoutMs: 500 };
  const { bed, clock, set } = await before(t, [one], limits);
  const queued = async (count: number): Promise<unknown> =>
    waitFor(`${count} wait`, async () => (await bed.metric('legate_http_queued_count{service="db"}')) === count);
  const first = new Client(t, bed, ask('/slow1'));
  await arrived(1, one);
  const second = new Client(t, bed, ask('/slow2'));
  await queued(1);
  const ports = bed.plane.links().map(({ address }) => Number(address.split(':').at(-1)));
  const other = ports.find((port) => port !== bed.port);
  const third = new Client(t, bed, ask('/slow3'), other);
  await queued(2);
  const fourth = new Client(t, bed, ask('/slow4'));
  await fourth.heard(/^HTTP\/1\.1 503 .*Legate-Reason: too many requests run, and too many wait.*Retry-After: 1\r\n/s);
  second.socket.resetAndDestroy();
  await queued(1);
  await clock.advance(300);
  const fifth = new Client(t, bed, ask('/slow5'));
  await queued(2);
  await clock.advance(200);
  await third.heard(/^HTTP\/1\.1 503 .*too many requests run: it was not its turn within 500ms.*Retry-After/s);
  await queued(1);
  one.held[0]?.end('one');
  await first.heard(/one$/);
  await arrived(2, one);
  t.equal(one.requests[1]?.url, '/slow5');
  t.equal(await count(bed, 'rejected'), 2);
  const sixth = new Client(t, bed, ask('/slow6'));
  await queued(1);
  set({ ...limits, timeoutMs: 60 });
  const seventh = new Client(t, bed, `${ask('/slow7', 'POST', 'Content-Length: 5\r\n')}hi`);
  await queued(2);
  await clock.advance(60);
  await seventh.heard(/^HTTP\/1\.1 504 .*waiting for its turn/s);
  set({ ...limits, maxRequests: 0 });
  await arrived(3, one);
  for (const response of one.held) response.end('more');
  await Promise.all([fifth.heard(/more$/), sixth.heard(/more$/)]);
  set(limits);
  const upgraded = new Client(t, bed, ask('/', 'GET', 'Connection: Upgrade\r\nUpgrade: echo\r\n'));
  await upgraded.heard(/^HTTP\/1\.1 101 /);
  const last = new Client(t, bed, ask('/') + ask('/', 'GET', 'Connection: close\r\n'));
  await queued(1);
  upgraded.socket.end();
  t.equal(await last.over, 'end', 'a connection that was upgraded runs until its end');
  t.equal(last.text.match(/200 OK/g)?.length, 2);
  await idle(bed);
  await queued(0);
});

t.test('a turn is for those who wait longest', async (t) => {
  const admission = new Admission(3);
  admission.update({ maxRequests: 4, maxQueue: 299_999 });
  const order: number[] = [];
  const waiting = (turn: number, isOver = false) => ({
    admitted: () => {
      order.push(turn);
      if (isOver) admission.leave();
    },
  });
  t.same(
    [admission.enter(waiting(0)), admission.enter(waiting(0)), admission.enter(waiting(1))],
    ['runs', 'runs', 'waits'],
    'a third of the limit, rounded up',
  );
  const second = waiting(2);
  admission.enter(second);
  admission.enter(waiting(3));
  admission.giveUp(second);
  admission.leave();
  t.same(order, [1]);
  for (let turn = 4; admission.enter(waiting(turn, true)) === 'waits'; turn += 1);
  t.equal(admission.queued, 100_000);
  admission.leave();
  t.same([order.length, admission.queued, admission.running], [2, 99_999, 2]);
  admission.leave();
  t.same([admission.queued, admission.running, order.at(-1)], [0, 1, 100_002], 'a long queue is no deep stack');
});

t.test('forwarding', async (t) => {
  const one = await instance(t, 'a');
  const { bed, set } = await before(t, [one], {});
  const client = new Client(t, bed);
  const said = 'X-Forwarded-For: 10.0.0.9\r\nX-Forwarded-Proto: https\r\nForwarded: for=10.0.0.9\r\n';
  for (const [forwarding, address, proto, forwarded] of [
    ['append', '10.0.0.9, 127.0.0.1', 'https', 'for=10.0.0.9'],
    ['set', '127.0.0.1', 'http', undefined],
    ['leave', '10.0.0.9', 'https', 'for=10.0.0.9'],
    ['append', '10.0.0.9, 127.0.0.1', 'https', 'for=10.0.0.9'],
  ] as const) {
    const { length } = one.requests;
    set({ forwarding });
    client.say(ask('/', 'GET', said));
    await arrived(length + 1, one);
    const { headers } = one.requests[length] ?? {};
    t.same(
      [headers?.['x-forwarded-for'], headers?.['x-forwarded-proto'], headers?.forwarded],
      [address, proto, forwarded],
      forwarding,
    );
    await waitFor('its answer', () => client.text.match(/200 OK/g)?.length === length + 1);
  }
  client.socket.destroy();
});

t.test('upgrade and connect', async (t) => {
  const one = await instance(t, 'a');
  const { bed, set } = await before(t, [one], { upgrade: 'off' });
  const refused = new Client(t, bed, ask('/', 'GET', 'Connection: Upgrade\r\nUpgrade: websocket\r\n'));
  t.equal(await refused.over, 'end');
  t.match(refused.text, /^HTTP\/1\.1 403 .*Legate-Reason: connections to this service may not change.*upgrade: off/s);
  const h2c = 'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n';
  await new Client(t, bed, ask('/', 'GET', h2c)).heard(/200 OK/);
  await new Client(t, bed, ask('db:80', 'CONNECT').replace('Host: db\r\n', '')).heard(/^HTTP\/1\.1 400/);
  const connect = (target: string, more = ''): string => `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${more}\r\n`;
  await new Client(t, bed, connect('db:80')).heard(/^HTTP\/1\.1 405/);
  t.equal(one.requests.length, 1);
  set({ connect: 'on' });
  const tunnel = new Client(t, bed, `${connect('db:80')}GET / early`);
  await tunnel.heard(/early$/);
  t.match(
    tunnel.text,
    /^HTTP\/1\.1 200 OK\r\nX-A: b\r\n\r\nGET \/ early$/,
    'without a length, which would mean nothing',
  );
  tunnel.say(' and late');
  await tunnel.heard(/early and late$/);
  tunnel.socket.end();
  t.equal(await tunnel.over, 'end');
  t.match(one.requests.at(-1), { method: 'CONNECT', url: 'db:80' });
  const denied = new Client(t, bed, `${connect('no:1')}${ask('/')}`);
  t.equal(await denied.over, 'end');
  t.match(denied.text, /^HTTP\/1\.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n$/);
  await new Client(t, bed, connect('db:80', 'Content-Length: 1\r\n')).heard(/^HTTP\/1\.1 400/);
  await idle(bed);
});

t.test('hedge_after', async (t) => {
  const instances = [await instance(t, 'a'), await instance(t, 'b')];
  const { bed, clock, set } = await before(t, instances, { hedgeAfterMs: 20 });
  const all = (): ServerResponse[] => instances.flatMap(({ held }) => held);
  const client = new Client(t, bed);
  /** Asks, and gives who was asked first and who second. */
  const both = async (text: string, asker = client): Promise<readonly [Instance, Instance]> => {
    const before = all().length;
    asker.say(text);
    await waitFor('it is asked', () => all().length === before + 1);
    const first = instances.findIndex(({ held }) => held.at(-1)?.writableEnded === false);
    await clock.advance(20);
    await waitFor('another is asked', () => all().length === before + 2);
    return [instances[first] as Instance, instances[1 - first] as Instance];
  };
  const aborted = (): number => instances.reduce((sum, one) => sum + one.aborted, 0);
  const body = 'PUT body that is kept';
  const [slow, quick] = await both(ask('/1', 'PUT', `Content-Length: ${body.length}\r\n`) + body);
  quick.held.at(-1)?.end('from the second');
  await client.heard(/200 OK.*from the second$/s);
  await waitFor('the first is left alone', () => aborted() === 1 && slow.aborted === 1);
  t.equal(quick.requests.at(-1)?.headers['content-length'], String(body.length));
  const [late, loser] = await both(ask('/2'));
  late.held.at(-1)?.end('from the first');
  await client.heard(/from the first$/);
  await waitFor('the second is left alone', () => aborted() === 2);
  loser.held.at(-1)?.end('too late');
  client.say(ask('/'));
  await client.heard(/from the firstHTTP\/1\.1 200 OK.*\r\n\r\n[ab]$/s);
  t.equal(await count(bed, 'hedges'), 2);
  t.equal(await bed.metric('legate_link_connect_failures_total{service="db"}'), 0, 'who lost has not failed');

  const [dies, lives] = await both(ask('/3'));
  dies.held.at(-1)?.destroy();
  await waitFor('it is gone', async () => (await bed.metric('legate_link_connect_failures_total{service="db"}')) === 1);
  lives.held.at(-1)?.end('who lives');
  await client.heard(/who lives$/);
  const [stays, goes] = await both(ask('/4'));
  goes.held.at(-1)?.destroy();
  await waitFor('it is gone', async () => (await bed.metric('legate_link_connect_failures_total{service="db"}')) >= 1);
  stays.held.at(-1)?.end('who stayed');
  await client.heard(/who stayed$/);
  const [, gone] = await both(ask('/5'), new Client(t, bed));
  t.ok(gone);
  bed.plane.links();
  for (const one of instances) t.equal(one.held.at(-1)?.writableEnded, false);
  const leaving = new Client(t, bed);
  await both(ask('/6'), leaving);
  leaving.socket.resetAndDestroy();
  await waitFor('both are left alone', () => instances.every(({ aborted }) => aborted >= 2));

  const before1 = all().length;
  const post = new Client(t, bed, ask('/7', 'POST', 'Content-Length: 0\r\n'));
  await waitFor('it is asked', () => all().length === before1 + 1);
  await clock.advance(1000);
  t.equal(all().length, before1 + 1, 'what may not be done twice is asked once');
  post.socket.destroy();
  set({ hedgeAfterMs: 20, tryTimeoutMs: 50, retries: 0 });
  const slowBoth = new Client(t, bed);
  await both(ask('/8'), slowBoth);
  await clock.advance(30);
  t.equal(slowBoth.text, '', 'the second has its own time');
  await clock.advance(20);
  await slowBoth.heard(/^HTTP\/1\.1 504 .*no response within 50ms/s);
});
