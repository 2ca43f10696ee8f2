import { execFile } from 'node:child_process';
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  connect,
  constants,
  createServer,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { AddressInfo } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  type Client,
  credentials,
  makeGenericClientConstructor,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  type sendUnaryData,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import { ManualClock, systemClock } from '../../src/base/clock.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { Service } from '../../src/catalog/snapshot.ts';
import type { Instance } from '../../src/model/instance.ts';
import type { Policy } from '../../src/model/policy.ts';
import type { RouteRule } from '../../src/model/routes.ts';
import { unless } from '../../test/support/needs.ts';
import { intents, policyOf } from '../../test/support/policies.ts';
import { waitFor } from '../../test/support/wait.ts';
import { copyMs, maxCopies } from '../http/routing/mirrors.ts';
import { type Bed, deadPort, instanceOf, otherHost, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';
import { Permission } from '../permission.ts';
import { at, mesh } from '../tunnel/mesh.fixture.ts';
import { maxSessionsPerInstance } from './bounds.ts';
import { resetStream } from './outside-parser.ts';

interface Got {
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
  readonly trailers: IncomingHttpHeaders;
}

type Serve = (stream: ServerHttp2Stream, got: Got) => void;

/** Whole requests, in order of their ends, and what is left of them. */
interface Served {
  readonly port: number;
  readonly got: Got[];
  readonly codes: number[];
  readonly streams: Set<ServerHttp2Stream>;
  readonly sessions: Set<ServerHttp2Session>;
}

async function served(t: Test, serve: Serve, settings: object = {}): Promise<Served> {
  const server = createServer({ settings });
  const got: Got[] = [];
  const codes: number[] = [];
  const streams = new Set<ServerHttp2Stream>();
  const sessions = new Set<ServerHttp2Session>();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('error', () => undefined);
    session.on('close', () => sessions.delete(session));
  });
  server.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    let body = '';
    let trailers: IncomingHttpHeaders = {};
    streams.add(stream);
    stream.on('error', () => undefined);
    stream.on('close', () => {
      streams.delete(stream);
      codes.push(stream.rstCode ?? -1);
    });
    stream.on('data', (chunk: Buffer) => {
      body += chunk.toString('latin1');
    });
    stream.on('trailers', (given) => {
      trailers = given;
    });
    stream.on('end', () => {
      if (stream.rstCode !== constants.NGHTTP2_NO_ERROR) return;
      const one = { headers, body, trailers };
      got.push(one);
      serve(stream, one);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(async () => {
    await turn();
    for (const session of sessions) session.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, got, codes, streams, sessions };
}

const saying =
  (text: string): Serve =>
  (stream) => {
    stream.respond({ ':status': 200 });
    stream.end(text);
  };

const of = (name: string, service: string, { port }: { port: number }, fields: Partial<Instance> = {}): Instance =>
  instanceOf({ name, service, port, protocol: 'http2', ...fields });

const service = (name: string, instances: readonly Instance[], fields: Partial<Service> = {}): Service =>
  serviceOf(instances, { name, protocol: 'http2', ...fields });

const mirrored = (rule: Partial<RouteRule> = {}): Partial<Service> => ({
  routes: [{ match: {}, mirror: { service: 'copy' }, ...rule }],
});

function client(t: Test, bed: Bed): ClientHttp2Session {
  const session = connect(`http://127.0.0.1:${bed.port}`);
  session.on('error', () => undefined);
  t.teardown(async () => {
    await turn();
    session.destroy();
  });
  return session;
}

interface Asked {
  readonly headers?: OutgoingHttpHeaders;
  readonly body?: readonly Buffer[];
  readonly trailers?: OutgoingHttpHeaders;
}

function ask(session: ClientHttp2Session, { headers = {}, body, trailers }: Asked = {}): Promise<string> {
  const method = body === undefined ? 'GET' : 'POST';
  const stream = session.request(
    { ':path': '/', ':method': method, ...headers },
    { endStream: body === undefined, waitForTrailers: trailers !== undefined },
  );
  let status = '';
  let text = '';
  stream.on('wantTrailers', () => stream.sendTrailers(trailers ?? {}));
  stream.on('response', (given) => {
    status = String(given[':status']);
  });
  stream.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
  });
  stream.on('error', () => undefined);
  for (const piece of body ?? []) stream.write(piece);
  if (body !== undefined) stream.end();
  return new Promise((resolve) => stream.on('close', () => resolve(status === '200' ? text : `${status} ${text}`)));
}

const copies = async (bed: Bed, end: string, name = 'copy'): Promise<number> => {
  const count = await bed.metric(`legate_http_mirrored_requests_total{service="${name}",end="${end}"}`);
  return Number.isNaN(count) ? 0 : count;
};

const streams = (bed: Bed): Promise<number> => bed.metric('legate_http2_streams_count');
const connections = (bed: Bed): Promise<number> => bed.metric('legate_http2_instance_connections');

t.test('what is copied, to whom, and as what', async (t) => {
  const own = await served(t, saying('own'));
  const copy = await served(t, saying('x'.repeat(300_000)));
  const canary = await served(t, saying('canary'));
  const instances = [of('own', 'db', own), of('canary', 'db', canary, { tags: ['canary'], weight: 0 })];
  const copying = service('copy', [of('copy', 'copy', copy)]);
  const rule: RouteRule = {
    match: {},
    mirror: { service: 'copy' },
    set: { 'x-env': 'test' },
    remove: ['x-secret'],
    add: '/v2',
  };
  const bed = await startBed(t, { services: [service('db', instances, { routes: [rule] }), copying] });
  const session = client(t, bed);
  const headers = { ':path': '/a?b', 'x-secret': '1', 'x-a': '1', 'content-length': '5' };
  t.equal(
    await ask(session, { headers, body: [Buffer.from('hel'), Buffer.from('lo')], trailers: { 'x-sum': '9' } }),
    'own',
  );
  await waitFor('the copy', async () => (await copies(bed, '2xx')) === 1);
  const [first] = copy.got;
  t.match(first, { body: 'hello', trailers: { 'x-sum': '9' } });
  const { 'x-legate-mirror': mark, ...rest } = first?.headers ?? {};
  t.equal(mark, '1');
  t.same(rest, own.got[0]?.headers, 'with all that the request itself has, also its id');
  t.match(rest, { ':method': 'POST', ':path': '/v2/a?b', 'x-env': 'test', 'x-a': '1', traceparent: /^00-/ });
  t.match(rest['x-request-id'], /^[0-9a-f]{32}$/);
  t.notOk(rest['x-secret']);

  t.equal(await ask(session), 'own', 'without a body');
  t.equal(await ask(session, { headers: { ':method': 'HEAD' } }), '');
  const piece = Buffer.alloc(10_000, 'x');
  t.equal(await ask(session, { body: Array(6).fill(piece) }), 'own');
  await waitFor('all three', async () => (await copies(bed, '2xx')) === 4);
  t.same(new Set(copy.got.map(({ body }) => body.length)), new Set([5, 0, 60_000]));
  t.equal(await ask(session, { body: Array(7).fill(piece) }), 'own');
  t.equal(await ask(session, { body: Array(7).fill(piece), headers: { 'content-length': '70000' } }), 'own');
  t.equal(await copies(bed, 'too large'), 2);
  await waitFor('nothing runs', async () => (await streams(bed)) === 0 && copy.streams.size === 0);
  t.same(copy.codes, [0, 0, 0, 0], 'all of each answer is read');
  t.ok(Number.isNaN(await bed.metric('legate_http_requests_total{service="copy"')), 'no figure of the service');
  t.equal(await connections(bed), 2, 'copies have connections of their own');

  bed.set(service('db', instances, mirrored({ mirror: { tag: 'canary', percent: 25 } })));
  for (let turn = 0; turn < 8; turn += 1) t.equal(await ask(session), 'own');
  await waitFor('a quarter of them', async () => (await copies(bed, '2xx', 'db')) === 2);
  t.equal(canary.got.length, 2);
  // An instance that is a mirror and answers requests is asked for both over different connections.
  const both = [of('own', 'db', own, { tags: ['canary'] })];
  bed.set(service('db', both, mirrored({ mirror: { tag: 'canary' } })));
  t.equal(await ask(session), 'own');
  await waitFor('its own copy', async () => (await copies(bed, '2xx', 'db')) === 3);
  t.equal(own.sessions.size, 2);
});

t.test('who is not to have a copy', async (t) => {
  const own = await served(t, saying('own'));
  const copy = await served(t, saying('copy'));
  const db = service('db', [of('own', 'db', own)], mirrored());
  const policy = new Latest<Policy | undefined>(policyOf());
  const permission = new Permission({ policy, clock: systemClock, log: silentLog, metrics: new Metrics() });
  const bed = await startBed(t, { services: [db], permission });
  const session = client(t, bed);
  const told = async (message: RegExp | undefined): Promise<void> => {
    await waitFor('what status says', () => {
      const conditions = bed.conditions.list();
      return message === undefined ? conditions.length === 0 : message.test(conditions[0]?.message ?? '');
    });
    t.equal(await ask(session), 'own');
  };
  await told(/a route of db copies requests to copy, which nobody offers/);
  t.match(bed.conditions.list()[0]?.hint, /nothing is copied/);
  bed.set(db, service('copy', [of('copy', 'copy', copy, { protocol: 'http' })], { protocol: 'http' }));
  await told(/copies requests to copy, which speaks http, and not http2/);
  bed.set(db, service('copy', []));
  await told(undefined);
  t.equal(await copies(bed, 'no instance'), 1);
  const offered = service('copy', [of('copy', 'copy', copy, { protocol: 'grpc' })], { protocol: 'grpc' });
  bed.set(db, offered);
  policy.set(policyOf({ intents: intents('deny * copy') }));
  await told(undefined);
  t.equal(bed.plane.links()[0]?.denied.total, 0, 'policy is asked, and nobody is told');
  policy.set(policyOf());
  await told(undefined);
  await waitFor('the only copy', async () => (await copies(bed, '2xx')) === 1);
  t.equal(copy.got.length, 1);
});

t.test('a mirror on another host, and one that is told for whom a connection is', async (t) => {
  const own = await served(t, saying('own'));
  const far = await served(t, saying('far'));
  const db = service('db', [of('own', 'db', own)], mirrored());
  const m = await mesh(t, [
    db,
    service('copy', [at(otherHost, 'far', far.port, { protocol: 'http2', service: 'copy' })]),
  ]);
  t.equal(await ask(client(t, m.bed), { body: [Buffer.from('hello')] }), 'own');
  await waitFor('the copy', async () => (await copies(m.bed, '2xx')) === 1);
  t.match(far.got, [{ body: 'hello', headers: { 'x-legate-mirror': '1' } }]);
  t.match(m.tunnels.heads, [{ consumer: 'host', service: 'copy', instance: 'far', declared: false }]);

  const greetings: string[] = [];
  const told = await startBackend(t, (socket) => {
    socket.once('data', (chunk: Buffer) => greetings.push(chunk.toString('latin1', 0, 12)));
    socket.on('end', () => socket.end());
  });
  m.set(db, service('copy', [of('told', 'copy', told)], { proxyProtocol: 'v2' }));
  const sessions = [client(t, m.bed), client(t, m.bed)];
  for (const session of sessions) t.equal(await ask(session), 'own');
  await waitFor('both', () => greetings.length === 2);
  t.same(new Set(greetings), new Set(['\r\n\r\n\0\r\nQUIT\n']));
  for (const session of sessions) session.close();
  await waitFor('their clients are gone, and they with them', () => told.sockets.size === 0);
});

t.test('requests that do not come to their end', async (t) => {
  const held: ServerHttp2Stream[] = [];
  const own = await served(t, (stream) => held.push(stream));
  const copy = await served(t, saying('copy'));
  const services = [service('db', [of('own', 'db', own)], mirrored()), service('copy', [of('copy', 'copy', copy)])];
  const clock = new ManualClock();
  const bed = await startBed(t, { services, clock });
  const session = client(t, bed);
  // Else the runtime would end it in order before it resets it.
  const half = session.request({ ':path': '/', ':method': 'POST' }, { waitForTrailers: true });
  half.on('error', () => undefined);
  half.write('x');
  await waitFor('the half of it', () => own.streams.size === 1);
  resetStream(half, constants.NGHTTP2_CANCEL);
  await waitFor('it is taken back', () => own.streams.size === 0);

  const slow = session.request({ ':path': '/', ':method': 'POST' });
  const closed = once(slow.resume(), 'close');
  slow.write('x');
  await waitFor('the half of it', () => own.streams.size === 1);
  await clock.advance(copyMs);
  t.equal(await copies(bed, 'streaming'), 1, 'what takes long to come is not waited for');
  slow.end();
  await waitFor('all of it', () => held.length === 1);
  held[0]?.respond({ ':status': 200 });
  held[0]?.end();
  await closed;
  t.equal(copy.sessions.size, 0, 'nobody was asked');
  t.equal(await streams(bed), 0);
});

t.test('mirrors that are in trouble harm nobody', async (t) => {
  const own = await served(t, saying('own'));
  const db = service('db', [of('own', 'db', own)], mirrored());
  const clock = new ManualClock();
  const bed = await startBed(t, { services: [db], clock });
  const session = client(t, bed);
  const burst = async (count: number): Promise<void> => {
    const answers = await Promise.all(
      Array.from({ length: count }, () => ask(session, { body: [Buffer.from('hello')] })),
    );
    t.ok(answers.every((each) => each === 'own'));
  };
  const to = (port: number): void => bed.set(db, service('copy', [of(`p${port}`, 'copy', { port })]));
  const nothingLeft = (): Promise<unknown> => waitFor('nothing runs', async () => (await streams(bed)) === 0);

  await t.test('it hangs', async (t) => {
    const hanging = await served(t, () => undefined);
    to(hanging.port);
    for (let turn = 0; turn < 3; turn += 1) await burst(100);
    await waitFor('as many as there is room for', () => hanging.streams.size === maxCopies);
    t.equal(await copies(bed, 'busy'), 300 - maxCopies);
    t.equal(await streams(bed), maxCopies);
    await clock.advance(copyMs);
    t.equal(await copies(bed, 'timeout'), maxCopies);
    await nothingLeft();
    await waitFor('it is told', () => hanging.streams.size === 0);
    t.ok(hanging.codes.every((code) => code === constants.NGHTTP2_CANCEL));
    await burst(1);
    await waitFor('there is room again', () => hanging.streams.size === 1);
    await clock.advance(copyMs);
  });

  await t.test('it takes bytes and says nothing', async (t) => {
    const mute = await startBackend(t, (socket) => socket.resume().on('end', () => socket.end()));
    const before = await copies(bed, 'timeout');
    to(mute.port);
    await burst(150);
    await waitFor('it is dialled', () => mute.sockets.size === 2);
    await clock.advance(copyMs);
    t.equal((await copies(bed, 'timeout')) - before, 150);
    await nothingLeft();
    await waitFor('it is left alone', () => mute.sockets.size === 0);
  });

  const failed = async (count: number, port: number): Promise<void> => {
    const before = await copies(bed, 'failed');
    to(port);
    await burst(count);
    await waitFor('all have failed', async () => (await copies(bed, 'failed')) - before === count);
    await nothingLeft();
  };
  await t.test('it resets', async (t) => {
    await failed(50, (await served(t, (stream) => resetStream(stream, constants.NGHTTP2_INTERNAL_ERROR))).port);
    const half: Serve = (stream) => {
      // Else the runtime would end it in order before.
      stream.respond({ ':status': 200 }, { waitForTrailers: true });
      stream.write('x');
      resetStream(stream, constants.NGHTTP2_INTERNAL_ERROR);
    };
    await failed(50, (await served(t, half)).port);
    const refusing = await served(t, (stream) => resetStream(stream, constants.NGHTTP2_REFUSED_STREAM));
    await failed(50, refusing.port);
    t.equal(refusing.got.length, 100, 'what it has not looked at it gets once more');
    await failed(20, (await served(t, (stream) => setImmediate(() => stream.session?.destroy()))).port);
    await failed(20, (await startBackend(t, (socket) => socket.destroy())).port);
    await failed(20, (await startBackend(t, (socket) => socket.end('HTTP/1.1 400 no\r\n\r\n'))).port);
  });

  await t.test('it is away', async () => {
    await failed(300, await deadPort());
    t.equal(await bed.metric('legate_link_connect_failures_total{service="copy"}'), 0, 'nobody holds it against it');
  });

  await t.test('it takes one stream at a time', async (t) => {
    const narrow = await served(t, saying('copy'), { maxConcurrentStreams: 1 });
    const before = [await copies(bed, '2xx'), await copies(bed, 'busy'), await copies(bed, 'failed')];
    to(narrow.port);
    await burst(100);
    await nothingLeft();
    const [whole = 0, busy = 0, lost = 0] = [
      (await copies(bed, '2xx')) - (before[0] ?? 0),
      (await copies(bed, 'busy')) - (before[1] ?? 0),
      (await copies(bed, 'failed')) - (before[2] ?? 0),
    ];
    t.same([whole + busy, lost], [100, 0]);
    t.ok(whole >= maxSessionsPerInstance && narrow.sessions.size <= maxSessionsPerInstance, `${whole} are copied`);
  });

  await t.test('it answers more than anybody wants', async (t) => {
    const endless = await served(t, (stream) => {
      stream.respond({ ':status': 200 });
      const more = (): void => {
        while (!stream.destroyed && stream.write(Buffer.alloc(16_384)));
      };
      stream.on('drain', more);
      more();
    });
    to(endless.port);
    await burst(2);
    await waitFor('both are answered', () => endless.streams.size === 2);
    await clock.advance(copyMs);
    await nothingLeft();
    await waitFor('it is told', () => endless.streams.size === 0);
  });
  await clock.advance(70_000);
  t.equal(await connections(bed), 0, 'nothing is kept for nobody');
});

t.test('many requests with a dead mirror', { skip: unless('command:h2load') }, async (t) => {
  const own = await served(t, saying('own'));
  const dead = of('dead', 'copy', { port: await deadPort() });
  const bed = await startBed(t, {
    services: [service('db', [of('own', 'db', own)], mirrored()), service('copy', [dead])],
  });
  const args = ['-n', '3000', '-c', '4', '-m', '40', '-d', '/etc/hostname', `http://127.0.0.1:${bed.port}/`];
  const { stdout } = await promisify(execFile)('h2load', args, { timeout: 60_000 });
  t.match(stdout, /3000 succeeded, 0 failed, 0 errored/);
  await waitFor('no stream is left', async () => (await streams(bed)) === 0);
  t.equal((await copies(bed, 'failed')) + (await copies(bed, 'busy')), 3000);
  t.equal(await connections(bed), own.sessions.size, 'no connection either');
});

const same = (bytes: Buffer): Buffer => bytes;
const method = (path: string, requestStream: boolean, responseStream: boolean) => ({
  path,
  requestStream,
  responseStream,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});
const definition = {
  unary: method('/legate.Test/Unary', false, false),
  gather: method('/legate.Test/Gather', true, false),
  spread: method('/legate.Test/Spread', false, true),
  talk: method('/legate.Test/Talk', true, true),
} satisfies ServiceDefinition;
const TestClient = makeGenericClientConstructor(definition, 'legate.Test');

interface Stream {
  readonly request: Buffer;
  on(event: string, listener: (chunk: Buffer) => void): void;
  write(chunk: Buffer): void;
  end(): void;
}

/** Says what it was called for. */
async function grpcServer(t: Test): Promise<{ port: number; calls: string[] }> {
  const calls: string[] = [];
  const server = new Server();
  const implementation: UntypedServiceImplementation = {
    unary: (call: Pick<Stream, 'request'>, done: sendUnaryData<Buffer>) => {
      calls.push(`unary ${call.request}`);
      done(null, call.request);
    },
    gather: (call: Pick<Stream, 'on'>, done: sendUnaryData<Buffer>) => {
      let size = 0;
      call.on('data', (chunk) => {
        size += chunk.length;
      });
      call.on('end', () => {
        calls.push(`gather ${size}`);
        done(null, Buffer.from(String(size)));
      });
    },
    spread: (call: Omit<Stream, 'on'>) => {
      calls.push(`spread ${call.request}`);
      for (let turn = 0; turn < Number(call.request.toString()); turn += 1) call.write(Buffer.alloc(1000));
      call.end();
    },
    talk: (call: Omit<Stream, 'request'>) => {
      calls.push('talk');
      call.on('data', (chunk) => call.write(chunk));
      call.on('end', () => call.end());
    },
  };
  server.addService(definition, implementation);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    ),
  );
  t.teardown(() => server.forceShutdown());
  return { port, calls };
}

t.test('calls of gRPC', async (t) => {
  const [own, copy] = [await grpcServer(t), await grpcServer(t)];
  const fields = { protocol: 'grpc' } as const;
  const db = service('db', [of('own', 'db', own, fields)], { ...fields, ...mirrored() });
  const bed = await startBed(t, { services: [db, service('copy', [of('copy', 'copy', copy, fields)], fields)] });
  const calling: Client = new TestClient(`127.0.0.1:${bed.port}`, credentials.createInsecure());
  t.teardown(() => calling.close());
  const copied = (count: number): Promise<unknown> =>
    waitFor(`${count} copies`, async () => (await copies(bed, '2xx')) === count);
  const gather = (sizes: readonly number[]): Promise<string> =>
    new Promise((resolve, reject) => {
      const call = calling.makeClientStreamRequest(definition.gather.path, same, same, (error, value?: Buffer) =>
        error === null ? resolve(String(value)) : reject(error),
      );
      for (const size of sizes) call.write(Buffer.alloc(size));
      call.end();
    });

  const said = await new Promise((resolve) =>
    calling.makeUnaryRequest(definition.unary.path, same, same, Buffer.from('hi'), (_error, value) =>
      resolve(String(value)),
    ),
  );
  t.equal(said, 'hi');
  await copied(1);
  let bytes = 0;
  const spread = calling.makeServerStreamRequest(definition.spread.path, same, same, Buffer.from('300'));
  for await (const chunk of spread) bytes += (chunk as Buffer).length;
  t.equal(bytes, 300_000);
  await copied(2);
  t.equal(await gather([10_000, 20_000]), '30000');
  await copied(3);
  t.equal(await gather(Array(10).fill(10_000)), '100000');
  t.equal(await copies(bed, 'too large'), 1);

  const talk = calling.makeBidiStreamRequest(definition.talk.path, same, same);
  for (const word of ['one', 'two']) {
    const heard = new Promise((resolve) => talk.once('data', (chunk: Buffer) => resolve(chunk.toString())));
    talk.write(Buffer.from(word));
    t.equal(await heard, word);
  }
  talk.end();
  await new Promise((resolve) => talk.on('status', resolve).resume());
  t.equal(await copies(bed, 'streaming'), 1);
  t.same(copy.calls, ['unary hi', 'spread 300', 'gather 30000']);
  t.same(own.calls, [...copy.calls, 'gather 100000', 'talk']);
  await waitFor('nothing runs', async () => (await streams(bed)) === 0);
});
