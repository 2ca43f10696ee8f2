import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import type { Test } from 'tap';
import { isLegateError } from '../../src/base/errors.ts';
import type { Change } from '../../src/base/feed.ts';
import { type Entry, type Guard, type Lease, maxKeyBytes, type Store, type Write } from '../../src/store/store.ts';
import { waitFor } from '../support/wait.ts';
import { Follower } from './follower.ts';

/** A store under test and what can be done to it from outside. What is left out is skipped by name. */
export interface StoreHarness {
  readonly store: Store;
  /** Ends this client and opens another on the same data. */
  readonly reopen?: () => Promise<Store>;
  /** Runs `use` with a client that then dies without giving anything back; gives a living client on the same data. */
  readonly die?: (use: (store: Store) => Promise<void>) => Promise<Store>;
  /** Lets this much of the store's time pass. */
  readonly advance: (byMs: number) => Promise<void>;
  /** Makes the backend forget history up to this revision. */
  readonly compact?: (revision: string) => Promise<void>;
  readonly close: () => Promise<void>;
}

/** Where backends differ. */
export interface StoreFeatures {
  /** The shortest lease that the backend grants. */
  readonly leaseTtlMs: number;
  /** After how many TTLs a lease has lapsed for certain. */
  readonly lapseFactor: number;
  /** Whether a watch goes on from an older revision without a reset. */
  readonly resumes: boolean;
  readonly propertyRuns: number;
  /** Whether checks may run at the same time, as far as the caller's `t.jobs` allows: for backends that take real time. */
  readonly concurrent?: boolean;
}

const bytes = (text: string): Uint8Array => Buffer.from(text);
const textOf = (entry: Entry | undefined): string | undefined =>
  entry === undefined ? undefined : Buffer.from(entry.value).toString();

/** Everything that store.ts promises, as tests. Each opens a store of its own and keeps to keys of its own. */
export function storeContract(t: Test, name: string, open: () => Promise<StoreHarness>, features: StoreFeatures): void {
  const check = (
    title: string,
    run: (t: Test, harness: StoreHarness, at: (key: string) => string) => Promise<void>,
  ): void => {
    void t.test(`${name}: ${title}`, { buffered: features.concurrent === true }, async (t) => {
      const harness = await open();
      t.teardown(() => harness.close());
      const root = `/test/${randomBytes(6).toString('hex')}/`;
      await run(t, harness, (key) => root + key);
    });
  };

  check('keeps what is put, and orders it', async (t, { store }, at) => {
    t.equal(await store.get(at('a')), undefined);
    const value = bytes('one');
    const first = store.put(at('a'), value);
    value.fill(0);
    const one = await first;
    const entry = await store.get(at('a'));
    t.equal(textOf(entry), 'one', 'the value is that of the moment of the call');
    t.equal(entry?.revision, one);
    const two = await store.put(at('a'), bytes(''));
    t.ok(store.compareRevisions(one, two) < 0 && store.compareRevisions(two, one) > 0);
    t.equal(store.compareRevisions(two, two), 0);
    t.equal((await store.get(at('a')))?.value.byteLength, 0, 'an empty value is a value');
    const raw = Buffer.from([0, 255, 128, 10]);
    await store.put(at('b'), raw);
    t.same(Buffer.from((await store.get(at('b')))?.value ?? []), raw, 'bytes are kept as they are');
    const gone = await store.delete(at('a'));
    t.ok(gone !== undefined && store.compareRevisions(two, gone) < 0);
    t.equal(await store.get(at('a')), undefined);
    t.equal(await store.delete(at('a')), undefined, 'nothing to delete');
    t.equal(store.status.value.state, 'connected');
    t.type(store.status.value.storeId, 'string');
  });

  check('ranges in the order of UTF-8 bytes', async (t, { store }, at) => {
    const names = ['', 'a', 'a/', 'a/b', 'a0', 'aa', 'b', 'é', '\uffee', '\u{10000}', '\u{1f600}'];
    const keys = names.map((key) => at(`r/${key}`));
    for (const key of [...keys].reverse()) await store.put(key, bytes(key));
    const last = await store.put(at('q'), bytes('outside'));
    const range = await store.range(at('r/'));
    t.same(
      range.entries.map(({ key }) => key),
      keys,
    );
    t.same(range.entries.map(textOf), keys);
    t.ok(store.compareRevisions(range.revision, last) >= 0);
    t.same(
      (await store.range(at('r/'), { limit: 3 })).entries.map(({ key }) => key),
      keys.slice(0, 3),
    );
    t.same((await store.range(at('r/a/'))).entries.length, 2);
    t.same((await store.range(at('nothing/'))).entries, []);
  });

  check('refuses what is beyond the limits', async (t, { store }, at) => {
    const { limits } = store;
    const many = Array.from({ length: limits.txnOperations }, (_, index): Write => {
      return { kind: 'put', key: at(String(index)), value: bytes('') };
    });
    const refused: [string, string, () => unknown][] = [
      ['empty key', 'E_INVALID', () => store.put('', bytes(''))],
      ['NUL', 'E_INVALID', () => store.put('a\u0000b', bytes(''))],
      ['half a surrogate pair', 'E_INVALID', () => store.get('a\ud800')],
      ['long key', 'E_TOO_LARGE', () => store.get('é'.repeat(maxKeyBytes / 2 + 1))],
      ['long prefix', 'E_TOO_LARGE', () => store.range('a'.repeat(maxKeyBytes + 1))],
      ['large value', 'E_TOO_LARGE', () => store.put(at('a'), Buffer.alloc(limits.valueBytes + 1))],
      ['many writes', 'E_TOO_LARGE', () => store.txn([{ kind: 'absent', key: at('z') }], many)],
      ['a key twice', 'E_INVALID', () => store.txn([], [...many.slice(0, 1), { kind: 'delete', key: at('0') }])],
      ['a lease of nothing', 'E_INVALID', () => store.lease(0)],
      ['a watch of NUL', 'E_INVALID', () => store.watch('\u0000', { signal: AbortSignal.abort() })],
    ];
    for (const [what, code, run] of refused) {
      await t.rejects(async () => await run(), { code }, what);
    }
    t.same((await store.range(at(''))).entries, [], 'nothing was written');
    const longKey = at('k').padEnd(maxKeyBytes, 'k');
    await store.put(longKey, Buffer.alloc(limits.valueBytes, 7));
    t.equal((await store.get(longKey))?.value.byteLength, limits.valueBytes);
    t.ok((await store.txn([], many)).ok);
  });

  check('decides transactions by their guards', async (t, { store }, at) => {
    const old = await store.put(at('k'), bytes('0'));
    const now = await store.put(at('k'), bytes('1'));
    const cases: [guards: Guard[], ok: boolean][] = [
      [[], true],
      [[{ kind: 'exists', key: at('k') }], true],
      [[{ kind: 'absent', key: at('k') }], false],
      [[{ kind: 'exists', key: at('none') }], false],
      [[{ kind: 'absent', key: at('none') }], true],
      [[{ kind: 'revision', key: at('k'), revision: now }], true],
      [[{ kind: 'revision', key: at('k'), revision: old }], false],
      [[{ kind: 'revision', key: at('none'), revision: now }], false],
      [[{ kind: 'revision', key: at('k'), revision: 'nonsense' }], false],
      [
        [
          { kind: 'exists', key: at('k') },
          { kind: 'exists', key: at('none') },
        ],
        false,
      ],
    ];
    for (const [index, [guards, ok]] of cases.entries()) {
      const writes: Write[] = [
        { kind: 'put', key: at(`x${index}`), value: bytes('x') },
        { kind: 'put', key: at(`y${index}`), value: bytes('y') },
        { kind: 'delete', key: at(`z${index}`) },
      ];
      const result = await store.txn(guards, writes);
      t.equal(result.ok, ok, JSON.stringify(guards.map(({ kind }) => kind)));
      const x = await store.get(at(`x${index}`));
      const y = await store.get(at(`y${index}`));
      t.equal(x?.revision, result.ok ? result.revision : undefined);
      t.equal(y?.revision, x?.revision, 'all at one revision');
    }
  });

  check('lets one of many compare-and-swaps win', async (t, { store }, at) => {
    const base = await store.put(at('k'), bytes('-'));
    const contend = (guard: Guard): Promise<number[]> =>
      Promise.all(
        Array.from({ length: 20 }, async (_, index) => {
          const write: Write = { kind: 'put', key: guard.key, value: bytes(String(index)) };
          return (await store.txn([guard], [write])).ok ? index : -1;
        }),
      );
    for (const guard of [
      { kind: 'revision', key: at('k'), revision: base },
      { kind: 'absent', key: at('new') },
    ] satisfies Guard[]) {
      const winners = (await contend(guard)).filter((index) => index >= 0);
      t.equal(winners.length, 1);
      t.equal(textOf(await store.get(guard.key)), String(winners[0]));
    }
    const increments = Array.from({ length: 8 }, async () => {
      for (let done = 0; done < 5; ) {
        const before = await store.get(at('count'));
        const guard: Guard =
          before === undefined
            ? { kind: 'absent', key: at('count') }
            : { kind: 'revision', key: at('count'), revision: before.revision };
        const value = bytes(String(Number(textOf(before) ?? 0) + 1));
        if ((await store.txn([guard], [{ kind: 'put', key: at('count'), value }])).ok) done += 1;
      }
    });
    await Promise.all(increments);
    t.equal(textOf(await store.get(at('count'))), '40', 'no increment is lost');
  });

  check('behaves like a simple model', async (t, { store }, at) => {
    const key = fc.constantFrom('a', 'a/b', 'a/c', 'b', 'b/a', 'c');
    const value = fc.string({ maxLength: 8 });
    const guard = fc.record({ kind: fc.constantFrom('absent', 'exists', 'current', 'stale'), key } as const);
    const write = fc.oneof(
      fc.record({ kind: fc.constant('put' as const), key, value }),
      fc.record({ kind: fc.constant('delete' as const), key }),
    );
    const step = fc.oneof(
      { weight: 3, arbitrary: fc.record({ op: fc.constant('put' as const), key, value }) },
      { weight: 2, arbitrary: fc.record({ op: fc.constant('delete' as const), key }) },
      {
        weight: 3,
        arbitrary: fc.record({
          op: fc.constant('txn' as const),
          guards: fc.array(guard, { maxLength: 2 }),
          writes: fc.uniqueArray(write, { maxLength: 4, selector: (item) => item.key }),
        }),
      },
      {
        weight: 1,
        arbitrary: fc.record({ op: fc.constant('range' as const), prefix: fc.constantFrom('', 'a', 'a/', 'd') }),
      },
    );
    let run = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), async (steps) => {
        run += 1;
        const inRun = (name: string): string => at(`${run}/${name}`);
        const model = new Map<string, { value: string; revision: string }>();
        const firsts = new Map<string, string>();
        const followers = ['', 'a', 'a/'].map((prefix) => ({ prefix, follower: new Follower(store, inRun(prefix)) }));
        let last = '';
        const wrote = (revision: string): void => {
          if (last !== '' && store.compareRevisions(last, revision) >= 0) throw new Error('revision did not grow');
          last = revision;
        };
        const put = (name: string, text: string, revision: string): void => {
          model.set(name, { value: text, revision });
          if (!firsts.has(name)) firsts.set(name, revision);
        };
        try {
          for (const item of steps) {
            if (item.op === 'put') {
              const revision = await store.put(inRun(item.key), bytes(item.value));
              wrote(revision);
              put(item.key, item.value, revision);
            } else if (item.op === 'delete') {
              const revision = await store.delete(inRun(item.key));
              if (model.delete(item.key) !== (revision !== undefined)) throw new Error('delete disagrees');
              if (revision !== undefined) wrote(revision);
            } else if (item.op === 'range') {
              const { entries } = await store.range(inRun(item.prefix));
              same(
                entries.map((entry) => [entry.key, textOf(entry), entry.revision]),
                [...model]
                  .filter(([name]) => name.startsWith(item.prefix))
                  .sort(([a], [b]) => (a < b ? -1 : 1))
                  .map(([name, entry]) => [inRun(name), entry.value, entry.revision]),
              );
            } else {
              const guards = item.guards.map(({ kind, key }): Guard => {
                if (kind === 'absent' || kind === 'exists') return { kind, key: inRun(key) };
                const revision = kind === 'current' ? model.get(key)?.revision : firsts.get(key);
                return { kind: 'revision', key: inRun(key), revision: revision ?? 'none' };
              });
              const holds = item.guards.every(({ kind, key }) => {
                const entry = model.get(key);
                if (kind === 'absent') return entry === undefined;
                return entry !== undefined && (kind !== 'stale' || entry.revision === firsts.get(key));
              });
              const writes = item.writes.map(
                (each): Write =>
                  each.kind === 'put'
                    ? { kind: 'put', key: inRun(each.key), value: bytes(each.value) }
                    : { kind: 'delete', key: inRun(each.key) },
              );
              const effective = item.writes.some((each) => each.kind === 'put' || model.has(each.key));
              const result = await store.txn(guards, writes);
              if (result.ok !== holds) throw new Error(`txn is ${result.ok}, the model says ${holds}`);
              if (result.ok && effective) wrote(result.revision);
              for (const each of result.ok ? item.writes : []) {
                if (each.kind === 'delete') model.delete(each.key);
                else put(each.key, each.value, result.ok ? result.revision : '');
              }
            }
            for (const [name, { value: text }] of model) {
              if (textOf(await store.get(inRun(name))) !== text) throw new Error(`${name} is not ${text}`);
            }
          }
          for (const { prefix, follower } of followers) {
            const wanted = [...model].filter(([name]) => name.startsWith(prefix));
            await follower.has(new Map(wanted.map(([name, entry]) => [inRun(name), entry.value])));
          }
        } finally {
          for (const { follower } of followers) await follower.stop();
        }
      }),
      { numRuns: features.propertyRuns },
    );
    t.pass(`${run} runs`);
  });

  check('watches: a reset, then what changes', async (t, { store }, at) => {
    await store.put(at('w/1'), bytes('1'));
    await store.put(at('other'), bytes('x'));
    const follower = new Follower(store, at('w/'));
    await follower.has(new Map([[at('w/1'), '1']]));
    t.equal(follower.changes[0]?.kind, 'reset');
    const put = await store.put(at('w/2'), bytes('2'));
    await store.put(at('other'), bytes('y'));
    await follower.has(
      new Map([
        [at('w/1'), '1'],
        [at('w/2'), '2'],
      ]),
    );
    t.equal(follower.entries.get(at('w/2'))?.revision, put);
    await store.delete(at('w/1'));
    await store.txn(
      [],
      [
        { kind: 'delete', key: at('w/2') },
        { kind: 'put', key: at('w/3'), value: bytes('3') },
      ],
    );
    await follower.has(new Map([[at('w/3'), '3']]));
    t.equal(follower.changes.filter(({ kind }) => kind === 'reset').length, 1, 'one reset only');
    t.ok(!JSON.stringify(follower.changes).includes('other'), 'nothing of other prefixes');
    await follower.stop();
    const empty = new Follower(store, at('nothing/'));
    await waitFor('a reset without items', () => empty.changes[0]?.kind === 'reset');
    await empty.stop();
    for await (const _ of store.watch(at(''), { signal: AbortSignal.abort() }))
      t.fail('an aborted watch said something');
    for await (const _ of store.watch(at(''), { signal: AbortSignal.timeout(10_000) })) break;
  });

  check('resumes a watch', async (t, { store }, at) => {
    await store.put(at('w/kept'), bytes('1'));
    const from = await store.put(at('w/deleted'), bytes('1'));
    await store.put(at('w/new'), bytes('1'));
    await store.put(at('w/new'), bytes('2'));
    await store.delete(at('w/deleted'));
    const last = await store.put(at('outside'), bytes('1'));
    const follower = new Follower(store, at('w/'), from);
    await waitFor('the new key', () => follower.entries.has(at('w/new')));
    if (features.resumes) {
      const [change] = follower.changes;
      t.equal(change?.kind, 'delta');
      t.same(change?.kind === 'delta' && change.deletes, [at('w/deleted')]);
      t.same(follower.texts(), new Map([[at('w/new'), '2']]), 'only what changed');
      const current = new Follower(store, at('w/'), last);
      await store.put(at('w/later'), bytes('1'));
      await waitFor('what came later', () => current.entries.has(at('w/later')));
      t.ok(current.changes.every(({ kind }) => kind === 'delta'));
      await current.stop();
    }
    await follower.stop();
    const [storePart = ''] = last.split('.');
    for (const strange of ['', 'nonsense', '00000000.5', `${storePart}.999999999`, '-1', '99999999999999999999']) {
      const reset = new Follower(store, at('w/'), strange);
      await waitFor('a first change', () => reset.changes.length > 0);
      t.equal(reset.changes[0]?.kind, 'reset', `from ${strange}`);
      await reset.stop();
    }
  });

  check('resets a watch when its revision was compacted', async (t, { store, compact }, at) => {
    if (compact === undefined) return await skipped(t, 'the backend keeps no history to compact');
    const from = await store.put(at('w/1'), bytes('1'));
    await store.delete(at('w/1'));
    const middle = await store.put(at('w/2'), bytes('2'));
    const last = await store.put(at('w/2'), bytes('3'));
    const living = new Follower(store, at('w/'));
    await living.has(new Map([[at('w/2'), '3']]));
    await compact(middle);
    const late = new Follower(store, at('w/'), from);
    await late.has(new Map([[at('w/2'), '3']]));
    t.equal(late.changes[0]?.kind, 'reset');
    const still = new Follower(store, at('w/'), middle);
    await still.has(new Map([[at('w/2'), '3']]));
    t.equal(still.changes[0]?.kind, features.resumes ? 'delta' : 'reset');
    await compact(last);
    await store.put(at('w/4'), bytes('4'));
    for (const follower of [living, late, still]) {
      await follower.has(
        new Map([
          [at('w/2'), '3'],
          [at('w/4'), '4'],
        ]),
      );
      await follower.stop();
    }
    t.equal(living.changes.filter(({ kind }) => kind === 'reset').length, 1, 'a living watch does not notice');
  });

  check('converges with a slow consumer', async (t, { store }, at) => {
    const abort = new AbortController();
    t.teardown(() => abort.abort());
    const feed = store.watch(at('w/'), { signal: abort.signal })[Symbol.asyncIterator]();
    t.equal((await feed.next()).value?.kind, 'reset');
    const writes = Array.from({ length: 300 }, (_, index) => store.put(at(`w/${index % 7}`), bytes(String(index))));
    await Promise.all(writes);
    await store.delete(at('w/0'));
    const want = new Map((await store.range(at('w/'))).entries.map((entry) => [entry.key, textOf(entry)]));
    const seen = new Map<string, string | undefined>();
    let changes = 0;
    while (JSON.stringify([...seen].sort()) !== JSON.stringify([...want].sort())) {
      const { value: change } = await feed.next();
      if (change === undefined) break;
      changes += 1;
      fold(seen, change);
    }
    t.same([...seen].sort(), [...want].sort());
    t.ok(changes < 150, `versions were merged: ${changes} changes for 301 writes`);
  });

  check('leases: revoked, its keys are gone', async (t, { store, advance }, at) => {
    const lease = await store.lease(features.leaseTtlMs);
    t.ok(lease.ttlMs >= features.leaseTtlMs);
    await store.put(at('l/1'), bytes('1'), { lease });
    await store.txn([], [{ kind: 'put', key: at('l/2'), value: bytes('2'), lease }]);
    await store.put(at('l/moved'), bytes('1'), { lease });
    await store.put(at('l/moved'), bytes('2'));
    const follower = new Follower(store, at('l/'));
    // Well after a lease that nobody keeps has lapsed.
    await advance(lease.ttlMs * features.lapseFactor * 1.25);
    t.notOk(lease.lost.aborted, 'kept alive');
    t.equal((await store.range(at('l/'))).entries.length, 3);
    await lease.revoke();
    t.ok(lease.lost.aborted);
    await follower.has(new Map([[at('l/moved'), '2']]));
    await follower.stop();
    await t.rejects(store.put(at('l/3'), bytes('3'), { lease }), { code: 'E_NOT_FOUND' });
    t.equal(await store.get(at('l/3')), undefined);
  });

  check('leases: one that nobody keeps alive lapses after its TTL', async (t, { store, advance }, at) => {
    const lease = await store.lease(features.leaseTtlMs, { keepAlive: false });
    await store.put(at('brief/1'), bytes('1'), { lease });
    await store.put(at('brief/moved'), bytes('1'), { lease });
    await store.put(at('brief/moved'), bytes('2'));
    const follower = new Follower(store, at('brief/'));
    await waitFor('a first change', () => follower.changes.length > 0);
    await advance(lease.ttlMs * features.lapseFactor);
    await follower.has(new Map([[at('brief/moved'), '2']]));
    await follower.stop();
    t.ok(lease.lost.aborted);
  });

  check('leases: lapse when their holder has died', async (t, { die, advance }, at) => {
    if (die === undefined) return await skipped(t, 'no client of this backend can be made to die');
    let ttlMs = 0;
    const store = await die(async (holder) => {
      const lease = await holder.lease(features.leaseTtlMs);
      ttlMs = lease.ttlMs;
      await holder.put(at('alive/1'), bytes('1'), { lease });
      await holder.put(at('alive/2'), bytes('2'), { lease });
      await holder.put(at('durable'), bytes('3'));
    });
    t.equal(textOf(await store.get(at('alive/1'))), '1', 'not before its TTL');
    const successor: Lease = await store.lease(features.leaseTtlMs);
    await store.put(at('alive/2'), bytes('mine'), { lease: successor });
    const follower = new Follower(store, at(''));
    await waitFor('a first change', () => follower.changes.length > 0);
    await advance(ttlMs * features.lapseFactor);
    await follower.has(
      new Map([
        [at('alive/2'), 'mine'],
        [at('durable'), '3'],
      ]),
    );
    await follower.stop();
    t.equal(await store.get(at('alive/1')), undefined);
    t.notOk(successor.lost.aborted, 'the key has a new holder');
  });

  check('is the same store after a restart', async (t, { store, reopen }, at) => {
    if (reopen === undefined) return await skipped(t, 'the backend is not restarted by its clients');
    await store.put(at('k'), bytes('1'));
    const from = await store.put(at('k'), bytes('2'));
    await store.put(at('l'), bytes('3'));
    const { storeId } = store.status.value;
    const again = await reopen();
    t.equal(again.status.value.storeId, storeId);
    t.equal((await again.get(at('k')))?.revision, from);
    t.ok(again.compareRevisions(from, await again.put(at('m'), bytes('4'))) < 0);
    const follower = new Follower(again, at(''), from);
    await waitFor('what came after', () => follower.entries.has(at('m')));
    if (features.resumes) {
      t.ok(follower.changes.every(({ kind }) => kind === 'delta'));
      t.same(
        follower.texts(),
        new Map([
          [at('l'), '3'],
          [at('m'), '4'],
        ]),
      );
    }
    await follower.stop();
  });

  check('ends what runs when it is closed', async (t, { store }, at) => {
    const lease = await store.lease(features.leaseTtlMs);
    const follower = new Follower(store, at(''));
    await waitFor('a first change', () => follower.changes.length > 0);
    const aborted = AbortSignal.abort(new Error('not wanted'));
    await t.rejects(store.put(at('a'), bytes(''), { signal: aborted }), { message: 'not wanted' });
    await t.rejects(store.get(at('a'), { signal: aborted }), { message: 'not wanted' });
    await store.close();
    await store.close();
    await follower.ended;
    t.ok(lease.lost.aborted);
    t.equal(store.status.value.state, 'closed');
    const closed: (() => Promise<unknown>)[] = [
      () => store.get(at('a')),
      () => store.range(at('')),
      () => store.put(at('a'), bytes('')),
      () => store.delete(at('a')),
      () => store.txn([], []),
      () => store.lease(features.leaseTtlMs),
    ];
    for (const run of closed) {
      const error: unknown = await run().then(
        () => undefined,
        (reason: unknown) => reason,
      );
      t.ok(isLegateError(error, 'E_CLOSED'), String(error));
    }
    for await (const _ of store.watch(at(''), { signal: AbortSignal.timeout(10_000) }))
      t.fail('a closed store said something');
  });
}

async function skipped(t: Test, reason: string): Promise<void> {
  await t.test(reason, { skip: reason }, async () => undefined);
}

function fold(seen: Map<string, string | undefined>, change: Change<Entry>): void {
  if (change.kind === 'reset') seen.clear();
  else for (const key of change.deletes) seen.delete(key);
  for (const entry of change.kind === 'reset' ? change.items : change.puts) seen.set(entry.key, textOf(entry));
}

function same(found: unknown, wanted: unknown): void {
  if (JSON.stringify(found) === JSON.stringify(wanted)) return;
  throw new Error(`found ${JSON.stringify(found)}, wanted ${JSON.stringify(wanted)}`);
}
