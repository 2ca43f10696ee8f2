import {
  type Client,
  credentials,
  Metadata,
  type MethodDefinition,
  makeGenericClientConstructor,
  Server,
  ServerCredentials,
  type ServiceDefinition,
  type ServiceError,
  type sendUnaryData,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import t, { type Test } from 'tap';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, deadPort, instanceOf, serviceOf, startBed } from '../link-plane.fixture.ts';
import { grpcMessage, grpcTimeoutMs, isGrpc } from './grpc.ts';

const same = (bytes: Buffer): Buffer => bytes;

function method(path: string, requestStream: boolean, responseStream: boolean): MethodDefinition<Buffer, Buffer> {
  return {
    path,
    requestStream,
    responseStream,
    requestSerialize: same,
    requestDeserialize: same,
    responseSerialize: same,
    responseDeserialize: same,
  };
}

const definition = {
  unary: method('/legate.Test/Unary', false, false),
  gather: method('/legate.Test/Gather', true, false),
  spread: method('/legate.Test/Spread', false, true),
  talk: method('/legate.Test/Talk', true, true),
  check: method('/grpc.health.v1.Health/Check', false, false),
} satisfies ServiceDefinition;

const implementation: UntypedServiceImplementation = {
  unary: (call: { request: Buffer; metadata: Metadata }, done: sendUnaryData<Buffer>) => {
    const text = call.request.toString();
    const trailers = new Metadata();
    trailers.set('x-trailer', 'behind');
    if (text === 'hang') return;
    const failing = /^fail (\d+)$/.exec(text)?.[1];
    if (failing !== undefined) done({ code: Number(failing), details: 'ü 100 %', metadata: trailers });
    else done(null, Buffer.from(`${text} via ${call.metadata.get('via').join()}`), trailers);
  },
  gather: (call: { on(event: string, listener: (chunk: Buffer) => void): void }, done: sendUnaryData<Buffer>) => {
    let size = 0;
    call.on('data', (chunk) => {
      size += chunk.length;
    });
    call.on('end', () => done(null, Buffer.from(String(size))));
  },
  spread: (call: { request: Buffer; write(chunk: Buffer): void; end(): void }) => {
    for (let turn = 0; turn < Number(call.request.toString()); turn += 1) call.write(Buffer.alloc(1000, turn));
    call.end();
  },
  talk: (call: {
    on(event: string, listener: (chunk: Buffer) => void): void;
    write(chunk: Buffer): void;
    end(): void;
  }) => {
    call.on('data', (chunk) => call.write(chunk));
    call.on('end', () => call.end());
  },
  check: (_call: unknown, done: sendUnaryData<Buffer>) => done(null, Buffer.from([0x08, 0x01])),
};

async function served(t: Test): Promise<{ port: number; server: Server }> {
  const server = new Server();
  server.addService(definition, implementation);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    ),
  );
  t.teardown(() => server.forceShutdown());
  return { port, server };
}

function before(t: Test, ports: readonly number[]): Promise<Bed> {
  const instances = ports.map((port, index) => instanceOf({ name: `i${index}`, port, protocol: 'grpc' }));
  return startBed(t, { services: [serviceOf(instances, { protocol: 'grpc' })] });
}

const TestClient = makeGenericClientConstructor(definition, 'legate.Test');

function clientOf(t: Test, bed: Bed): Client {
  const client = new TestClient(`127.0.0.1:${bed.port}`, credentials.createInsecure());
  t.teardown(() => client.close());
  return client;
}

interface Reply {
  readonly code: number;
  readonly text: string;
  readonly trailers: Metadata | undefined;
}

function unary(client: Client, text: string, limitMs = 10_000, { path } = definition.unary): Promise<Reply> {
  return new Promise((resolve) => {
    let trailers: Metadata | undefined;
    let reply: Reply | undefined;
    const deadline = Date.now() + limitMs;
    const done = (error: ServiceError | null, answer?: Buffer): void => {
      reply = { code: error?.code ?? 0, text: error?.details ?? answer?.toString() ?? '', trailers };
    };
    const call = client.makeUnaryRequest(path, same, same, Buffer.from(text), new Metadata(), { deadline }, done);
    call.on('status', (given) => {
      trailers = given.metadata;
      setImmediate(() => resolve({ code: reply?.code ?? given.code, text: reply?.text ?? given.details, trailers }));
    });
  });
}

t.test('calls of all four kinds', async (t) => {
  const bed = await before(t, [(await served(t)).port]);
  const client = clientOf(t, bed);
  const answer = await unary(client, 'hello');
  t.match({ code: answer.code, text: answer.text }, { code: 0, text: 'hello via 2 legate' });
  t.same(answer.trailers?.get('x-trailer'), ['behind']);
  const failed = await unary(client, 'fail 9');
  t.match({ code: failed.code, text: failed.text }, { code: status.FAILED_PRECONDITION, text: 'ü 100 %' });
  t.same(failed.trailers?.get('x-trailer'), ['behind']);
  t.equal((await unary(client, '', 10_000, definition.check)).text, '\u0008\u0001', 'health checks');

  const gathered = await new Promise<string>((resolve, reject) => {
    const call = client.makeClientStreamRequest(definition.gather.path, same, same, (error, value?: Buffer) =>
      error === null ? resolve(String(value)) : reject(error),
    );
    for (let turn = 0; turn < 50; turn += 1) call.write(Buffer.alloc(10_000));
    call.end();
  });
  t.equal(gathered, '500000');

  const spread = client.makeServerStreamRequest(definition.spread.path, same, same, Buffer.from('300'));
  let bytes = 0;
  for await (const chunk of spread) bytes += (chunk as Buffer).length;
  t.equal(bytes, 300_000);

  const talk = client.makeBidiStreamRequest(definition.talk.path, same, same);
  for (const word of ['one', 'two', 'three']) {
    const heard = new Promise((resolve) => talk.once('data', (chunk: Buffer) => resolve(chunk.toString())));
    talk.write(Buffer.from(word));
    t.equal(await heard, word, 'back and forth');
  }
  talk.end();
  await new Promise((resolve) => talk.on('status', resolve).resume());
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="here/i0",end="2xx"}'), 6);
});

t.test('calls of one channel are balanced one by one', async (t) => {
  const servers = [await served(t), await served(t), await served(t)];
  const bed = await before(
    t,
    servers.map(({ port }) => port),
  );
  const client = clientOf(t, bed);
  await Promise.all(Array.from({ length: 30 }, (_, turn) => unary(client, String(turn))));
  for (const index of [0, 1, 2]) {
    const name = `legate_http_requests_total{service="db",instance="here/i${index}",end="2xx"}`;
    t.equal(await bed.metric(name), 10);
  }
});

t.test('failures of our own are in gRPC’s words', async (t) => {
  const none = await unary(clientOf(t, await before(t, [await deadPort()])), 'x');
  t.equal(none.code, status.UNAVAILABLE);
  t.match(none.text, /^legate: .*ECONNREFUSED/);
  const { port, server } = await served(t);
  const bed = await before(t, [port]);
  const client = clientOf(t, bed);
  t.equal((await unary(client, 'hang', 300)).code, status.DEADLINE_EXCEEDED);
  await waitFor('nothing is left', async () => (await bed.metric('legate_http2_streams_count')) === 0);
  const talk = client.makeBidiStreamRequest(definition.talk.path, same, same);
  talk.on('error', () => undefined);
  const heard = new Promise((resolve) => talk.once('data', resolve));
  talk.write(Buffer.from('x'));
  await heard;
  const ended = new Promise<{ code: number; details: string }>((resolve) => talk.on('status', resolve));
  server.forceShutdown();
  t.match(await ended, { code: status.UNAVAILABLE }, 'also in the middle of an answer');
});

t.test('an instance that cannot serve is left out for a while', async (t) => {
  const servers = [await served(t), await served(t)];
  const bed = await before(
    t,
    servers.map(({ port }) => port),
  );
  const client = clientOf(t, bed);
  const ejected = (): number =>
    bed.plane.links()[0]?.backends.filter(({ ejectedUntil }) => ejectedUntil !== null).length ?? 0;
  for (let turn = 0; turn < 20; turn += 1) await unary(client, `fail ${status.NOT_FOUND}`);
  t.equal(ejected(), 0, 'errors of the caller are none of its own');
  for (let turn = 0; turn < 20; turn += 1) await unary(client, `fail ${status.UNAVAILABLE}`);
  t.equal(ejected(), 1, 'those that say that it is in trouble are');
});

t.test('what is read and written of gRPC', async (t) => {
  t.equal(grpcMessage('a 100% ü\n'), 'a 100%25 %C3%BC%0A');
  const timeouts: Readonly<Record<string, number | undefined>> = {
    '5S': 5000,
    '2M': 120_000,
    '1H': 3_600_000,
    '99999999m': 99_999_999,
    '500u': 0.5,
    '1000000n': 1,
    '': undefined,
    '5': undefined,
    '-5S': undefined,
    '123456789S': undefined,
  };
  for (const [text, expected] of Object.entries(timeouts)) t.equal(grpcTimeoutMs(text), expected, text);
  for (const type of ['application/grpc', 'application/grpc+proto', 'application/grpc;x=y']) t.ok(isGrpc(type), type);
  for (const type of ['application/grpc-web', 'text/plain', undefined]) t.notOk(isGrpc(type), String(type));
});
