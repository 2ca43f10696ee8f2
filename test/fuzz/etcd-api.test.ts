import { connect as connectHttp2 } from 'node:http2';
import { connect } from 'node:net';
import { create, toBinary } from '@bufbuild/protobuf';
import t from 'tap';
import {
  CompactionRequestSchema,
  DeleteRangeRequestSchema,
  LeaseGrantRequestSchema,
  LeaseKeepAliveRequestSchema,
  PutRequestSchema,
  RangeRequestSchema,
  TxnRequestSchema,
  WatchRequestSchema,
} from '../../src/store/etcd-api/gen/etcd_pb.ts';
import { OfferedStore, RawClient } from '../support/offered-store.ts';
import { waitFor } from '../support/wait.ts';

const rounds = 1500;
const streams = 60;
const connections = 150;

/** A small reproducible generator (mulberry32): a failure names its seed. */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const seed = Number(process.env.LEGATE_FUZZ_SEED ?? Date.now() % 1_000_000);
const random = generator(seed);
const bytes = (text: string): Buffer => Buffer.from(text);
const pick = <T>(items: readonly T[]): T => items[random(items.length)] as T;
const randomBytes = (most: number): Buffer => Buffer.from(Array.from({ length: random(most + 1) }, () => random(256)));
const key = (): Buffer =>
  pick([bytes('f/1'), bytes('f/2'), bytes('f/'), Buffer.of(0), Buffer.alloc(0), randomBytes(40)]);
const number = (): bigint => pick([0n, 1n, -1n, 2n, 1n << 62n, -(1n << 63n), BigInt(random(50))]);

/** Messages with every field of strange content, which mutation then spoils. */
const makers: readonly (readonly [path: string, make: () => Uint8Array])[] = [
  ['KV/Range', () => toBinary(RangeRequestSchema, rangeRequest())],
  ['KV/Put', () => toBinary(PutRequestSchema, putRequest())],
  [
    'KV/DeleteRange',
    () =>
      toBinary(
        DeleteRangeRequestSchema,
        create(DeleteRangeRequestSchema, { key: key(), rangeEnd: key(), prevKv: true }),
      ),
  ],
  ['KV/Txn', () => toBinary(TxnRequestSchema, txnRequest())],
  ['KV/Compact', () => toBinary(CompactionRequestSchema, create(CompactionRequestSchema, { revision: number() }))],
  [
    'Lease/LeaseGrant',
    () => toBinary(LeaseGrantRequestSchema, create(LeaseGrantRequestSchema, { ID: number(), TTL: number() })),
  ],
  [
    'Lease/LeaseRevoke',
    () => toBinary(LeaseKeepAliveRequestSchema, create(LeaseKeepAliveRequestSchema, { ID: number() })),
  ],
  [
    'Lease/LeaseTimeToLive',
    () => toBinary(LeaseKeepAliveRequestSchema, create(LeaseKeepAliveRequestSchema, { ID: number() })),
  ],
  ['Maintenance/Status', () => randomBytes(20)],
  ['Cluster/MemberList', () => randomBytes(20)],
  ['Auth/Authenticate', () => randomBytes(20)],
];

function rangeRequest() {
  const numbers = { limit: number(), revision: number(), minModRevision: number(), maxCreateRevision: number() };
  const sort = { sortOrder: random(5) as never, sortTarget: random(7) as never };
  return create(RangeRequestSchema, {
    key: key(),
    rangeEnd: key(),
    ...numbers,
    ...sort,
    keysOnly: random(2) === 0,
    countOnly: random(4) === 0,
  });
}

function putRequest() {
  const flags = { prevKv: random(2) === 0, ignoreValue: random(5) === 0, ignoreLease: random(5) === 0 };
  return create(PutRequestSchema, {
    key: key(),
    value: randomBytes(60),
    lease: random(3) === 0 ? number() : 0n,
    ...flags,
  });
}

function txnRequest() {
  const op = () =>
    pick([
      { request: { case: 'requestPut', value: putRequest() } },
      { request: { case: 'requestRange', value: rangeRequest() } },
      {
        request: {
          case: 'requestDeleteRange',
          value: create(DeleteRangeRequestSchema, { key: key(), rangeEnd: key() }),
        },
      },
      {},
    ] as const);
  const compare = () => {
    const targetUnion = pick([
      { case: 'version', value: number() },
      { case: 'value', value: randomBytes(5) },
      { case: 'lease', value: number() },
    ] as const);
    return { key: key(), rangeEnd: key(), result: random(6) as never, target: random(7) as never, targetUnion };
  };
  const some = <T>(make: () => T): T[] => Array.from({ length: random(4) }, make);
  return create(TxnRequestSchema, { compare: some(compare), success: some(op), failure: some(op) });
}

function watchRequest(): Uint8Array {
  const value = {
    key: key(),
    rangeEnd: key(),
    startRevision: number(),
    watchId: number(),
    prevKv: true,
    progressNotify: true,
  };
  const request = pick([
    { case: 'createRequest', value: { ...value, filters: [random(4) as never] } },
    { case: 'cancelRequest', value: { watchId: number() } },
    { case: 'progressRequest', value: {} },
  ] as const);
  return toBinary(WatchRequestSchema, create(WatchRequestSchema, { requestUnion: request as never }));
}

function mutate(message: Uint8Array): Buffer {
  const result = Buffer.from(message);
  for (let times = random(4); times > 0 && result.length > 0; times -= 1) result[random(result.length)] = random(256);
  return random(5) === 0 ? result.subarray(0, random(result.length + 1)) : result;
}

t.comment(`seed ${seed}`);
const offered = await OfferedStore.open(t, { keepRevisions: 200 });

async function serves(): Promise<boolean> {
  const client = new RawClient(t, offered.port);
  return (await client.put('f/alive', String(random(1000)))) > 0;
}

t.test('strange messages get an answer, and none an internal error', async (t) => {
  const client = new RawClient(t, offered.port);
  const codes = new Map<number, number>();
  for (let round = 0; round < rounds; round += 50) {
    const calls = Array.from({ length: 50 }, () => {
      const [path, make] = pick(makers);
      return client.bytes(`/etcdserverpb.${path}`, random(2) === 0 ? mutate(make()) : Buffer.from(make()));
    });
    for (const code of await Promise.all(calls)) codes.set(code, (codes.get(code) ?? 0) + 1);
  }
  for (const code of [2, 4, 13, 14, 15]) t.notOk(codes.has(code), `none ended with code ${code} (seed ${seed})`);
  t.ok((codes.get(0) ?? 0) > 0 && (codes.get(3) ?? 0) > 0, 'some were good and some were refused');
  t.ok(await serves());
});

t.test('strange streams', async (t) => {
  const client = new RawClient(t, offered.port);
  for (let round = 0; round < streams; round += 1) {
    const stream = client.rawStream(`/etcdserverpb.${pick(['Watch/Watch', 'Lease/LeaseKeepAlive'])}`);
    stream.on('data', () => undefined);
    for (let count = random(30); count > 0; count -= 1)
      stream.write(random(3) === 0 ? mutate(watchRequest()) : Buffer.from(watchRequest()));
    if (random(2) === 0) stream.cancel();
    else stream.end();
  }
  t.ok(await serves());
  await waitFor('all to end', async () => (await offered.metric('legate_store_server_watches_count')) === 0);
  await waitFor(
    'nothing outstanding',
    async () => (await offered.metric('legate_store_server_outstanding_bytes')) === 0,
  );
  await waitFor('no call under way', async () => (await offered.metric('legate_store_server_calls_count')) === 0);
});

t.test('strange frames and headers', async (t) => {
  const preface = bytes('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  for (let round = 0; round < connections; round += 1) {
    const socket = connect(offered.port, '127.0.0.1')
      .on('error', () => undefined)
      .resume();
    socket.write(
      random(3) === 0 ? randomBytes(200) : Buffer.concat([preface, bytes('\0\0\0\x04\0\0\0\0\0'), randomBytes(200)]),
    );
    if (random(2) === 0) socket.end();
    else socket.once('connect', () => socket.destroySoon());
  }
  const headers = { ':method': 'POST', 'content-type': 'application/grpc', te: 'trailers' };
  const strange: Record<string, string>[] = [
    { ':path': '/\u00ff\u0080' },
    { ':path': '/etcdserverpb.KV/Range', 'grpc-timeout': 'soon' },
    { ':path': '/etcdserverpb.KV/Range', 'grpc-timeout': '99999999H' },
    { ':path': '/etcdserverpb.KV/Range', 'x-bin': '&&&' },
    { ':path': '/etcdserverpb.KV/Range', 'grpc-encoding': 'gzip' },
    { ':path': '/etcdserverpb.KV/Range', 'content-type': 'text/plain' },
    { ':path': '/etcdserverpb.KV/Range', ':method': 'GET' },
    { ':path': `/${'q'.repeat(9000)}` },
  ];
  for (const each of strange) {
    const session = connectHttp2(`http://127.0.0.1:${offered.port}`).on('error', () => undefined);
    t.teardown(() => session.destroy());
    const stream = session
      .request({ ...headers, ...each })
      .on('error', () => undefined)
      .resume();
    stream.end(Buffer.from([1, 0, 0, 0, 3, 1, 2, 3]));
    await new Promise((resolve) => stream.once('close', resolve));
    session.destroy();
  }
  t.ok(await serves());
  await waitFor('all to be gone', async () => (await offered.metric('legate_store_server_calls_count')) === 0);
});
