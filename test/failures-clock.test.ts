import { join } from 'node:path';
import t from 'tap';
import { parseContainer } from '../sidecar/docker/container.ts';
import { Drains } from '../sidecar/docker/draining.ts';
import { ManualClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { HealthRunner } from '../src/health/runner.ts';
import { checkDefaults } from '../src/model/check.ts';
import { openEmbeddedStore } from '../src/store/embedded/embedded-store.ts';
import { temporaryFolder } from './support/agent.ts';
import { parts } from './support/records.ts';

/** The wall clock jumps by a day, forth and back: no lease ends, no check turns, no drain ends early or stays for a day. */
const dayMs = 86_400_000;

t.test('leases', async (t) => {
  const clock = new ManualClock();
  const path = join(temporaryFolder(t), 'store');
  const store = await openEmbeddedStore({ path, clock, log: silentLog, metrics: new Metrics() });
  t.teardown(() => store.close());
  const kept = await store.lease(10_000);
  await store.put('kept', Buffer.from('1'), { lease: kept });
  for (const jumpMs of [dayMs, -2 * dayMs, dayMs]) {
    clock.jumpWall(jumpMs);
    await clock.advance(20_000);
    t.notOk(kept.lost.aborted, `not lost by a jump of ${jumpMs / dayMs} days`);
    t.ok(await store.get('kept'));
  }
});

t.test('health checks', async (t) => {
  const clock = new ManualClock();
  const asked: number[] = [];
  const probe = async (): Promise<{ verdict: 'pass'; output: string }> => {
    asked.push(clock.monotonicMs());
    return { verdict: 'pass', output: '' };
  };
  const changes: string[] = [];
  const runner = new HealthRunner({
    ...parts(clock),
    random: () => 0.5,
    probes: { tcp: probe, http: probe },
    onChange: (name, { status }) => changes.push(`${name} ${status}`),
  });
  t.teardown(() => runner.close());
  runner.set('a', { address: '10.0.0.1', port: 80, checks: [{ kind: 'tcp', ...checkDefaults }], incarnation: 'a' });
  await clock.advance(0);
  for (const jumpMs of [dayMs, -2 * dayMs]) {
    const before = asked.length;
    clock.jumpWall(jumpMs);
    await clock.advance(10_000);
    t.equal(asked.length - before, 10_000 / checkDefaults.intervalMs, 'as often as ever: neither a burst nor a pause');
  }
  t.equal(runner.get('a')?.status, 'passing');
  t.same(changes.slice(-1), ['a passing']);
});

t.test('draining', async (t) => {
  const id = 'a'.repeat(64);
  for (const [jumpMs, before] of [
    [dayMs, false],
    [-dayMs, false],
    [dayMs, true],
    [-dayMs, true],
  ] as const) {
    const clock = new ManualClock();
    const container = parseContainer({
      Id: id,
      Name: '/a',
      State: { Running: true, StartedAt: '2020-01-01T00:00:00Z' },
      Config: { StopTimeout: 10 },
    });
    if (container === undefined) throw new Error('no container');
    const drains = new Drains(clock, () => undefined);
    // The clock jumps between the event and what is learned of the container, or while it drains.
    drains.kill(id, container.stopSignal, clock.nowMs(), before ? undefined : container);
    clock.jumpWall(jumpMs);
    await clock.advance(1000);
    if (before) drains.inspected(container);
    t.ok(drains.isDraining(id), `a jump of ${jumpMs / dayMs} days ${before ? 'before' : 'after'} it is known`);
    await clock.advance(13_900);
    t.ok(drains.isDraining(id));
    await clock.advance(200);
    t.notOk(drains.isDraining(id), 'taken back 5 s after its stop timeout');
    drains.close();
  }
});
