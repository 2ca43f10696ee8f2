import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import t from 'tap';
import { Backoff } from './backoff.ts';
import { ManualClock } from './clock.ts';
import { Conditions } from './conditions.ts';
import { formatDuration, parseDuration } from './duration.ts';
import { describeError, isLegateError, LegateError, systemCode } from './errors.ts';
import { type Change, FeedQueue, Latest } from './feed.ts';
import { readFileIfAny, writeFileAtomically } from './files.ts';
import { createLog, type LogFields, silentLog } from './log.ts';
import { Metrics } from './metrics.ts';
import { PersistentMap } from './persistent-map.ts';
import { nearest, printable, truncate } from './text.ts';
import { within } from './within.ts';

t.test('durations', async (t) => {
  const cases: readonly [string, number | undefined][] = [
    ['250ms', 250],
    ['5s', 5000],
    ['1.5s', 1500],
    ['2m', 120_000],
    ['24h', 86_400_000],
    ['1d', 86_400_000],
    ['1m30s', 90_000],
    ['0', 0],
    ['5', undefined],
    ['s', undefined],
    ['-5s', undefined],
    ['5 s', undefined],
    ['', undefined],
  ];
  for (const [text, expected] of cases) t.equal(parseDuration(text), expected, JSON.stringify(text));
  for (const text of ['250ms', '5s', '2m', '24h', '0s', '1500ms'])
    t.equal(formatDuration(parseDuration(text) ?? -1), text);
});

t.test('text from strangers', async (t) => {
  t.equal(printable('a\u001b[31mred\u0007\nb\u202e'), 'a\\u001b[31mred\\u0007\\nb\\u202e');
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => !/[\u0000-\u001f\u007f-\u009f]/.test(printable(text))),
  );
  t.equal(truncate('abcdef', 4), 'abc…');
  t.equal(truncate('abcd', 4), 'abcd');
  t.equal(nearest('blance', ['balance', 'port', 'protocol']), 'balance');
  t.equal(nearest('xyzzy', ['balance', 'port']), undefined);
  t.equal(nearest('wbe', ['db', 'mail', 'web']), 'web', 'two letters swapped');
  t.equal(nearest('wxe', ['db', 'mail', 'web']), undefined);
});

t.test('errors', async (t) => {
  const cause = Object.assign(new Error('connect refused'), { code: 'ECONNREFUSED' });
  const error = new LegateError('E_UNREACHABLE', 'no answer from 10.0.0.1:1', { hint: 'start it', cause });
  t.equal(describeError(error), 'no answer from 10.0.0.1:1: connect refused');
  t.ok(isLegateError(error, 'E_UNREACHABLE'));
  t.notOk(isLegateError(error, 'E_TIMEOUT'));
  t.equal(systemCode(cause), 'ECONNREFUSED');
  t.equal(describeError('plain'), 'plain');
});

t.test('back-off doubles, is spread, and has a ceiling', async (t) => {
  const low = new Backoff(100, 1000, () => 0);
  t.same([low.nextMs(), low.nextMs(), low.nextMs(), low.nextMs(), low.nextMs()], [80, 160, 320, 640, 800]);
  low.reset();
  t.equal(low.nextMs(), 80);
  const high = new Backoff(100, 1000, () => 1);
  t.ok(Math.abs(high.nextMs() - 120) < 0.001);
});

t.test('the manual clock runs timers in order', async (t) => {
  const clock = new ManualClock(0);
  const seen: string[] = [];
  clock.after(20, () => seen.push('b'));
  clock.after(10, () => {
    seen.push('a');
    clock.after(5, () => seen.push('a2'));
  });
  const cancel = clock.after(15, () => seen.push('never'));
  cancel();
  await clock.advance(19);
  t.same(seen, ['a', 'a2']);
  await clock.advance(1);
  t.same(seen, ['a', 'a2', 'b']);
  const stop = new AbortController();
  const sleep = clock.sleep(1000, stop.signal);
  stop.abort(new Error('enough'));
  await t.rejects(sleep, /enough/);
  t.equal(clock.pending, 0);
});

t.test('a feed queue merges what was not taken and converges', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(changeArbitrary, { maxLength: 30 }), fc.array(fc.boolean()), async (changes, pauses) => {
      const queue = new FeedQueue<Item>((item) => item.key);
      const expected = new Map<string, number>();
      const got = new Map<string, number>();
      const reader = (async () => {
        for await (const change of queue) applyTo(got, change);
      })();
      let index = 0;
      for (const change of [{ kind: 'reset', items: [], revision: '0' } as const, ...changes]) {
        applyTo(expected, change);
        queue.push(change);
        if (pauses[index++] === true) await new Promise((resolve) => setImmediate(resolve));
      }
      queue.end();
      await reader;
      t.same([...got].sort(), [...expected].sort());
    }),
    { numRuns: 200 },
  );
  const failing = new FeedQueue<Item>((item) => item.key);
  failing.end(new Error('broken'));
  await t.rejects(async () => {
    for await (const _change of failing) t.fail('nothing was pushed');
  }, /broken/);
});

interface Item {
  readonly key: string;
  readonly value: number;
}
const keyArbitrary = fc.constantFrom('a', 'b', 'c', 'd');
const itemArbitrary = fc.record({ key: keyArbitrary, value: fc.nat(9) });
const changeArbitrary: fc.Arbitrary<Change<Item>> = fc.oneof(
  fc.record({
    kind: fc.constant('reset' as const),
    items: fc.uniqueArray(itemArbitrary, { selector: (item) => item.key }),
    revision: fc.constant('r'),
  }),
  fc.record({
    kind: fc.constant('delta' as const),
    puts: fc.uniqueArray(itemArbitrary, { selector: (item) => item.key, maxLength: 2 }),
    deletes: fc.constant([]),
    revision: fc.constant('r'),
  }),
  fc.record({
    kind: fc.constant('delta' as const),
    puts: fc.constant([]),
    deletes: fc.uniqueArray(keyArbitrary, { maxLength: 2 }),
    revision: fc.constant('r'),
  }),
);
function applyTo(map: Map<string, number>, change: Change<Item>): void {
  if (change.kind === 'reset') {
    map.clear();
    for (const item of change.items) map.set(item.key, item.value);
  } else {
    for (const key of change.deletes) map.delete(key);
    for (const item of change.puts) map.set(item.key, item.value);
  }
}

t.test('latest wins, once a turn', async (t) => {
  const latest = new Latest(0);
  const seen: number[] = [];
  const end = latest.subscribe((value) => seen.push(value));
  latest.set(1);
  latest.set(2);
  t.equal(latest.value, 2);
  await Promise.resolve();
  latest.set(2);
  await Promise.resolve();
  end();
  latest.set(3);
  await Promise.resolve();
  t.same(seen, [2]);
});

t.test('the persistent map equals a Map, shares what did not change, and tells what did', async (t) => {
  const operations = fc.array(
    fc.record({
      puts: fc.array(fc.tuple(fc.string({ maxLength: 3 }), fc.nat(5)), { maxLength: 5 }),
      deletes: fc.array(fc.string({ maxLength: 3 }), { maxLength: 3 }),
    }),
    { maxLength: 10 },
  );
  fc.assert(
    fc.property(operations, (steps) => {
      let map = PersistentMap.empty<number>();
      const model = new Map<string, number>();
      for (const { puts, deletes } of steps) {
        const before = map;
        const beforeModel = new Map(model);
        for (const key of deletes) model.delete(key);
        for (const [key, value] of puts) model.set(key, value);
        map = map.with(puts, deletes);
        t.same(new Map(map), model);
        t.same(new Map(before), beforeModel, 'the older version is untouched');
        t.equal(map.size, model.size);
        const rebuilt = new Map(beforeModel);
        for (const { key, after } of map.changesSince(before)) {
          if (after === undefined) rebuilt.delete(key);
          else rebuilt.set(key, after);
        }
        t.same(rebuilt, model);
      }
    }),
    { numRuns: 60 },
  );
  const map = PersistentMap.from([['a', 1]]);
  t.equal(map.with([['a', 1]], ['zz']), map, 'nothing changed, the same object');
});

t.test('conditions log once, count, and log when over', async (t) => {
  const lines: [string, LogFields | undefined][] = [];
  const note = (message: string, fields?: LogFields): void => void lines.push([message, fields]);
  const clock = new ManualClock(5000);
  const conditions = new Conditions({ ...silentLog, error: note, warn: note, info: note }, clock, new Metrics());
  conditions.raise('dns.listen', 'error', 'port 53 is taken', 'stop dnsmasq');
  await clock.advance(100);
  conditions.raise('dns.listen', 'error', 'port 53 is taken', 'stop dnsmasq');
  conditions.raise('docker', 'warning', 'away', 'start it');
  t.equal(lines.length, 2);
  t.match(conditions.list(), [
    { id: 'dns.listen', sinceMs: 5000, count: 2, hint: 'stop dnsmasq' },
    { id: 'docker', severity: 'warning', sinceMs: 5100 },
  ]);
  conditions.clear('dns.listen');
  conditions.clear('dns.listen');
  t.match(lines[2], ['fault is over', { 'condition.id': 'dns.listen', 'condition.lasted_ms': 100 }]);
  conditions.raise('a.1', 'note', 'x', 'y');
  conditions.raise('a.2', 'note', 'x', 'y');
  conditions.clearPrefix('a.', new Set(['a.2']));
  t.same(
    conditions.list().map((condition) => condition.id),
    ['docker', 'a.2'],
  );
});

t.test('metrics: cells are shared, bounded, and exposed', async (t) => {
  const metrics = new Metrics();
  metrics.counter('legate_dns_queries_total', 'Queries.', { type: 'A' }).value += 2;
  metrics.counter('legate_dns_queries_total', 'Queries.', { type: 'A' }).value += 1;
  metrics.gauge('legate_link_active_count', 'Active.', ['service'], () => [[['db'], 7]]);
  const text = await metrics.exposition();
  t.match(text, 'legate_dns_queries_total{type="A"} 3');
  t.match(text, 'legate_link_active_count{service="db"} 7');
  t.throws(() => metrics.counter('dns_total', 'x'), /legate_/);
  metrics.gauge('legate_link_active_count', 'Active.', ['service'], () => [[['db'], 8]]);
  metrics.histogram('legate_link_wait_seconds', 'Waits.', [1]).observe(0.5);
  metrics.histogram('legate_link_wait_seconds', 'Waits.', [1]).observe(0.5);
  const again = await metrics.exposition();
  t.match(again, 'legate_link_active_count{service="db"} 8', 'who is made anew takes over');
  t.match(again, 'legate_link_wait_seconds_count 2');
  for (let index = 0; index < Metrics.maxSeriesPerFamily + 10; index += 1) {
    metrics.counter('legate_dns_names_total', 'Names.', { name: `n${index}` }).value += 1;
  }
  t.match(await metrics.exposition(), 'legate_dns_names_total{name="other"} 10');
});

t.test('log lines are JSON with constant message and level in words', async (t) => {
  const lines: string[] = [];
  const log = createLog('info', { write: (line: string) => void lines.push(line) });
  log.child({ part: 'dns' }).info('listening', { 'dns.listen': '127.0.0.1:7753' });
  log.debug('hidden');
  t.equal(lines.length, 1);
  t.match(JSON.parse(lines[0] ?? ''), { level: 'info', msg: 'listening', part: 'dns', 'dns.listen': '127.0.0.1:7753' });
});

t.test('files are replaced as a whole and private', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'legate-base-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'a.json');
  t.equal(readFileIfAny(path), undefined);
  await writeFileAtomically(path, ['one']);
  await writeFileAtomically(path, ['two']);
  t.equal(readFileSync(path, 'utf8'), 'two');
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.throws(() => readFileIfAny(path, 2), { code: 'E_TOO_LARGE' });
  await t.rejects(writeFileAtomically(join(folder, 'absent', 'a'), ['x']), { code: 'ENOENT' });
});

t.test('a limit comes although nobody holds its signal while memory is tidied up', async (t) => {
  setFlagsFromString('--expose-gc');
  const collect: () => void = runInNewContext('gc');
  const waiting = (until: AbortSignal): Promise<never> =>
    new Promise((_, reject) => {
      if (until.aborted) reject(until.reason);
      until.addEventListener('abort', () => reject(until.reason), { once: true });
    });
  const { signal } = new AbortController();
  const limited = t.rejects(within(50, signal, waiting), { name: 'TimeoutError' });
  await new Promise((resolve) => setImmediate(resolve));
  collect();
  await limited;
  await t.rejects(within(60_000, AbortSignal.abort(new Error('over')), waiting), { message: 'over' });
  const ending = new AbortController();
  const ended = t.rejects(within(60_000, ending.signal, waiting), { message: 'later' });
  ending.abort(new Error('later'));
  await ended;
});
