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
  await runner.close();
  await clock.advance(60_000);
  t.equal(state.asked.length, 6);
  t.equal(clock.pending, 0);
});

t.test('an initial status holds until something is known, and the first pass decides', async (t) => {
  for (const [initialStatus, afterOneFailure, afterPass] of [
    ['passing', 'passing', 'passing'],
    ['warning', 'warning', 'passing'],
    ['critical', 'critical', 'passing'],
  ] as const) {
    const { runner, clock, state } = bench();
    const checks = [{ ...tcp, initialStatus }];
    state.verdict = 'fail';
    t.equal(runner.set('a', target({ checks })).status, initialStatus, 'before the first result');
    await clock.advance(0);
    t.equal(runner.get('a')?.status, afterOneFailure);
    state.verdict = 'pass';
    await clock.advance(2000);
    t.equal(runner.get('a')?.status, afterPass, `${initialStatus}: one pass is enough`);
    state.verdict = 'fail';
    await clock.advance(8000);
    t.equal(runner.get('a')?.status, 'critical');
    state.verdict = 'pass';
    await clock.advance(2000);
    t.equal(runner.get('a')?.status, 'critical', 'later rise counts');
    await runner.close();
  }
  const { runner, clock, state } = bench();
  state.verdict = 'fail';
  runner.set('a', target({ checks: [{ ...tcp, initialStatus: 'passing' }] }));
  await clock.advance(6000);
  t.equal(runner.get('a')?.status, 'critical', 'fall failures end it');
  const initial = { status: 'critical', output: 'as stored' } as const;
  const checks = [{ ...tcp, initialStatus: 'passing' as const }];
  t.match(runner.set('b', target({ checks, initial })), initial, 'what is stored wins');
  const docker = [{ ...tcp, kind: 'docker' as const, initialStatus: 'passing' as const }];
  t.equal(runner.set('c', target({ checks: docker })).status, 'passing');
  t.equal(runner.set('c', target({ checks: docker, reported: { status: 'starting', output: '' } })).status, 'passing');
  t.equal(runner.set('c', target({ checks: docker, reported: { status: 'critical', output: '' } })).status, 'critical');
});

t.test('an engine that cannot be asked says nothing about the instance', async (t) => {
  const { runner, clock, state } = bench();
  runner.set('a', target());
  await clock.advance(0);
  state.verdict = 'unknown';
  state.output = 'not run';
  await clock.advance(60_000);
  t.match(runner.get('a'), { status: 'passing', output: 'not run 80' });
});

t.test('ttl: refreshes hold for their time, and silence is critical at once', async (t) => {
  const { runner, clock, changes, state } = bench();
  const ttl: CheckSpec = { ...tcp, kind: 'ttl', intervalMs: 30_000 };
  const say = (status: 'passing' | 'warning' | 'critical', output = '') => runner.refresh('a', { status, output });
  t.equal(say('passing'), undefined, 'nobody is there');
  t.equal(runner.set('a', target({ checks: [ttl] })).status, 'starting');
  t.equal(say('passing', 'well\u001b'), true);
  t.match(runner.get('a'), { status: 'passing', output: 'well\\u001b' });
  await clock.advance(29_999);
  t.equal(say('warning', 'slow'), true);
  await clock.advance(29_999);
  t.equal(runner.get('a')?.status, 'warning');
  clock.jumpWall(-3_600_000);
  await clock.advance(1);
  t.match(runner.get('a'), { status: 'critical', output: 'no refresh within 30s' });
  say('passing');
  t.equal(runner.get('a')?.status, 'passing', 'one refresh is enough');
  say('critical', 'own word');
  t.match(runner.get('a'), { status: 'critical', output: 'own word' });
  runner.set('a', target({ checks: [{ ...ttl }] }));
  t.match(runner.get('a'), { status: 'critical', output: 'own word' }, 'the same again disturbs nothing');
  t.equal(runner.set('a', target({ checks: [ttl], incarnation: 'b' })).status, 'starting');
  await clock.advance(30_000);
  t.match(runner.get('a'), { status: 'critical', output: 'no refresh within 30s' }, 'who never says anything is none');
  runner.set('b', target({ checks: [ttl], initial: { status: 'passing', output: 'as stored' } }));
  await clock.advance(29_999);
  t.match(runner.get('b'), { status: 'passing', output: 'as stored' }, 'after a restart it holds once more');
  await clock.advance(1);
  t.equal(runner.get('b')?.status, 'critical');
  runner.set('c', target());
  t.equal(runner.refresh('c', { status: 'passing', output: '' }), false, 'no check of kind ttl');
  t.same(state.asked, [], 'nobody asks');
  t.ok(changes.length < 20);
  runner.set('d', target({ checks: [{ ...ttl, intervalMs: 2 ** 40 }] }));
  await clock.advance(1000);
  t.equal(runner.get('d')?.status, 'starting', 'a very long time is not over at once');
  await runner.close();
  t.equal(clock.pending, 0);
});

t.test('what is critical for too long leaves, and comes back when it passes', async (t) => {
  const { runner, clock, state, changes } = bench();
  const checks = [{ ...tcp, deregisterAfterMs: 300_000 }];
  runner.set('a', target({ checks }));
  runner.set('other', target());
  await clock.advance(0);
  state.verdict = 'fail';
  state.output = 'refused';
  await clock.advance(6000);
  t.equal(runner.get('a')?.status, 'critical');
  clock.jumpWall(86_400_000);
  await clock.advance(298_000);
  t.equal(runner.get('a')?.deregistered, undefined);
  runner.set('a', target({ checks, suspended: 'paused' }));
  runner.set('a', target({ checks }));
  await clock.advance(3000);
  t.match(runner.get('a'), { status: 'critical', deregistered: 'deregistered after 5m critical: refused 80' });
  t.equal(runner.get('other')?.deregistered, undefined);
  const { length } = changes;
  await clock.advance(20_000);
  t.equal(changes.length, length, 'and nothing is passed on while it stays so');
  state.verdict = 'pass';
  await clock.advance(2200);
  t.ok(runner.get('a')?.deregistered, 'rise counts');
  await clock.advance(2200);
  t.match(runner.get('a'), { status: 'passing', deregistered: undefined });
  await runner.close();
  t.equal(clock.pending, 0);
});

t.test('details: each check with its own word, and the last ten changes, newest first', async (t) => {
  const { runner, clock, state } = bench();
  const checks: CheckSpec[] = [
    { ...tcp, port: 81 },
    { ...tcp, kind: 'http', path: '/health\u001b', tls: 'verify' },
    { ...tcp, kind: 'grpc', grpcService: 'db' },
    { ...tcp, kind: 'ttl', intervalMs: 60_000, initialStatus: 'passing' },
    { ...tcp, kind: 'docker' },
  ];
  t.equal(runner.details('a'), undefined);
  runner.set('none', target({ checks: [] }));
  t.match(runner.details('none'), { checks: [], history: [{ status: 'passing', output: '' }] });
  t.equal(runner.details('none')?.history.length, 1);
  runner.set('a', target({ checks, reported: { status: 'passing', output: 'ok' } }));
  await clock.advance(0);
  t.match(runner.details('a')?.checks, [
    { kind: 'tcp', target: 'tcp://10.0.0.1:81', status: 'passing', output: 'fine 81' },
    { kind: 'http', target: 'GET https://10.0.0.1:80/health\\u001b', status: 'passing', output: 'fine 80' },
    { kind: 'grpc', target: 'grpc://10.0.0.1:80/db', status: 'critical' },
    { kind: 'ttl', target: 'refreshed every 1m', status: 'passing' },
    { kind: 'docker', target: 'HEALTHCHECK of the container', status: 'passing', output: 'ok' },
  ]);
  t.match(runner.get('a'), { status: 'critical', output: 'grpc: checks of kind grpc cannot be run here' });
  await runner.close();
  runner.set('b', target());
  const startedMs = clock.nowMs();
  for (let index = 0; index < 8; index += 1) {
    state.verdict = index % 2 === 0 ? 'pass' : 'fail';
    await clock.advance(10_000);
  }
  runner.set('b', target({ incarnation: 'b' }));
  const { history, sinceMs } = runner.details('b') ?? { history: [], sinceMs: 0 };
  t.equal(history.length, 10);
  t.same(
    history.slice(0, 4).map(({ status }) => status),
    ['starting', 'critical', 'passing', 'critical'],
    'over a restart of the instance, too',
  );
  t.equal(history[0]?.atMs, startedMs + 80_000);
  t.equal(sinceMs, startedMs + 80_000);
  t.ok(history.every(({ atMs }, index) => index === 0 || atMs <= (history[index - 1]?.atMs ?? 0)));
});

t.test('commands: few at a time, never two of one check, and what was cut is waited for', async (t) => {
  const clock = new ManualClock();
  const running = new Map<string, () => void>();
  let most = 0;
  const runner = new HealthRunner({
    ...parts(clock),
    random: () => 0.5,
    runInContainer: (container, _command, signal, onBegun) =>
      new Promise((resolve) => {
        t.notOk(running.has(container), `${container} runs once at a time`);
        onBegun(() => 'so far');
        running.set(container, () => {
          running.delete(container);
          resolve({ kind: 'refused', reason: signal.aborted ? 'cut' : 'ended' });
        });
        most = Math.max(most, running.size);
      }),
    onChange: () => undefined,
  });
  const checks: CheckSpec[] = [{ ...tcp, kind: 'exec', command: 'sleep 1000' }];
  for (let index = 0; index < 20; index += 1) runner.set(`c${index}`, target({ checks, container: `c${index}` }));
  runner.set('quick', target({ checks: [{ ...tcp, kind: 'docker' }], reported: { status: 'passing', output: '' } }));
  await clock.advance(0);
  t.equal(running.size, 8);
  t.equal(runner.get('quick')?.status, 'passing');
  await clock.advance(1000);
  t.match(runner.get('c0'), { status: 'starting', output: 'not ended within 1s, killed: so far' });
  t.equal(running.size, 8, 'what was cut keeps its place until it has ended');
  for (const end of [...running.values()]) end();
  await clock.advance(0);
  t.equal(running.size, 8, 'then the next ones run');
  for (let second = 0; second < 30; second += 1) await clock.advance(1000);
  t.match(runner.get('c0'), { status: 'critical' });
  t.ok(running.size <= 20);
  const closed = runner.close();
  for (const end of [...running.values()]) end();
  await closed;
  t.equal(clock.pending, 0);
  const nowhere = new HealthRunner({
    ...parts(clock),
    runInContainer: async () => ({ kind: 'ended', exitStatus: 3, output: '' }),
    onChange: () => undefined,
  });
  nowhere.set('a', target({ checks: [{ ...tcp, kind: 'exec', command: 'true' }] }));
  await clock.advance(0);
  t.match(nowhere.get('a'), { output: /inside a container only/ });
  const command = { ...tcp, kind: 'exec' as const, command: 'x', warningExit: 3 };
  nowhere.set('b', target({ checks: [command], container: 'b' }));
  await clock.advance(0);
  t.match(nowhere.get('b'), { status: 'warning', output: 'exit status 3' });
  await nowhere.close();
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
