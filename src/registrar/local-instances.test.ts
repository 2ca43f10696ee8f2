import t from 'tap';
import { desiredInstance, instanceRecord, parts } from '../../test/support/records.ts';
import { ManualClock } from '../base/clock.ts';
import type { Change } from '../base/feed.ts';
import type { ProbeResult } from '../health/probe.ts';
import { HealthRunner } from '../health/runner.ts';
import { type CheckSpec, checkDefaults } from '../model/check.ts';
import type { DesiredInstance, InstanceRecord } from '../model/instance.ts';
import { LocalInstances, type LocalInstancesOptions, type SourceName } from './local-instances.ts';

const tcp: CheckSpec = { kind: 'tcp', ...checkDefaults };
const reset = (...items: DesiredInstance[]): Change<DesiredInstance> => ({ kind: 'reset', items, revision: '1' });
const delta = (puts: DesiredInstance[], deletes: string[] = []): Change<DesiredInstance> => ({
  kind: 'delta',
  puts,
  deletes,
  revision: '2',
});

function bench(over: Partial<LocalInstancesOptions> = {}) {
  const clock = new ManualClock();
  const shared = parts(clock);
  const changes: Change<InstanceRecord>[] = [];
  const state = { verdict: 'pass' as ProbeResult['verdict'] };
  const probe = async (): Promise<ProbeResult> => ({ verdict: state.verdict, output: state.verdict });
  const local = new LocalInstances({
    ...shared,
    health: (onChange) => new HealthRunner({ ...shared, random: () => 0.5, probes: { tcp: probe }, onChange }),
    remembered: [],
    sources: ['docker', 'file', 'api'],
    onChange: (change) => changes.push(change),
    ...over,
  });
  const shown = () =>
    [...local.records().values()]
      .map(({ name, status, draining }) => `${name} ${status}${draining ? ' draining' : ''}`)
      .sort();
  return { clock, conditions: shared.conditions, changes, state, local, shown };
}

t.test('wishes and health become records, and only differences are passed on', async (t) => {
  const { clock, changes, local, shown, state } = bench();
  local.apply('docker', reset(desiredInstance({ name: 'a', checks: [tcp] }), desiredInstance({ name: 'b' })));
  await clock.advance(0);
  t.equal(changes[0]?.kind, 'reset');
  t.same(shown(), ['a passing', 'b passing']);
  const { length } = changes;
  local.apply('docker', reset(desiredInstance({ name: 'b' }), desiredInstance({ name: 'a', checks: [tcp] })));
  local.apply('file', reset());
  await clock.advance(10_000);
  t.equal(changes.length, length, 'the same again is no difference');
  state.verdict = 'fail';
  await clock.advance(7000);
  t.match(changes.at(-1), { kind: 'delta', puts: [{ name: 'a', status: 'critical', output: 'fail' }], deletes: [] });
  local.apply('docker', delta([desiredInstance({ name: 'b', draining: true })], ['a']));
  await clock.advance(0);
  t.match(changes.at(-1), { kind: 'delta', puts: [{ name: 'b', draining: true }], deletes: ['a'] });
  t.same(shown(), ['b passing draining']);
  await local.close();
  t.equal(clock.pending, 0);
});

t.test('what a source had stays until it has told everything', async (t) => {
  const remembered = [
    instanceRecord({ name: 'c1', source: 'docker:one', status: 'critical', output: 'as stored' }),
    instanceRecord({ name: 'c2', source: 'docker:two' }),
    instanceRecord({ name: 'f1', source: 'file' }),
    instanceRecord({ name: 'h1', source: 'api' }),
  ];
  const { clock, changes, local, shown, state } = bench({ remembered, sources: ['docker', 'file'] });
  await clock.advance(0);
  t.equal(changes[0]?.kind, 'reset');
  t.same(shown(), ['c1 critical', 'c2 passing', 'f1 passing'], 'a source that is off has nothing more');
  t.notOk(local.mayDelete(instanceRecord({ name: 'x', source: 'docker:one' })));
  t.ok(local.mayDelete(instanceRecord({ name: 'x', source: 'api' })));
  local.apply('file', reset());
  await clock.advance(0);
  t.same(shown(), ['c1 critical', 'c2 passing']);
  state.verdict = 'fail';
  const again = desiredInstance({ name: 'c2', source: 'docker:two', checks: [tcp] });
  local.apply(
    'docker',
    reset(again, desiredInstance({ name: 'c1', source: 'docker:one', checks: [tcp], incarnation: 'new' })),
  );
  await clock.advance(0);
  t.same(shown(), ['c1 starting', 'c2 passing'], 'the same incarnation keeps its health, a new one begins anew');
  t.ok(local.mayDelete(instanceRecord({ name: 'x', source: 'docker:one' })));
  await clock.advance(1000);
  t.same(shown(), ['c1 critical', 'c2 passing'], 'it does not flap');
  await clock.advance(5000);
  t.same(shown(), ['c1 critical', 'c2 critical']);
  await local.close();
});

t.test('a restart in which nothing changed passes on nothing but the reset', async (t) => {
  const wishes = [
    desiredInstance({ name: 'a', checks: [tcp] }),
    desiredInstance({ name: 'b', meta: { z: '1', a: '2' } }),
  ];
  const first = bench();
  first.local.apply('docker', reset(...wishes));
  await first.clock.advance(0);
  const second = bench({ remembered: [...first.local.records().values()], sources: ['docker'] });
  await second.clock.advance(0);
  second.local.apply('docker', reset(...wishes));
  await second.clock.advance(60_000);
  t.equal(second.changes.length, 1);
  t.same(second.shown(), ['a passing', 'b passing']);
  await first.local.close();
  await second.local.close();
});

t.test('two sources with one name: the first keeps it', async (t) => {
  const { clock, conditions, local, changes } = bench();
  const put = (source: SourceName, port: number) =>
    local.apply(source, reset(desiredInstance({ name: 'a', port, source })));
  put('api', 1);
  put('file', 2);
  await clock.advance(0);
  t.equal(local.records().get('a')?.port, 1);
  t.match(conditions.list(), [{ id: 'registrar.clash.a', message: /file and api both have an instance a; api keeps/ }]);
  local.apply('api', delta([], ['a']));
  await clock.advance(0);
  t.equal(local.records().get('a')?.port, 2, 'then the other gets it');
  t.match(changes.at(-1), { deletes: [] });
  t.same(conditions.list(), []);
  t.throws(() => bench({ sources: ['file'] }).local.apply('docker', reset()));
});

t.test('what cannot be stored is refused with its reason, and harms nothing else', async (t) => {
  const { clock, conditions, local, shown } = bench();
  const bad = desiredInstance({ name: 'bad', meta: { key: 'x'.repeat(5000) } });
  local.apply('docker', reset(bad, desiredInstance({ name: 'good' }), desiredInstance({ name: 'no name' })));
  await clock.advance(0);
  t.same(shown(), ['good passing']);
  t.match(
    conditions.list().map(({ message }) => message),
    [/as bad: meta.key: is longer/, /as no name: name: "no name" is not/],
  );
  local.apply('docker', delta([], ['no name']));
  t.equal(conditions.list().length, 1);
  local.apply('docker', reset());
  t.same(conditions.list(), []);
});

t.test("an operator's drain outlives the sidecar and the container", async (t) => {
  const { clock, local, shown } = bench();
  local.apply('docker', reset(desiredInstance({ name: 'a' }), desiredInstance({ name: 'b' })));
  t.equal(local.drain('nobody', true), false);
  t.equal(local.drain('a', true), true);
  await clock.advance(0);
  t.same(shown(), ['a passing draining', 'b passing']);
  const later = bench({ remembered: [...local.records().values()], drained: local.drained, sources: ['docker'] });
  await later.clock.advance(0);
  t.same(later.shown(), ['a passing draining', 'b passing']);
  later.local.apply('docker', reset());
  later.local.apply('docker', delta([desiredInstance({ name: 'a', incarnation: 'new' })]));
  await later.clock.advance(0);
  t.same(later.shown(), ['a passing draining']);
  t.equal(later.local.drain('a', false), true);
  await later.clock.advance(0);
  t.same(later.shown(), ['a passing']);
  t.same([...later.local.drained], []);
});

t.test('a paused container is critical at once and itself again afterwards', async (t) => {
  const { clock, local, shown } = bench();
  const wish = desiredInstance({ name: 'a', checks: [tcp] });
  local.apply('docker', reset(wish));
  await clock.advance(0);
  local.apply('docker', delta([{ ...wish, suspended: 'the container is paused' }]));
  await clock.advance(0);
  t.same(shown(), ['a critical draining']);
  t.equal(local.records().get('a')?.output, 'the container is paused');
  local.apply('docker', delta([wish]));
  await clock.advance(0);
  t.same(shown(), ['a passing']);
  await local.close();
});

t.test('a container that reports itself leaves when it is silent for too long, and comes back', async (t) => {
  const { clock, local, shown, conditions, changes } = bench();
  const ttl: CheckSpec = { ...checkDefaults, kind: 'ttl', intervalMs: 10_000, deregisterAfterMs: 60_000 };
  const wish = desiredInstance({ name: 'a', source: 'docker:one', checks: [ttl] });
  local.apply('docker', reset(wish, desiredInstance({ name: 'b' })));
  t.equal(local.refresh('nobody', { status: 'passing', output: '' }), undefined);
  t.equal(local.refresh('b', { status: 'passing', output: '' }), false);
  t.equal(local.refresh('a', { status: 'warning', output: 'slow' }), true);
  await clock.advance(0);
  t.same(shown(), ['a warning', 'b passing']);
  local.apply('docker', delta([{ ...wish, weight: 5 }]));
  await clock.advance(10_000);
  t.same(shown(), ['a critical', 'b passing']);
  await clock.advance(60_000);
  t.same(shown(), ['b passing'], 'it has no record');
  t.match(changes.at(-1), { deletes: ['a'] });
  t.match(conditions.list(), [
    {
      severity: 'warning',
      message: /a of \S+ \(docker:one\) is deregistered after 1m critical: no refresh within 10s/,
    },
  ]);
  t.match(local.current('a'), { status: 'critical', weight: 5 });
  t.same([local.wanted(wish.service), local.wanted('other')], [['a', 'b'], []], 'it is still wanted');
  t.match(local.details('a')?.history, [{ status: 'critical' }, { status: 'warning' }, { status: 'starting' }]);
  local.refresh('a', { status: 'passing', output: '' });
  await clock.advance(0);
  t.same(shown(), ['a passing', 'b passing']);
  t.same(conditions.list(), []);
  await clock.advance(70_000);
  local.apply('docker', delta([], ['a']));
  await clock.advance(0);
  t.same(conditions.list(), [], 'nothing is said of what is gone');
  t.same(local.wanted(wish.service), ['b']);
  await local.close();
  t.equal(clock.pending, 0);
});
