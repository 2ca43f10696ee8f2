import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { connect, createServer } from 'node:net';
import { status } from '@grpc/grpc-js';
import t from 'tap';
import { limits } from '../../src/store/embedded/server/limits.ts';
import {
  Auth,
  Cluster,
  WatchCreateRequest_FilterType as Filter,
  KV,
  Lease,
  Maintenance,
  Compare_CompareResult as Result,
  Compare_CompareTarget as Target,
} from '../../src/store/etcd-api/gen/etcd_pb.ts';
import { OfferedStore, prefixEnd, RawClient } from '../support/offered-store.ts';
import { waitFor } from '../support/wait.ts';
import { offeredHarness } from './offered-harness.ts';
import { storeContract } from './store-contract.ts';

const bytes = (text: string): Buffer => Buffer.from(text);

const shared = await OfferedStore.open(t);

storeContract(t, 'embedded over gRPC', offeredHarness(t, shared), {
  leaseTtlMs: 1000,
  lapseFactor: 1,
  resumes: true,
  propertyRuns: 20,
});

t.test('what a transaction may compare and do', async (t) => {
  const client = new RawClient(t, shared.port);
  const key = bytes('txn/k');
  const lease = (await client.call(Lease.method.leaseGrant, { TTL: 60n })).ID;
  const first = BigInt(await client.put('txn/k', 'b', { lease }));
  const mod = BigInt(await client.put('txn/k', 'b', { lease }));
  type Value = {
    target: Target;
    union: { case: string; value: bigint | Buffer };
    less: bigint | Buffer;
    more: bigint | Buffer;
  };
  const numbers = (target: Target, name: string, value: bigint): Value => {
    return { target, union: { case: name, value }, less: value - 1n, more: value + 1n };
  };
  const table: Value[] = [
    numbers(Target.VERSION, 'version', 2n),
    numbers(Target.CREATE, 'createRevision', first),
    numbers(Target.MOD, 'modRevision', mod),
    numbers(Target.LEASE, 'lease', lease),
    { target: Target.VALUE, union: { case: 'value', value: bytes('b') }, less: bytes('a'), more: bytes('c') },
  ];
  for (const { target, union, less, more } of table) {
    const holds = async (result: Result, value: bigint | Buffer): Promise<boolean> => {
      const targetUnion = { case: union.case, value } as never;
      return (await client.call(KV.method.txn, { compare: [{ key, target, result, targetUnion }] })).succeeded;
    };
    const found: boolean[] = [];
    for (const value of [less, union.value, more]) {
      for (const result of [Result.EQUAL, Result.NOT_EQUAL, Result.GREATER, Result.LESS])
        found.push(await holds(result, value));
    }
    t.same(found.map(Number).join(''), '011010000101', `${union.case}: =, !=, >, < of less, equal, more`);
  }
  const missing = { key: bytes('txn/none'), result: Result.EQUAL };
  const absent = { ...missing, target: Target.CREATE, targetUnion: { case: 'createRevision' as const, value: 0n } };
  t.ok((await client.call(KV.method.txn, { compare: [absent] })).succeeded, 'an absent key was created at 0');
  const noValue = { ...missing, target: Target.VALUE, targetUnion: { case: 'value' as const, value: bytes('') } };
  t.notOk((await client.call(KV.method.txn, { compare: [noValue] })).succeeded, 'an absent key has no value');

  const all = { key: bytes('txn/'), rangeEnd: prefixEnd('txn/') };
  const put = (name: string, value: string) =>
    ({ request: { case: 'requestPut', value: { key: bytes(name), value: bytes(value), prevKv: true } } }) as const;
  const range = { request: { case: 'requestRange', value: all } } as const;
  const remove = { request: { case: 'requestDeleteRange', value: { ...all, prevKv: true } } } as const;
  const everywhere = {
    ...all,
    target: Target.VERSION,
    result: Result.GREATER,
    targetUnion: { case: 'version' as const, value: 1n },
  };
  const done = await client.call(KV.method.txn, {
    compare: [everywhere],
    success: [range, remove, range],
    failure: [],
  });
  t.ok(done.succeeded);
  t.same(
    done.responses.map(({ response }) => {
      if (response.case === 'responseRange') return response.value.count;
      return response.case === 'responseDeleteRange' ? response.value.deleted : undefined;
    }),
    [1n, 1n, 0n],
    'each sees what those before it did',
  );
  const refused: [
    string,
    Parameters<typeof client.call<typeof KV.method.txn.input, typeof KV.method.txn.output>>[1],
    status,
    RegExp,
  ][] = [
    ['a key twice', { success: [put('txn/a', '1'), put('txn/a', '2')] }, status.INVALID_ARGUMENT, /duplicate key/],
    ['put where it deletes', { success: [put('txn/a', '1'), remove] }, status.INVALID_ARGUMENT, /duplicate key/],
    [
      'many',
      { success: Array.from({ length: 129 }, (_, at) => put(`txn/${at}`, '')) },
      status.INVALID_ARGUMENT,
      /too many operations/,
    ],
    [
      'nested',
      { success: [{ request: { case: 'requestTxn', value: {} } }] },
      status.UNIMPLEMENTED,
      /transactions within/,
    ],
    ['nothing', { success: [{}] }, status.INVALID_ARGUMENT, /key not found/],
    [
      'a future revision',
      { success: [{ request: { case: 'requestRange', value: { ...all, revision: 1n << 40n } } }] },
      status.OUT_OF_RANGE,
      /future revision/,
    ],
  ];
  for (const [what, request, code, details] of refused) {
    await t.rejects(client.call(KV.method.txn, request), { code, details }, what);
  }
});

t.test('errors are those of etcd', async (t) => {
  const client = new RawClient(t, shared.port);
  await client.put('err/k', '1');
  const { put, range, compact } = KV.method;
  const cases: [string, () => Promise<unknown>, status, RegExp][] = [
    ['no key', () => client.call(put, {}), status.INVALID_ARGUMENT, /key is not provided/],
    ['no text', () => client.call(put, { key: Buffer.of(0xff) }), status.INVALID_ARGUMENT, /UTF-8/],
    ['NUL', () => client.call(put, { key: bytes('a\u0000') }), status.INVALID_ARGUMENT, /NUL/],
    ['a long key', () => client.call(put, { key: Buffer.alloc(1025, 97) }), status.INVALID_ARGUMENT, /limit of 1024/],
    [
      'a large value',
      () => client.call(put, { key: bytes('a'), value: Buffer.alloc(1024 * 1024 + 1) }),
      status.INVALID_ARGUMENT,
      /too large/,
    ],
    [
      'a large request',
      () => client.call(put, { key: bytes('a'), value: Buffer.alloc(3 * 1024 * 1024) }),
      status.RESOURCE_EXHAUSTED,
      /larger than max/,
    ],
    [
      'a lease that is none',
      () => client.call(put, { key: bytes('a'), lease: 5n }),
      status.NOT_FOUND,
      /requested lease not found/,
    ],
    [
      'ignore_value of nothing',
      () => client.call(put, { key: bytes('err/none'), ignoreValue: true }),
      status.INVALID_ARGUMENT,
      /key not found/,
    ],
    [
      'ignore_value with one',
      () => client.call(put, { key: bytes('a'), value: bytes('1'), ignoreValue: true }),
      status.INVALID_ARGUMENT,
      /value is provided/,
    ],
    [
      'ignore_lease with one',
      () => client.call(put, { key: bytes('a'), lease: 1n, ignoreLease: true }),
      status.INVALID_ARGUMENT,
      /lease is provided/,
    ],
    [
      'a future revision',
      () => client.call(range, { key: bytes('a'), revision: 1n << 40n }),
      status.OUT_OF_RANGE,
      /future revision/,
    ],
    [
      'an unknown order',
      () => client.call(range, { key: bytes('a'), sortOrder: 9 as never }),
      status.INVALID_ARGUMENT,
      /invalid sort option/,
    ],
    [
      'compaction of the future',
      () => client.call(compact, { revision: 1n << 40n }),
      status.OUT_OF_RANGE,
      /future revision/,
    ],
    [
      'a lease that is none, revoked',
      () => client.call(Lease.method.leaseRevoke, { ID: 5n }),
      status.NOT_FOUND,
      /requested lease not found/,
    ],
    [
      'a lease for ever',
      () => client.call(Lease.method.leaseGrant, { TTL: 1n << 40n }),
      status.OUT_OF_RANGE,
      /too large lease TTL/,
    ],
    [
      'a password',
      () => client.call(Auth.method.authenticate, { name: 'a', password: 'b' }),
      status.FAILED_PRECONDITION,
      /authentication is not enabled/,
    ],
  ];
  for (const [what, run, code, details] of cases) await t.rejects(run(), { code, details }, what);
  await client.call(Lease.method.leaseGrant, { ID: 77n, TTL: 60n });
  const again = client.call(Lease.method.leaseGrant, { ID: 77n, TTL: 60n });
  await t.rejects(again, { code: status.FAILED_PRECONDITION, details: /lease already exists/ });
  t.equal((await client.call(Lease.method.leaseTimeToLive, { ID: 5n })).TTL, -1n);
  t.equal(await client.bytes('/etcdserverpb.Maintenance/Defragment', Buffer.alloc(0)), status.UNIMPLEMENTED);
  t.equal(await client.bytes('/etcdserverpb.KV/Nothing', Buffer.alloc(0)), status.UNIMPLEMENTED);
  t.equal(await client.bytes('/etcdserverpb.KV/Range', Buffer.from('zzzz')), status.INVALID_ARGUMENT);
});

t.test('ranges', async (t) => {
  const client = new RawClient(t, shared.port);
  for (const [name, value] of [
    ['b', '1'],
    ['a', '3'],
    ['c', '2'],
    ['a', '4'],
  ] as const)
    await client.put(`rg/${name}`, value);
  const all = { key: bytes('rg/'), rangeEnd: prefixEnd('rg/') };
  const read = async (request: object): Promise<string> => {
    const { kvs, more, count } = await client.call(KV.method.range, { ...all, ...request });
    return `${kvs
      .map(({ key, value }) => `${bytes('').toString()}${Buffer.from(key)}=${Buffer.from(value)}`)
      .join(' ')
      .replaceAll('rg/', '')} ${more} ${count}`;
  };
  const present = (await client.call(KV.method.range, { ...all, limit: 1n })).header?.revision ?? 0n;
  const table: [string, object, string][] = [
    ['all', {}, 'a=4 b=1 c=2 false 3'],
    ['limit', { limit: 2n }, 'a=4 b=1 true 3'],
    ['exact limit', { limit: 3n }, 'a=4 b=1 c=2 false 3'],
    ['keys only', { keysOnly: true }, 'a= b= c= false 3'],
    ['count only', { countOnly: true }, ' false 3'],
    ['descending', { sortOrder: 2, limit: 1n }, 'c=2 true 3'],
    ['by value', { sortTarget: 4 }, 'b=1 c=2 a=4 false 3'],
    ['by version, descending', { sortTarget: 1, sortOrder: 2, limit: 1n }, 'a=4 true 3'],
    ['changed lately', { minModRevision: present }, 'a=4 false 3'],
    ['made before', { maxCreateRevision: present - 3n }, 'b=1 false 3'],
    ['from a key on', { key: bytes('rg/c'), rangeEnd: Buffer.of(0), limit: 1n }, 'c=2'],
    ['nothing', { rangeEnd: bytes('a') }, ' false 0'],
    ['the present revision', { revision: present, limit: 1n }, 'a=4 true 3'],
  ];
  for (const [what, request, wanted] of table)
    t.ok((await read(request)).startsWith(wanted), `${what}: ${await read(request)}`);
  await client.put('elsewhere', '');
  t.equal(await read({ revision: present }), 'a=4 b=1 c=2 false 3', 'an older revision, where nothing changed since');
  // One that no page was read at.
  await t.rejects(read({ revision: present - 1n }), { code: status.OUT_OF_RANGE, details: /compacted/ });
});

t.test('pages of one moment', async (t) => {
  const client = new RawClient(t, shared.port);
  const names = Array.from({ length: 10 }, (_, index) => `pg/${index}`);
  for (const name of names) await client.put(name, 'old');
  const { range } = KV.method;
  const rangeEnd = prefixEnd('pg/');
  const first = await client.call(range, { key: bytes('pg/'), rangeEnd, limit: 4n });
  const revision = first.header?.revision ?? 0n;
  for (const name of names) await client.put(name, 'new');
  const found = first.kvs.map(({ value }) => Buffer.from(value).toString());
  let key = Buffer.concat([first.kvs.at(-1)?.key ?? bytes(''), Buffer.of(0)]);
  for (const [kvs, more, count] of [
    [4, true, 6n],
    [2, false, 2n],
  ] as const) {
    const page = await client.call(range, { key, rangeEnd, limit: 4n, revision });
    t.same([page.kvs.length, page.more, page.count], [kvs, more, count]);
    found.push(...page.kvs.map(({ value }) => Buffer.from(value).toString()));
    key = Buffer.concat([page.kvs.at(-1)?.key ?? bytes(''), Buffer.of(0)]);
  }
  t.same(
    found,
    names.map(() => 'old'),
  );
  const now = await client.call(range, { key: bytes('pg/'), rangeEnd, limit: 4n });
  t.equal(Buffer.from(now.kvs[0]?.value ?? []).toString(), 'new');
});

t.test('watches', async (t) => {
  const client = new RawClient(t, shared.port);
  const start = (await client.put('w/1', 'a')) + 1;
  await client.put('w/1', 'b');
  const removed = await client.call(KV.method.deleteRange, { key: bytes('w/1'), prevKv: true });
  const gone = removed.header?.revision;
  t.equal(Buffer.from(removed.prevKvs[0]?.value ?? []).toString(), 'b');
  const two = await client.put('w/2', 'c');
  const watches = client.watches();
  t.teardown(() => watches.stream.cancel());
  t.match(await watches.create('w/', { startRevision: BigInt(start) }), { created: true, watchId: 0n });
  await waitFor('history', () => watches.events().length === 2);
  t.same(watches.events(), [`-w/1@${gone}`, `+w/2=c@${two}`], 'versions in between are merged, the last comes');
  const chosen = await watches.create('w/', { watchId: 9n, prevKv: true, filters: [Filter.NODELETE] });
  t.equal(chosen.watchId, 9n);
  t.match(await watches.create('w/', { watchId: 9n }), { canceled: true, cancelReason: /duplicate watch ID/ });
  t.match(await watches.create('w/', { key: Buffer.alloc(2000) }), { canceled: true, watchId: -1n });
  t.match(await watches.create('w/2', { watchId: 10n, rangeEnd: Buffer.alloc(0) }), { watchId: 10n });
  const three = await client.put('w/2', 'd');
  const four = Number((await client.call(KV.method.deleteRange, { key: bytes('w/2') })).header?.revision);
  const five = await client.put('w/3', 'e');
  await waitFor('what is new', () => watches.events().length === 5 && watches.events(9n).length === 2);
  t.same(watches.events().slice(2), [`+w/2=d@${three}`, `-w/2@${four}`, `+w/3=e@${five}`]);
  t.same(watches.events(9n), [`+w/2=d@${three}`, `+w/3=e@${five}`], 'without deletions');
  t.same(watches.events(10n), [`+w/2=d@${three}`, `-w/2@${four}`], 'a single key');
  const before = watches.told.filter(({ watchId }) => watchId === 9n).flatMap(({ events }) => events)[0];
  t.equal(Buffer.from(before?.prevKv?.value ?? []).toString(), 'c');

  watches.say({ case: 'progressRequest', value: {} });
  const progress = await waitFor('progress', () =>
    watches.told.find(({ watchId, created }) => watchId === -1n && !created),
  );
  t.ok(Number(progress.header?.revision) >= five, 'all was told up to there');
  // A lease of another test that lapses meanwhile is a revision, too.
  const future = five + 4;
  await watches.create('w/', { watchId: 11n, startRevision: BigInt(future) });
  let six = five;
  while (six < future) six = await client.put('w/4', 'now');
  await waitFor('the future', () => watches.events(11n).length > 0);
  t.same(watches.events(11n), [`+w/4=now@${six}`]);

  watches.say({ case: 'cancelRequest', value: { watchId: 9n } });
  await waitFor('the end', () => watches.told.some(({ watchId, canceled }) => watchId === 9n && canceled));
  await client.call(KV.method.compact, { revision: BigInt(six) });
  t.match(await watches.create('w/', { watchId: 12n, startRevision: BigInt(six) }), { watchId: 12n, canceled: false });
  await waitFor('what the compaction kept', () => watches.events(12n).length === 1);
  await watches.create('w/', { watchId: 13n, startRevision: BigInt(six - 1) });
  const canceled = await waitFor('a cancellation', () =>
    watches.told.find(({ watchId, canceled }) => watchId === 13n && canceled),
  );
  t.match(canceled, { compactRevision: BigInt(six), cancelReason: /compacted/ });
});

t.test('a client that reads nothing costs only itself', async (t) => {
  const client = new RawClient(t, shared.port);
  const slow = connectHttp2(`http://127.0.0.1:${shared.port}`, { settings: { initialWindowSize: 16_384 } });
  slow.on('error', () => undefined);
  t.teardown(() => slow.destroy());
  const headers = { ':method': 'POST', 'content-type': 'application/grpc', te: 'trailers' };
  const stream = slow.request({ ...headers, ':path': '/etcdserverpb.Watch/Watch' });
  stream.on('error', () => undefined);
  stream.pause();
  // create_request {key: "s", range_end: "t"}
  stream.write(Buffer.from([0, 0, 0, 0, 8, 0x0a, 6, 0x0a, 1, 0x73, 0x12, 1, 0x74]));
  const lively = client.watches();
  t.teardown(() => lively.stream.cancel());
  await lively.create('s');
  await waitFor('both', async () => (await shared.metric('legate_store_server_watches_count')) >= 2);
  const value = 'v'.repeat(50_000);
  const rounds = 60;
  for (let round = 0; round < rounds; round += 1) await client.put(`s${round % 5}`, value);
  await waitFor('all for the other', () => lively.events().length === rounds);
  t.ok((await shared.metric('legate_store_server_watch_lags_total')) >= 1, 'it fell behind');
  t.ok((await shared.metric('legate_store_server_outstanding_bytes')) < 2 * 1024 * 1024, 'little is kept for it');
  const last = await client.put('s-last', 'end');
  let received = Buffer.alloc(0);
  stream.on('data', (data: Buffer) => {
    received = Buffer.concat([received, data]).subarray(-1000);
  });
  stream.resume();
  await waitFor('the last for the slow one', () => received.includes('s-last'));
  t.ok(last > 0);
});

t.test('connections that are none', async (t) => {
  const offered = await OfferedStore.open(t);
  const ended = async (say: Buffer): Promise<void> => {
    const socket = connect(offered.port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.resume().write(say);
    await once(socket, 'close');
  };
  await ended(bytes('GET / HTTP/1.1\r\n\r\n'));
  await ended(Buffer.alloc(100, 0xff));
  await ended(Buffer.concat([bytes('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.alloc(500, 0xee)]));
  t.equal(await offered.metric('legate_store_server_dropped_total'), 2);
  const sockets = Array.from({ length: limits.connections + 5 }, () => {
    const socket = connect(offered.port, '127.0.0.1')
      .on('error', () => undefined)
      .resume();
    t.teardown(() => socket.destroy());
    return socket;
  });
  await waitFor('too many', async () => (await offered.metric('legate_store_server_dropped_total')) >= 7);
  for (const socket of sockets) socket.destroy();
  await waitFor('none', async () => (await offered.metric('legate_store_server_connections')) === 0);
  const client = new RawClient(t, offered.port);
  t.ok(await client.put('k', 'v'), 'others are served');
});

t.test('more watches than may be', async (t) => {
  const client = new RawClient(t, shared.port);
  const watches = client.watches();
  t.teardown(() => watches.stream.cancel());
  await watches.create('many');
  const wish = { key: bytes('many'), rangeEnd: prefixEnd('many') };
  for (let made = 1; made <= limits.watchesPerStream; made += 1) watches.say({ case: 'createRequest', value: wish });
  const refused = await waitFor('a refusal', () => watches.told.find(({ canceled }) => canceled));
  t.match(refused.cancelReason, /too many requests/);
  t.equal(watches.told.filter(({ created, canceled }) => created && !canceled).length, limits.watchesPerStream);
});

t.test('it listens when it can, and says when it cannot', async (t) => {
  const holder = createServer().listen(0, '127.0.0.1');
  await once(holder, 'listening');
  const address = holder.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  const offered = await OfferedStore.open(t, { listen: { address: '127.0.0.1', port } });
  const ids = (): string[] => offered.conditions.list().map(({ id }) => id);
  t.same(ids(), ['store.listen']);
  await offered.store.put('k', bytes('v'));
  holder.close();
  await waitFor('it to listen', () => !ids().includes('store.listen'));
  t.ok(await new RawClient(t, port).put('k', 'w'));
  const open = await OfferedStore.open(t, { listen: { address: '0.0.0.0', port: 0 } });
  t.match(open.conditions.list()[0], { id: 'store.listen.open', severity: 'warning' });
  await open.close();
  t.same(open.conditions.list(), []);
});

t.test('after a restart', async (t) => {
  const offered = await OfferedStore.open(t);
  const client = new RawClient(t, offered.port);
  const { ID } = await client.call(Lease.method.leaseGrant, { TTL: 60n });
  const from = await client.put('r/1', 'a', { lease: ID });
  await client.put('r/2', 'b');
  const before = await client.call(Maintenance.method.status, {});
  const { members } = await client.call(Cluster.method.memberList, {});
  t.match(members, [{ clientURLs: [`http://127.0.0.1:${offered.port}`] }]);
  const watches = client.watches();
  await watches.create('r/');
  const { endpoint } = offered.server;
  await offered.close();
  await waitFor('the stream to end', () => watches.error);
  t.equal(watches.error?.code, status.UNAVAILABLE);
  await offered.start(endpoint);
  const again = new RawClient(t, offered.port);
  const after = await again.call(Maintenance.method.status, {});
  t.equal(after.header?.clusterId, before.header?.clusterId);
  t.equal(after.header?.memberId, before.header?.memberId);
  t.equal((await again.call(Lease.method.leaseTimeToLive, { ID })).grantedTTL, 60n);
  const resumed = again.watches();
  t.teardown(() => resumed.stream.cancel());
  await resumed.create('r/', { startRevision: BigInt(from + 1) });
  await waitFor('history', () => resumed.events().length === 1);
  t.match(resumed.events()[0], /^\+r\/2=b/);
});

t.test('while the store is closed under it calls are refused', async (t) => {
  const offered = await OfferedStore.open(t);
  const client = new RawClient(t, offered.port);
  await client.put('k', 'v');
  await offered.store.close();
  const refused = { code: status.UNAVAILABLE };
  await t.rejects(client.put('k', 'v'), refused);
  await t.rejects(client.call(KV.method.range, { key: bytes('k') }), refused);
  await t.rejects(client.call(KV.method.range, { key: bytes('k'), rangeEnd: bytes('l') }), refused);
  await t.rejects(client.call(Lease.method.leaseLeases, {}), refused);
});
