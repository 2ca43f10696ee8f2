import t, { type Test } from 'tap';
import { type Clock, ManualClock, systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import type { Change } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { DockerConfig } from '../../src/config/config.ts';
import type { DesiredInstance } from '../../src/model/instance.ts';
import { unless } from '../../test/support/needs.ts';
import { waitFor } from '../../test/support/wait.ts';
import { FaultyProxy, TestEngine } from './engine-fixture.ts';
import { DockerSource } from './source.ts';

const skip = unless('docker', 'busybox');
const db = ['--label', 'legate.service=db', '--label', 'legate.port=5432'];

/** Timers wait for the test; the time of day is the engine's, because events carry it. */
class TimersOnDemand extends ManualClock {
  override nowMs(): number {
    return Date.now();
  }
}

/** What a source says, as its reader sees it. Other containers of the machine are left out. */
class Mirror {
  readonly #prefix: string;
  readonly all = new Map<string, DesiredInstance>();
  resets = 0;
  /** Names put or deleted so far that belong to this test. */
  changes = 0;
  lastAtMs = 0;

  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  apply(change: Change<DesiredInstance>): void {
    this.lastAtMs = performance.now();
    if (change.kind === 'reset') {
      this.resets += 1;
      this.all.clear();
      for (const item of change.items) this.#put(item);
      return;
    }
    for (const name of change.deletes) if (this.all.delete(name)) this.changes += 1;
    for (const item of change.puts) this.#put(item);
  }

  of(short: string): DesiredInstance | undefined {
    for (const instance of this.all.values())
      if (instance.source === `docker:${this.#prefix}-${short}`) return instance;
    return undefined;
  }

  #put(item: DesiredInstance): void {
    if (!item.source.startsWith(`docker:${this.#prefix}-`)) return;
    this.changes += 1;
    this.all.set(item.name, item);
  }
}

interface Running {
  readonly source: DockerSource;
  readonly mirror: Mirror;
  readonly conditions: Conditions;
  stop(): Promise<void>;
}

interface StartOptions {
  socket?: string;
  clock?: Clock;
  config?: Partial<DockerConfig>;
  requestTimeoutMs?: number;
}

function start(
  t: Test,
  prefix: string,
  { socket = '/var/run/docker.sock', clock = systemClock, config, requestTimeoutMs = 10_000 }: StartOptions = {},
): Running {
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, clock, metrics);
  const mirror = new Mirror(prefix);
  const source = new DockerSource({
    config: { socket, expose: 'labelled', imageLabels: false, ...config },
    advertise: '10.77.0.1',
    clock,
    log: silentLog,
    metrics,
    conditions,
    requestTimeoutMs,
    onChange: (change) => mirror.apply(change),
  });
  const controller = new AbortController();
  const running = source.run(controller.signal);
  const stop = async (): Promise<void> => {
    controller.abort();
    await running;
  };
  t.teardown(stop);
  return { source, mirror, conditions, stop };
}

const connected = ({ source }: Running): Promise<unknown> =>
  waitFor('the source to connect', () => source.state.value.state === 'connected');

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('without Docker, as configured', async (t) => {
  const running = start(t, 'none', { config: { expose: 'off' } });
  t.match(running.source.state.value, { state: 'off', problem: null });
  t.equal(running.mirror.resets, 1, 'what was registered before is withdrawn');
  await running.stop();
});

t.test('with a real engine', { skip, timeout: 180_000 }, async (t) => {
  const engine = new TestEngine('docker');
  t.teardown(() => engine.remove());
  const proxy = new FaultyProxy();
  await proxy.open();
  t.teardown(() => proxy.remove());
  const { docker } = engine;
  const clock = new TimersOnDemand();
  const before = engine.name('before');
  await engine.run('before', db);
  const main = start(t, engine.prefix, { socket: proxy.path, clock });
  const { mirror, source } = main;
  await connected(main);

  await t.test('what runs already comes with the reset, what starts comes by itself', async (t) => {
    t.equal(mirror.resets, 1);
    t.match(mirror.of('before'), { service: 'db', port: 5432, reach: 'host', draining: false, checks: [] });
    t.match(source.state.value, { version: /^\d+\./, problem: null });
    await engine.run('later', db);
    await waitFor('the new container', () => mirror.of('later'));
    await docker('rm', '-f', engine.name('later'));
    await waitFor('it to leave', () => mirror.of('later') === undefined);
    t.equal(mirror.resets, 1);
  });

  await t.test('rename, pause and unpause', async (t) => {
    await docker('rename', before, engine.name('after'));
    await waitFor('the new name', () => mirror.of('after'));
    await docker('pause', engine.name('after'));
    await waitFor('paused', () => mirror.of('after')?.suspended !== undefined);
    t.match(mirror.of('after'), { suspended: 'the container is paused' });
    await docker('unpause', engine.name('after'));
    await waitFor('no longer', () => mirror.of('after')?.suspended === undefined);
    t.equal(mirror.all.size, 1);
  });

  await t.test('signals: HUP is nothing, an ignored TERM is taken back, latency', async (t) => {
    const name = engine.name('after');
    await docker('kill', '-s', 'HUP', name);
    const { changes } = mirror;
    proxy.watched = '"Action":"kill"';
    const latencies: number[] = [];
    for (let round = 0; round < 5; round += 1) {
      await docker('kill', '-s', 'TERM', name);
      await waitFor('draining', () => mirror.of('after')?.draining === true);
      latencies.push(mirror.lastAtMs - proxy.watchedAtMs);
      t.equal(mirror.changes, changes + 2 * round + 1, 'HUP was no change');
      await clock.advance(1000 + 5000 - 500);
      t.equal(mirror.of('after')?.draining, true);
      await clock.advance(500);
      t.equal(mirror.of('after')?.draining, false, 'stop timeout 1 s and 5 s later');
    }
    proxy.watched = '';
    latencies.sort((a, b) => a - b);
    t.comment(`kill event to change, ms: ${latencies.map((ms) => ms.toFixed(2)).join(' ')}`);
    t.ok((latencies[0] ?? Number.NaN) <= 2, 'the kill event is a change within 2 ms');
  });

  await t.test('stop, and restart', async (t) => {
    const name = engine.name('after');
    const old = mirror.of('after');
    const seen: string[] = [];
    const watch = setInterval(() => {
      const now = mirror.of('after');
      const word = now === undefined ? 'gone' : now.draining ? 'draining' : 'there';
      if (seen.at(-1) !== word) seen.push(word);
    }, 5);
    await docker('restart', name);
    await waitFor(
      'the new run',
      () => mirror.of('after') !== undefined && mirror.of('after')?.incarnation !== old?.incarnation,
    );
    await docker('stop', name);
    await waitFor('the end', () => mirror.of('after') === undefined && seen.at(-1) === 'gone');
    clearInterval(watch);
    t.same(seen, ['there', 'draining', 'gone', 'there', 'draining', 'gone']);
    await docker('start', name);
    await waitFor('the third run', () => mirror.of('after'));
    t.equal(mirror.of('after')?.name, old?.name, 'under the same name');
    await docker('rm', '-f', name);
    await waitFor('the end', () => mirror.of('after') === undefined);
  });

  await t.test('a container that ends by itself, with the stop signal of its own', async (t) => {
    await engine.run(
      'own',
      [...db, '--stop-signal', 'SIGUSR1'],
      'trap "/bin/busybox sleep 0.3; exit 0" USR1; while :; do /bin/busybox sleep 0.1; done',
    );
    await waitFor('it', () => mirror.of('own'));
    await docker('kill', '-s', 'USR1', engine.name('own'));
    await waitFor('its end', () => mirror.of('own') === undefined);
    t.equal(source.state.value.state, 'connected');
  });

  await t.test('health', async (t) => {
    const probe = [
      '--health-cmd',
      '/bin/busybox test -e /tmp-ok',
      '--health-interval',
      '500ms',
      '--health-retries',
      '1',
    ];
    await engine.run('health', [...db, ...probe]);
    await waitFor('unhealthy', () => mirror.of('health')?.reported?.status === 'critical');
    await docker('exec', engine.name('health'), '/bin/busybox', 'touch', '/tmp-ok');
    await waitFor('healthy', () => mirror.of('health')?.reported?.status === 'passing');
    t.same(
      mirror.of('health')?.checks.map(({ kind }) => kind),
      ['docker'],
    );
    await docker('rm', '-f', engine.name('health'));
  });

  await t.test('networks: those of the engine, connect and disconnect, host, shared', async (t) => {
    const shop = await engine.network('shop');
    await waitFor('the network', () => source.networks.value.some(({ name }) => name === shop));
    const network = source.networks.value.find(({ name }) => name === shop);
    t.match(network, {
      driver: 'bridge',
      internal: false,
      interface: /^br-[0-9a-f]{12}$/,
      subnets: [/\/\d+$/],
      gateway: /^\d/,
    });
    await engine.run('net', [...db, '--label', `legate.network=${shop}`]);
    await waitFor('the refusal', () =>
      source.refusals.value.find((refusal) => refusal.source === `docker:${engine.name('net')}`),
    );
    t.match(
      main.conditions.list().find(({ message }) => message.includes(engine.name('net'))),
      { severity: 'warning', message: /is not attached to .*; it has bridge$/ },
    );
    await docker('network', 'connect', shop, engine.name('net'));
    const [subnet] = network?.subnets ?? [];
    await waitFor('the address', () => mirror.of('net'));
    t.equal(mirror.of('net')?.address.split('.')[1], subnet?.split('.')[1]);
    t.notOk(source.refusals.value.some((refusal) => refusal.source === `docker:${engine.name('net')}`));

    await engine.run('shares', [
      ...db.slice(0, 2),
      '--label',
      'legate.port=9',
      '--net',
      `container:${engine.name('net')}`,
    ]);
    await waitFor('the one that shares', () => mirror.of('shares'));
    t.not(mirror.of('shares')?.address, mirror.of('net')?.address, 'legate.network is each container’s own');
    await engine.run('host', [...db, '--net', 'host']);
    await waitFor('the host', () => mirror.of('host'));
    t.match(mirror.of('host'), { address: '10.77.0.1', port: 5432, reach: 'mesh' });

    await docker('network', 'disconnect', shop, engine.name('net'));
    await waitFor('the refusal', () => mirror.of('net') === undefined);
    await docker('rm', '-f', engine.name('shares'), engine.name('net'), engine.name('host'));
    await waitFor('all to leave', () => mirror.all.size === 0);
    await docker('network', 'rm', shop);
    await waitFor('the network to leave', () => !source.networks.value.some(({ name }) => name === shop));
  });

  await t.test('identity of the image, and everything that is published', async (t) => {
    const baked = engine.name('baked:latest');
    await docker('run', '--name', engine.name('seed'), engine.image, '/bin/busybox', 'true');
    await docker('commit', '-c', 'LABEL legate.service=baked', '-c', 'EXPOSE 80', engine.name('seed'), baked);
    t.teardown(() => docker('rmi', '-f', baked).catch(() => undefined));
    await docker(
      'run',
      '-d',
      '--name',
      engine.name('stranger'),
      '-P',
      '--stop-timeout',
      '1',
      baked,
      '/bin/busybox',
      'sleep',
      '600',
    );
    await waitFor('the refusal', () =>
      source.refusals.value.find(({ source: from }) => from === `docker:${engine.name('stranger')}`),
    );
    t.equal(mirror.of('stranger'), undefined);
    const trusting = start(t, engine.prefix, { config: { imageLabels: true } });
    await connected(trusting);
    t.match(trusting.mirror.of('stranger'), {
      service: 'baked',
      port: 80,
      reach: 'mesh',
      published: { address: '10.77.0.1' },
    });
    const everything = start(t, engine.prefix, { config: { expose: 'published' } });
    await connected(everything);
    t.match(everything.mirror.of('stranger'), { service: `${engine.prefix}-baked`, port: 80 });
    await Promise.all([trusting.stop(), everything.stop()]);
    await docker('rm', '-f', engine.name('stranger'), engine.name('seed'));
  });

  await t.test('what a deaf stream did not tell is found by the comparison, and the stream made anew', async (t) => {
    await engine.run('gone', db);
    await engine.run('kept', db);
    await waitFor('both', () => mirror.all.size === 2);
    proxy.mode = 'drop-events';
    await docker('rm', '-f', engine.name('gone'));
    await engine.run('missed', db);
    t.ok(mirror.of('gone'), 'nobody told');
    await clock.advance(60_000);
    await waitFor('the truth', () => mirror.of('gone') === undefined && mirror.of('missed') !== undefined);
    t.equal(mirror.resets, 1, 'told as differences');
    await waitFor('that the silence is noticed', async () => {
      await clock.advance(1000);
      return source.state.value.problem === 'the Docker Engine no longer sends events';
    });
    proxy.mode = 'pass';
    await waitFor('a new stream', async () => {
      await clock.advance(100);
      return source.state.value.state === 'connected';
    });
    await docker('rm', '-f', engine.name('missed'), engine.name('kept'));
    await waitFor('all to leave', () => mirror.all.size === 0);
  });
  await main.stop();
});

t.test('an engine that comes and goes', { skip, timeout: 180_000 }, async (t) => {
  const engine = new TestEngine('docker-away');
  t.teardown(() => engine.remove());
  const proxy = new FaultyProxy();
  t.teardown(() => proxy.remove());
  const running = start(t, engine.prefix, { socket: proxy.path, requestTimeoutMs: 1500 });
  const { source, mirror, conditions } = running;

  await t.test('no socket at first', async (t) => {
    await waitFor('the fault', () => conditions.list().length > 0);
    t.match(conditions.list(), [
      {
        id: 'docker.engine',
        severity: 'warning',
        message: `no Docker socket at ${proxy.path}`,
        hint: /docker\.expose: off/,
      },
    ]);
    t.match(source.state.value, { state: 'connecting', problem: /no Docker socket/ });
    t.equal(mirror.resets, 0, 'nothing is said before something is known');
    await proxy.open();
    await connected(running);
    t.same(
      conditions.list().filter(({ id }) => id === 'docker.engine'),
      [],
    );
  });

  await t.test('away: the last instances stay, and afterwards only differences are told', async (t) => {
    for (const short of ['a', 'b', 'c']) await engine.run(short, db);
    await waitFor('three', () => mirror.all.size === 3);
    const { changes } = mirror;
    await proxy.close();
    await waitFor('away', () => source.state.value.state === 'away');
    t.match(conditions.list()[0], { id: 'docker.engine', severity: 'error' });
    t.equal(mirror.all.size, 3);
    await engine.docker('rm', '-f', engine.name('a'));
    await engine.docker('restart', '-t', '0', engine.name('b'));
    const c = mirror.of('c');
    await proxy.open();
    await waitFor('the truth', () => mirror.of('a') === undefined && source.state.value.state === 'connected');
    t.equal(mirror.of('c'), c, 'untouched');
    t.ok(mirror.changes - changes <= 5, 'a drains and leaves, b drains, leaves and returns');
    t.equal(mirror.resets, 1);
  });

  await t.test('a connection that is cut, an engine that hangs, and one that is slow', async (t) => {
    proxy.cut();
    await engine.run('d', db);
    await waitFor('what happened meanwhile', () => mirror.of('d'));
    proxy.mode = 'hang';
    proxy.cut();
    await waitFor('that it hangs', () => source.state.value.problem?.includes('did not answer'));
    t.equal(mirror.all.size, 3);
    await engine.docker('rm', '-f', engine.name('d'));
    proxy.mode = 'pass';
    proxy.cut();
    await waitFor('the truth', () => mirror.of('d') === undefined, { timeoutMs: 20_000 });
    proxy.delayMs = 150;
    await engine.run('e', db);
    await engine.docker('rm', '-f', engine.name('e'));
    await engine.run('f', db);
    await waitFor('only the last', () => mirror.of('f') !== undefined && mirror.of('e') === undefined);
    proxy.delayMs = 0;
  });

  await t.test('a muddle of actions and cuts converges to what a new source sees', async (t) => {
    let seed = 20_260_102;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
      return (seed >>> 8) % below;
    };
    const names = ['b', 'c', 'f'].map((short) => engine.name(short));
    for (let step = 0; step < 14; step += 1) {
      const name = names[random(names.length)] ?? '';
      const action = [['pause'], ['unpause'], ['restart', '-t', '0'], ['kill'], ['start'], ['kill', '-s', 'HUP']][
        random(6)
      ] ?? ['start'];
      if (random(3) === 0) proxy.cut();
      proxy.delayMs = random(3) === 0 ? 20 : 0;
      await engine.docker(...action, name).catch(() => undefined);
    }
    proxy.delayMs = 0;
    const fresh = start(t, engine.prefix);
    await connected(fresh);
    const view = (mirror: Mirror): string =>
      JSON.stringify([...mirror.all.values()].sort((a, b) => (a.name < b.name ? -1 : 1)));
    await waitFor('the same view', () => view(mirror) === view(fresh.mirror), { timeoutMs: 20_000 });
    t.equal(mirror.resets, 1);
    await fresh.stop();
  });
  await running.stop();
});
