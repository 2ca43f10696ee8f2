import { once } from 'node:events';
import { createServer as createHttp } from 'node:http';
import { createServer as createHttp2 } from 'node:http2';
import { createServer, type Server as NetServer } from 'node:net';
import { create, toBinary } from '@bufbuild/protobuf';
import { type handleUnaryCall, Server, ServerCredentials, type ServerDuplexStream, status } from '@grpc/grpc-js';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { openTestStore, stateOf, storeUrl } from '../../../test/support/etcd.ts';
import { waitFor } from '../../../test/support/wait.ts';
import { ManualClock } from '../../base/clock.ts';
import type { EtcdStoreConfig, StoreUrl } from '../../config/config.ts';
import {
  LeaseGrantResponseSchema,
  LeaseKeepAliveResponseSchema,
  RangeResponseSchema,
  ResponseHeaderSchema,
  StatusResponseSchema,
  WatchResponseSchema,
} from '../etcd-api/gen/etcd_pb.ts';
import { failureOf } from './failure.ts';
import { api, keyText, rangeOf } from './messages.ts';

const header = create(ResponseHeaderSchema, { clusterId: 7n, revision: 10n });
const configFor = (...endpoints: StoreUrl[]): EtcdStoreConfig => {
  return { kind: 'etcd', leaseTtlMs: 10_000, endpoints, prefix: '/legate', tls: {}, credentialsFile: undefined };
};

t.test('reads what etcd and gRPC say of a failure', async (t) => {
  const cases: [code: number | undefined, details: string, kind: string, message?: string][] = [
    [
      status.UNAVAILABLE,
      'No connection established. Last error: connect ECONNREFUSED 1.2.3.4:5',
      'unreachable',
      'connect ECONNREFUSED 1.2.3.4:5',
    ],
    [status.UNAVAILABLE, 'etcdserver: no leader', 'no-leader'],
    [status.UNAVAILABLE, 'etcdserver: request timed out, possibly due to connection lost', 'no-leader'],
    [status.UNAVAILABLE, 'etcdserver: leader changed', 'busy'],
    [status.UNAVAILABLE, 'No connection established. Last error: Error: unable to verify the first certificate', 'tls'],
    [status.DEADLINE_EXCEEDED, 'Deadline exceeded after 5.000s, LB pick: 0.001s', 'silent', 'no answer in time'],
    [status.RESOURCE_EXHAUSTED, 'etcdserver: mvcc: database space exceeded', 'no-space'],
    [status.RESOURCE_EXHAUSTED, 'etcdserver: too many requests', 'busy'],
    [status.RESOURCE_EXHAUSTED, 'Received message larger than max (20 vs. 10)', 'response-too-large'],
    [status.UNAUTHENTICATED, 'etcdserver: invalid auth token', 'token'],
    [status.INVALID_ARGUMENT, 'etcdserver: revision of auth store is old', 'token'],
    [status.INVALID_ARGUMENT, 'etcdserver: authentication failed, invalid user ID or password', 'credentials'],
    [status.INVALID_ARGUMENT, 'etcdserver: user name is empty', 'credentials'],
    [status.INVALID_ARGUMENT, 'etcdserver: request is too large', 'request-too-large'],
    [status.INVALID_ARGUMENT, 'etcdserver: something new', 'refused', 'etcdserver: something new'],
    [status.PERMISSION_DENIED, 'etcdserver: permission denied', 'denied'],
    [status.NOT_FOUND, 'etcdserver: requested lease not found', 'no-lease'],
    [status.OUT_OF_RANGE, 'etcdserver: mvcc: required revision has been compacted', 'compacted'],
    [status.DATA_LOSS, 'etcdserver: corrupt cluster', 'corrupt'],
    [status.UNIMPLEMENTED, 'unknown service', 'not-etcd'],
    [undefined, 'etcdserver: permission denied', 'denied'],
    [undefined, '', 'refused', 'gRPC status unknown'],
    [status.UNKNOWN, `\u001b[31mred ${'x'.repeat(1000)}`, 'not-etcd'],
  ];
  for (const [code, details, kind, message] of cases) {
    const failure = failureOf(code === undefined ? { details } : { code, details });
    t.equal(failure.kind, kind, details.slice(0, 60));
    if (message !== undefined) t.equal(failure.message, message);
    t.ok(failure.message.length <= 300 && !failure.message.includes('\u001b'));
    t.not(failure.hint, '');
  }
});

t.test('keys and their ranges', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 40 }), async (key) => {
      const text = keyText(key);
      if (text !== undefined && !Buffer.from(text).equals(key)) throw new Error('another key');
      const isText = Buffer.from(Buffer.from(key).toString()).equals(key) && key.length > 0 && !key.includes(0);
      if (isText !== (text !== undefined)) throw new Error(`${Buffer.from(key).toString('hex')} is taken for ${text}`);
    }),
  );
  t.pass('keys are text or none of ours');
  fc.assert(
    fc.property(fc.string({ minLength: 1, unit: 'grapheme' }), fc.string({ unit: 'grapheme' }), (prefix, rest) => {
      const { key, rangeEnd } = rangeOf(prefix);
      const inside = (text: string): boolean =>
        Buffer.compare(Buffer.from(text), key) >= 0 && Buffer.compare(Buffer.from(text), rangeEnd) < 0;
      return inside(prefix + rest) && inside(rest) === Buffer.from(rest).subarray(0, key.length).equals(key);
    }),
  );
});

async function listening(t: Test, server: NetServer): Promise<StoreUrl> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  server.on('connection', (socket) => {
    socket.on('error', () => undefined);
    t.teardown(() => socket.destroy());
  });
  t.teardown(() => server.close());
  const address = server.address();
  return storeUrl(typeof address === 'object' && address !== null ? address.port : 0);
}

t.test('says what answers when it is no etcd', async (t) => {
  const cases: [name: string, server: NetServer, says: RegExp][] = [
    ['HTTP', createHttp((_, answer) => answer.end('hello')), /does not speak HTTP\/2.*must be the client URL/],
    ['HTTP/2', createHttp2((_, answer) => answer.end('hello')), /does not speak gRPC.*must be the client URL/],
    ['closes', createServer((socket) => socket.destroy()), /closes the connection at once/],
    ['SSH', createServer((socket) => socket.write('SSH-2.0-x\r\n')), /does not speak HTTP\/2/],
    ['silent', createServer(() => undefined), /has not answered yet|no answer in time/],
  ];
  for (const [name, server, says] of cases) {
    const opened = await openTestStore(t, configFor(await listening(t, server)));
    t.match(await stateOf(opened, 'away'), says, name);
    await t.rejects(opened.store.get('/a'), { code: 'E_STORE_AWAY' }, name);
    await opened.store.close();
  }
});

/** What a server of the tests answers with: bytes as they go over the wire, undefined for nothing at all. */
interface Answers {
  status?: () => Uint8Array | undefined;
  range?: () => Uint8Array | undefined;
  leaseGrant?: () => Uint8Array | undefined;
  watch?: (stream: ServerDuplexStream<Buffer, Buffer>) => void;
  keepAlive?: (stream: ServerDuplexStream<Buffer, Buffer>) => void;
}

const goodStatus = (): Uint8Array =>
  toBinary(StatusResponseSchema, create(StatusResponseSchema, { header, leader: 1n }));
const goodRange = (): Uint8Array => toBinary(RangeResponseSchema, create(RangeResponseSchema, { header }));

/** A server that speaks gRPC, and says what the test wants. */
async function fakeEtcd(t: Test, answers: Answers): Promise<StoreUrl> {
  const server = new Server();
  const raw = {
    requestSerialize: Buffer.from,
    requestDeserialize: Buffer.from,
    responseSerialize: Buffer.from,
    responseDeserialize: Buffer.from,
  };
  const unary = (answer: (() => Uint8Array | undefined) | undefined): handleUnaryCall<Buffer, Buffer> => {
    return (_, done) => {
      const bytes = answer?.();
      if (bytes !== undefined) done(null, Buffer.from(bytes));
    };
  };
  const methods = {
    ...{
      status: { ...api.status, ...raw },
      range: { ...api.range, ...raw },
      leaseGrant: { ...api.leaseGrant, ...raw },
    },
    ...{ watch: { ...api.watch, ...raw }, keepAlive: { ...api.leaseKeepAlive, ...raw } },
  };
  server.addService(methods, {
    status: unary(answers.status ?? goodStatus),
    range: unary(answers.range ?? goodRange),
    leaseGrant: unary(answers.leaseGrant),
    watch: (stream: ServerDuplexStream<Buffer, Buffer>) => answers.watch?.(stream),
    keepAlive: (stream: ServerDuplexStream<Buffer, Buffer>) => answers.keepAlive?.(stream),
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  t.teardown(() => server.forceShutdown());
  return storeUrl(port);
}

t.test('takes no nonsense for an answer', async (t) => {
  const kv = (key: string): { key: Uint8Array } => ({ key: Buffer.from(key) });
  const huge = create(ResponseHeaderSchema, { clusterId: 7n, revision: 2n ** 63n - 1n });
  const range = (init: Parameters<typeof create<typeof RangeResponseSchema>>[1]): (() => Uint8Array) => {
    return () => toBinary(RangeResponseSchema, create(RangeResponseSchema, init));
  };
  const atStart: [name: string, answers: Answers, says: RegExp][] = [
    ['no header', { status: () => new Uint8Array() }, /without the header/],
    ['bytes', { status: () => Buffer.from('ffffffffffffffff', 'hex') }, /cannot be used/],
    ['16 MiB', { status: () => new Uint8Array(17 * 1024 * 1024) }, /does not speak gRPC/],
    ['a revision beyond numbers', { range: range({ header: huge }) }, /a revision of 9223372036854775807/],
  ];
  for (const [name, answers, says] of atStart) {
    const opened = await openTestStore(t, configFor(await fakeEtcd(t, answers)));
    t.match(await stateOf(opened, 'away'), says, name);
    await opened.store.close();
  }
  const later: [name: string, range: () => Uint8Array, says: RegExp][] = [
    ['keys out of order', range({ header, kvs: [kv('/b'), kv('/a')] }), /not in order/],
    ['the same page for ever', range({ header, kvs: [kv('/b')], more: true }), /not in order/],
    ['another cluster', range({ header: { ...header, clusterId: 8n } }), /another cluster/],
  ];
  for (const [name, answer, says] of later) {
    let first = true;
    const answers: Answers = { range: () => (first ? goodRange() : answer()) };
    const opened = await openTestStore(t, configFor(await fakeEtcd(t, answers)));
    await stateOf(opened, 'connected');
    first = false;
    await t.rejects(opened.store.range('/'), { code: 'E_STORE_AWAY', message: says }, name);
    await opened.store.close();
  }
});

t.test('survives any bytes on a watch', async (t) => {
  let told: Uint8Array[] = [];
  const url = await fakeEtcd(t, {
    watch: (stream) => {
      stream.on('error', () => undefined);
      stream.once('data', () => {
        for (const bytes of told) stream.write(Buffer.from(bytes));
      });
    },
  });
  const response = (init: Parameters<typeof create<typeof WatchResponseSchema>>[1]): Uint8Array =>
    toBinary(WatchResponseSchema, create(WatchResponseSchema, init));
  const created = response({ header, watchId: 1n, created: true });
  const cases: Uint8Array[][] = [
    [created, created],
    [created, response({ header, watchId: 1n, events: [{}] })],
    [created, response({ header, watchId: 2n, events: [{ kv: { key: Buffer.from('/a') } }] })],
    [created, response({ watchId: 1n })],
    [created, response({ header, watchId: 1n, events: [{ kv: { key: Buffer.from('/a'), modRevision: -5n } }] })],
    [response({ header, created: true, canceled: true, watchId: -1n, cancelReason: 'etcdserver: permission denied' })],
    [created, response({ header, watchId: 1n, canceled: true, compactRevision: 5n })],
    ...fc.sample(fc.array(fc.uint8Array({ maxLength: 64 }), { minLength: 1, maxLength: 3 }), 12),
    ...fc.sample(fc.uint8Array({ maxLength: 64 }), 6).map((bytes) => [created, bytes]),
  ];
  for (const bytes of cases) {
    told = bytes;
    const opened = await openTestStore(t, configFor(url));
    const abort = new AbortController();
    const feed = opened.store.watch('/', { signal: abort.signal })[Symbol.asyncIterator]();
    t.match(await feed.next(), { value: { kind: 'reset', items: [] } });
    const next = feed.next();
    // A round trip on the same connection, or its end, comes after what was told.
    await opened.store.get('/a').catch(() => undefined);
    abort.abort();
    await next;
    await opened.store.close();
  }
});

t.test('keeps a lease alive once in each third of its TTL, and loses it when etcd says so', async (t) => {
  const clock = new ManualClock();
  const asked: number[] = [];
  let remaining = 9n;
  const url = await fakeEtcd(t, {
    leaseGrant: () => toBinary(LeaseGrantResponseSchema, create(LeaseGrantResponseSchema, { header, ID: 5n, TTL: 9n })),
    keepAlive: (stream) => {
      stream.on('error', () => undefined);
      stream.on('data', () => {
        asked.push(clock.monotonicMs());
        const answer = create(LeaseKeepAliveResponseSchema, { header, ID: 5n, TTL: remaining });
        stream.write(Buffer.from(toBinary(LeaseKeepAliveResponseSchema, answer)));
      });
    },
  });
  const opened = await openTestStore(t, configFor(url), clock);
  await clock.advance(0);
  await waitFor('a connection', async () => {
    await clock.advance(0);
    return opened.store.status.value.state === 'connected';
  });
  const lease = await opened.store.lease(8500);
  t.equal(lease.ttlMs, 9000);
  for (let third = 1; third <= 6; third += 1) {
    await clock.advance(3000);
    await waitFor('a keep-alive', () => asked.length >= third);
  }
  t.same(asked, [3000, 6000, 9000, 12_000, 15_000, 18_000]);
  t.notOk(lease.lost.aborted);
  remaining = 0n;
  await clock.advance(3000);
  await waitFor('the lease to be lost', () => lease.lost.aborted);
  t.match(lease.lost.reason, { code: 'E_NOT_FOUND' });
  await clock.advance(9000);
  t.equal(asked.length, 7, 'no more of it');
});
