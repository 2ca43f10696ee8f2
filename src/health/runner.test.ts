import { type AddressInfo, createServer, type Socket } from 'node:net';
import t from 'tap';
import { parts } from '../../test/support/records.ts';
import { waitFor } from '../../test/support/wait.ts';
import { ManualClock, systemClock } from '../base/clock.ts';
import { type CheckSpec, checkDefaults } from '../model/check.ts';
import type { ProbeResult } from './probe.ts';
import { HealthRunner, type HealthTarget } from './runner.ts';

const tcp: CheckSpec = { kind: 'tcp', ...checkDefaults };
const target = (over: Partial<HealthTarget> = {}): HealthTarget => ({
  address: '10.0.0.1',
  port: 80,
  checks: [tcp],
  incarnation: 'a',
  ...over,
});

/** A runner on a clock of its own, whose probes find what the test says. */
function bench(options: { random?: () => number; maxConcurrent?: number } = {}) {
  const clock = new ManualClock();
  const state = {
    verdict: 'pass' as ProbeResult['verdict'],
    output: 'fine',
    hang: false,
    asked: [] as number[],
    running: 0,
    most: 0,
  };
  const changes: string[] = [];
  const probe = async (endpoint: { address: string; port: number }): Promise<ProbeResult> => {
    state.asked.push(clock.monotonicMs());
    state.running += 1;
    state.most = Math.max(state.most, state.running);
    if (state.hang) await new Promise(() => undefined);
    await clock.sleep(0);
    state.running -= 1;
    return { verdict: state.verdict, output: `${state.output} ${endpoint.port}` };
  };
  const runner = new HealthRunner({
    ...parts(clock),
    random: () => 0.5,
    ...options,
    probes: { tcp: probe, http: probe },
    onChange: (name, { status, output }) => changes.push(`${name} ${status} ${output}`.trim()),
  });
  return { clock, state, changes, runner };
}

t.test('no check is passing, and what cannot be run is critical', async (t) => {
  const { runner, changes } = bench();
  t.match(runner.set('a', target({ checks: [] })), { status: 'passing', output: '' });
  t.match(runner.set('b', target({ checks: [{ ...tcp, kind: 'exec' }] })), {
    status: 'critical',
    output: /exec cannot be run here/,
  });
  runner.set('a', target({ checks: [] }));
  t.same(changes, ['a passing', 'b critical checks of kind exec cannot be run here'], 'only real changes');
});

t.test('thresholds', async (t) => {
  const { runner, clock, state } = bench();
  const status = (): string | undefined => runner.get('a')?.status;
  t.equal(runner.set('a', target()).status, 'starting');
  await clock.advance(0);
  t.equal(status(), 'passing', 'the first pass is enough, and it is asked at once');
  state.verdict = 'fail';
  for (const expected of ['passing', 'passing', 'critical', 'critical']) {
    await clock.advance(2000);
    t.equal(status(), expected);
  }
  state.verdict = 'pass';
  await clock.advance(2000);
  t.equal(status(), 'critical');
  state.verdict = 'fail';
  await clock.advance(2000);
  state.verdict = 'pass';
  for (const expected of ['critical', 'passing']) {
    await clock.advance(2000);
    t.equal(status(), expected, 'rise counts in a row');
  }
  state.verdict = 'warn';
  await clock.advance(2000);
  t.equal(status(), 'warning');
  state.verdict = 'pass';
  await clock.advance(2000);
  t.equal(status(), 'passing');
});

t.test('starting is asked quickly and gives up after fall failures', async (t) => {
  const { runner, clock, state, changes } = bench();
  state.verdict = 'fail';
  runner.set('a', target());
  await clock.advance(999);
  t.equal(runner.get('a')?.status, 'starting');
  t.match(runner.get('a')?.output, 'fine 80', 'why it is still starting is known');
  await clock.advance(1);
  t.equal(runner.get('a')?.status, 'critical');
  t.same(state.asked, [0, 500, 1000]);
  t.same(changes, ['a starting', 'a starting fine 80', 'a critical fine 80']);
});

t.test('a new incarnation begins anew, the same one goes on undisturbed', async (t) => {
  const { runner, clock, state } = bench();
  runner.set('a', target());
  await clock.advance(1000);
  runner.set('a', target({ checks: [{ ...tcp }] }));
  await clock.advance(1000);
  t.same(state.asked, [0, 2000]);
  state.verdict = 'fail';
  t.equal(runner.set('a', target({ incarnation: 'b' })).status, 'starting');
  await clock.advance(0);
  t.equal(state.asked.at(-1), 2000, 'asked at once');
  state.verdict = 'pass';
  await clock.advance(500);
  t.equal(runner.get('a')?.status, 'passing');
  const moved = runner.set('a', target({ incarnation: 'b', port: 81 }));
  t.equal(moved.status, 'passing', 'what is asked elsewhere keeps its health until it is known better');
  await clock.advance(0);
  t.equal(state.asked.at(-1), 2500);
  runner.remove('a');
  await clock.advance(10_000);
  t.equal(state.asked.at(-1), 2500);
  t.equal(clock.pending, 0);
});

t.test('after a restart of the sidecar the stored health is taken over, and asking is spread', async (t) => {
  const { runner, clock, state, changes } = bench({ random: () => 0.25 });
  const initial = { status: 'passing', output: 'as stored' } as const;
  t.match(runner.set('a', target({ initial })), initial);
  await clock.advance(499);
  t.same(state.asked, []);
  await clock.advance(1);
  t.same(state.asked, [500]);
  t.same(changes, ['a passing as stored', 'a passing fine 80']);
  state.verdict = 'fail';
  await clock.advance(1900);
  t.same(state.asked, [500, 2400], 'the interval is spread by 10 %');
  t.equal(runner.get('a')?.status, 'passing', 'and one failure does not flap it');
});

t.test('reports of Docker count at once', async (t) => {
  const { runner, changes, clock } = bench();
  const checks = [{ ...tcp, kind: 'docker' as const }];
  t.equal(runner.set('a', target({ checks })).status, 'starting');
  runner.set('a', target({ checks, reported: { status: 'passing', output: 'ok\u001b' } }));
  runner.set('a', target({ checks, reported: { status: 'critical', output: 'x'.repeat(900) } }));
  t.match(changes, ['a starting no report of its HEALTHCHECK yet', 'a passing ok\\u001b', /^a critical x{499}…$/]);
  t.equal(clock.pending, 0);
});

t.test('what is suspended is critical, not asked, and asked at once when it goes on', async (t) => {
  const { runner, clock, state } = bench();
  runner.set('a', target());
  await clock.advance(0);
  t.match(runner.set('a', target({ suspended: 'the container is paused' })), {
    status: 'critical',
    output: 'the container is paused',
  });
  await clock.advance(10_000);
  t.same(state.asked, [0]);
  t.equal(runner.set('a', target()).status, 'passing');
  await clock.advance(0);
  t.same(state.asked, [0, 10_000]);
});

t.test('the worst of several checks counts', async (t) => {
  const { runner, clock, state } = bench();
  const checks = [tcp, { ...tcp, kind: 'docker' as const }];
  runner.set('a', target({ checks, reported: { status: 'passing', output: '' } }));
  t.equal(runner.get('a')?.status, 'starting');
  await clock.advance(0);
  t.equal(runner.get('a')?.status, 'passing');
  runner.set('a', target({ checks, reported: { status: 'critical', output: 'exit 1' } }));
  t.match(runner.get('a'), { status: 'critical', output: 'docker: exit 1' });
  runner.set('a', target({ checks, reported: { status: 'passing', output: '' } }));
  state.verdict = 'fail';
  await clock.advance(6000);
  t.match(runner.get('a'), { status: 'critical', output: 'tcp: fine 80' });
});

t.test('an output that changes all the time is passed on now and then', async (t) => {
  const { runner, clock, state, changes } = bench();
  runner.set('a', target());
  for (let index = 0; index < 60; index += 1) {
    state.output = `time ${index}`;
    await clock.advance(1000);
  }
  t.ok(changes.length >= 3 && changes.length <= 5, `${changes.length} changes in 60 s`);
});

t.test('a probe that hangs is cut, and few run at a time', async (t) => {
  const { runner, clock, state } = bench({ maxConcurrent: 3 });
  state.hang = true;
  for (let index = 0; index < 10; index += 1) runner.set(`i-${index}`, target());
  await clock.advance(0);
  t.equal(state.running, 3);
  await clock.advance(1000);
  t.equal(state.asked.length, 6, 'the next ones take their turn');
  t.match(runner.get('i-0'), { status: 'starting', output: 'no answer within 1s' });
  runner.close();
  await clock.advance(60_000);
  t.equal(state.asked.length, 6);
  t.equal(clock.pending, 0);
});

t.test('with real listeners', async (t) => {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
  });
  const listen = (port: number) => new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
  const close = () => new Promise((resolve) => server.close(resolve));
  await listen(0);
  const { port } = server.address() as AddressInfo;
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    return server.listening ? close() : undefined;
  });
  const changes: string[] = [];
  const runner = new HealthRunner({
    ...parts(systemClock),
    onChange: (name, { status }) => changes.push(`${name} ${status}`),
  });
  t.teardown(() => runner.close());
  const quick = { intervalMs: 30, timeoutMs: 200, rise: 2, fall: 2 };
  runner.set('tcp', target({ address: '127.0.0.1', port, checks: [{ kind: 'tcp', ...quick }] }));
  runner.set('http', target({ address: '127.0.0.1', port, checks: [{ kind: 'http', ...quick, path: '/' }] }));
  await waitFor('passing', () => runner.get('tcp')?.status === 'passing');
  await waitFor('a listener that says nothing is critical to http', () => runner.get('http')?.status === 'critical');
  t.match(runner.get('http')?.output, 'no answer within 200ms');
  for (const socket of sockets) socket.destroy();
  await close();
  await waitFor('critical', () => runner.get('tcp')?.status === 'critical');
  t.match(runner.get('tcp')?.output, 'connection refused');
  await listen(port);
  await waitFor('passing again', () => runner.get('tcp')?.status === 'passing');
  t.same(
    changes.filter(
      (change, index) =>
        change.startsWith('tcp') &&
        change !== changes.filter((other, at) => at < index && other.startsWith('tcp')).at(-1),
    ),
    ['tcp starting', 'tcp passing', 'tcp critical', 'tcp passing'],
  );
});
