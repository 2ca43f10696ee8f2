import { connect, type Socket } from 'node:net';
import t from 'tap';
import type {
  InstanceDocument,
  LinkDocument,
  ServiceDocument,
  ServicesDocument,
  StatusDocument,
} from '../sidecar/admin/documents.ts';
import { Agent, must, type Teardown } from './support/agent.ts';
import { sayOn, TestDocker } from './support/docker.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** The main job on real containers: registered by label, found by name, linked on a virtual address. */
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc', 'command:dig');
/** A range of the tests' own, so that a sidecar that runs on this machine is not disturbed. */
const range = '240.88.0.0/16';
const nameServer = '240.88.0.53';

function sidecar(t: Teardown, more: Readonly<Record<string, unknown>> = {}): Agent {
  const docker = { socket: '/var/run/docker.sock', expose: 'labelled' };
  const dns = { listen: ['127.0.0.1:0'], bridges: 'off', upstream: 'off' };
  return new Agent(t, { docker, dns, vip: { mode: 'auto', range, local_range: '240.89.0.0/16' }, ...more });
}

function service(agent: Agent, name: string): Promise<ServiceDocument> {
  return agent.json<ServiceDocument>(`/api/services/${named(name)}`);
}

async function usable(agent: Agent, name: string, count: number): Promise<ServiceDocument> {
  return waitFor(`${count} usable instances of ${name}`, async () => {
    const found = await service(agent, name);
    return found.usable === count && found.instances.length >= count ? found : undefined;
  });
}

/** As `usable`, with the virtual address, which is claimed a moment later. */
async function linked(agent: Agent, name: string, count: number): Promise<ServiceDocument & { readonly vip: string }> {
  return waitFor(`a virtual address of ${name}`, async () => {
    const { vip, ...found } = await usable(agent, name, count);
    return vip === null ? undefined : { ...found, vip };
  });
}

/** Names of the tests' own: other tests run containers on the same engine at the same time. */
const named = (name: string): string => `${name}-${process.pid}`;
const dbName = named('db');
const labels = (name: string, port: number): string[] => [
  '--label',
  `legate.service=${named(name)}`,
  '--label',
  `legate.port=${port}`,
];
const db = (): string[] => labels('db', 5432);
const withNames = ['--dns', nameServer, '--dns-search', 'mesh.internal'];

/** Opens a connection to an address and keeps what it says. */
function open(
  address: string,
  port: number,
): { socket: Socket; text: () => string; problem: () => string; closed: Promise<unknown> } {
  const socket = connect(port, address);
  let text = '';
  let problem = '';
  socket.on('connect', () => socket.end('?\n'));
  socket.on('data', (chunk) => {
    text += chunk.toString();
  });
  socket.on('error', (error: NodeJS.ErrnoException) => {
    problem = error.code ?? error.message;
  });
  const closed = new Promise((resolve) => socket.once('close', resolve));
  return { socket, text: () => text, problem: () => problem, closed };
}

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('containers on real bridges', { skip, timeout: 240_000 }, async (t) => {
  const docker = await TestDocker.open(t);
  const agent = await sidecar(t).start();
  const status = await agent.json<StatusDocument>('/api/status');
  t.equal(status.vip.state, 'on', status.vip.reason ?? '');
  await docker.start('db-1', db(), sayOn(5432, 'db-1'));
  await docker.start('db-2', db(), sayOn(5432, 'db-2'));
  const { vip } = await linked(agent, 'db', 2);
  t.ok(vip?.startsWith('240.88.'));
  const net = await docker.network('shop');

  await t.test(
    'a third container finds and reaches db under its name: musl and glibc, every kind of network',
    async (t) => {
      const places: readonly (readonly [string, readonly string[]])[] = [
        ['default bridge', withNames],
        ['user-defined bridge', ['--network', net, ...withNames]],
        ['user-defined bridge without search domain', ['--network', net, '--dns', nameServer]],
        ['host network', ['--network', 'host', ...withNames]],
      ];
      for (const [place, options] of places) {
        const tools = ['ask-musl', 'ask-glibc'];
        const script = tools.map((ask) => `${ask} ${dbName}.mesh.internal && ${ask} ${dbName} 5432 20`).join(' && ');
        const lines = (await docker.runOnce(options, 'sh', '-c', script)).split('\n');
        for (const [index, ask] of tools.entries()) {
          const [found, ...answers] = lines.slice(index * 21, (index + 1) * 21);
          t.equal(found, vip, `${ask} on the ${place}`);
          t.same([...new Set(answers)].sort(), ['db-1', 'db-2'], `${ask} reaches db:5432 on the ${place}`);
        }
      }
      const srv = await must('dig', '+short', `@${nameServer}`, `_${dbName}._tcp.mesh.internal`, 'SRV');
      t.equal(srv.split('\n').length, 2);
      t.match(srv, /^1 1 5432 [0-9a-f]{8}\.addr\.mesh\.internal\.$/m);
      t.equal(await must('dig', '+short', '+tcp', `@${nameServer}`, `${dbName}.mesh.internal`), vip);
      t.equal(await must('dig', '+short', `@${nameServer}`, '-x', vip ?? ''), `${dbName}.mesh.internal.`);
    },
  );

  await t.test('from the host, and beside a published port of the same number', async (t) => {
    const port = 25_432;
    await docker.start('other', ['-p', `${port}:${port}`, ...labels('other', port)], sayOn(port, 'other'));
    await docker.start('same', labels('same', port), sayOn(port, 'same'));
    const other = await linked(agent, 'other', 1);
    const same = await linked(agent, 'same', 1);
    t.not(other.vip, same.vip);
    for (const [found, name] of [
      [other, 'other'],
      [same, 'same'],
    ] as const) {
      // The catalog knows of it a moment before the kernel does.
      await waitFor(`${name} to answer on port ${port}, beside the other`, async () => {
        const asked = open(found.vip ?? '', port);
        await asked.closed;
        return asked.text().trim() === name;
      });
      t.equal(await docker.runOnce(withNames, 'ask-musl', named(name), String(port)), name);
    }
    t.match(other.instances, [{ reach: 'mesh', published: { port } }]);
    const wrong = open(other.vip ?? '', port + 1);
    await wrong.closed;
    t.equal(wrong.problem(), 'ECONNREFUSED', 'any other port of a virtual address is refused');
    await docker.docker('rm', '-f', docker.name('other'), docker.name('same'));
  });

  await t.test('with no usable instance connecting is refused, and the name stays', async (t) => {
    await docker.docker('pause', docker.name('db-1'), docker.name('db-2'));
    await usable(agent, 'db', 0);
    await waitFor('the port to leave the map', async () => {
      const asked = open(vip ?? '', 5432);
      await asked.closed;
      return asked.problem() === 'ECONNREFUSED';
    });
    t.equal(await must('dig', '+short', `@${nameServer}`, `${dbName}.mesh.internal`), vip);
    const empty = await must('dig', `@${nameServer}`, `${dbName}.service.mesh.internal`);
    t.match(empty, /status: NOERROR/);
    t.match(empty, /EDE: /);
    await docker.docker('unpause', docker.name('db-1'), docker.name('db-2'));
    await usable(agent, 'db', 2);
  });

  await t.test('what cannot be registered is refused with the reason, and disturbs nothing', async (t) => {
    await docker.start('bad-port', ['--label', 'legate.service=bad', '--label', 'legate.port=54 32'], ['sleep', '60']);
    await docker.start(
      'bad-net',
      [
        '--network',
        net,
        '--label',
        'legate.service=bad',
        '--label',
        'legate.port=1',
        '--label',
        'legate.network=nowhere',
      ],
      ['sleep', '60'],
    );
    await docker.start('bad-name', ['--label', 'legate.service=Bad_Name', '--label', 'legate.port=1'], ['sleep', '60']);
    await docker.start(
      'no-net',
      ['--network', 'none', '--label', 'legate.service=bad', '--label', 'legate.port=1'],
      ['sleep', '60'],
    );
    const refused = await waitFor('four refusals', async () => {
      const found = (await agent.json<ServicesDocument>('/api/services')).refused;
      const ours = found.filter((each) => each.source.includes(docker.prefix));
      return ours.length >= 4 ? ours : undefined;
    });
    const words = refused.map((each) => `${each.source}: ${each.reason}`).join('\n');
    t.match(words, /54 32/);
    t.match(words, /nowhere/);
    t.match(words, /Bad_Name/);
    t.match((await agent.cli('services')).stdout, /bad-port/);
    t.equal((await service(agent, 'db')).usable, 2);
    await docker.docker('rm', '-f', ...['bad-port', 'bad-net', 'bad-name', 'no-net'].map((name) => docker.name(name)));
  });

  await t.test('rename, other networks, host network and a shared network namespace', async (t) => {
    await docker.docker('rename', docker.name('db-1'), docker.name('db-one'));
    await waitFor('the new name', async () =>
      (await service(agent, 'db')).instances.some((each) => each.source.includes('db-one')),
    );
    await docker.docker('rename', docker.name('db-one'), docker.name('db-1'));
    await docker.start('on-shop', ['--network', net, ...labels('shop', 80)], sayOn(80, 'shop'));
    await docker.start(
      'side',
      ['--network', `container:${docker.name('on-shop')}`, ...labels('side', 81)],
      sayOn(81, 'side'),
    );
    await docker.start('on-host', ['--network', 'host', ...labels('hosted', 25433)], sayOn(25433, 'hosted'));
    for (const [name, port] of [
      ['shop', 80],
      ['side', 81],
      ['hosted', 25433],
    ] as const) {
      await usable(agent, name, 1);
      t.equal(await docker.runOnce(withNames, 'ask-musl', named(name), String(port)), name);
    }
    const shop = (await service(agent, 'shop')).instances[0];
    t.equal((await service(agent, 'side')).instances[0]?.address, shop?.address);
    await docker.docker('rm', '-f', docker.name('side'), docker.name('on-shop'), docker.name('on-host'));
    await waitFor(
      'the instances to go',
      async () => (await service(agent, 'shop').catch(() => undefined))?.instances.length !== 1,
    );
  });

  await t.test('somebody flushes all nftables rules: ours are built again', async (_t) => {
    await must('nft', 'delete', 'table', 'ip', 'legate_240_88_0_0_16');
    await waitFor(
      'db to be reached again',
      async () => {
        const asked = open(vip ?? '', 5432);
        await asked.closed;
        return asked.text().startsWith('db-');
      },
      { timeoutMs: 5000 },
    );
  });

  await t.test('sidecar restarted and killed: no duplicates, no orphans, the same address', async (t) => {
    const before = (await service(agent, 'db')).instances;
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      await agent.kill(signal);
      if (signal === 'SIGTERM') {
        t.notMatch(await must('nft', 'list', 'tables'), 'legate_240_88', 'a clean stop takes the table back');
        t.notMatch(await must('ip', 'route', 'show', 'table', 'local'), '240.88.0.0/16', 'and the route');
      }
      await docker.docker('rm', '-f', docker.name('db-2'));
      await docker.start('db-2', db(), sayOn(5432, 'db-2'));
      await agent.start();
      const after = await usable(agent, 'db', 2);
      t.equal(after.vip, vip);
      t.equal(after.instances.length, 2, `neither duplicates nor orphans after ${signal}`);
      t.ok(
        after.instances.some((each) => each.id === before.find((old) => old.source.endsWith('db-1'))?.id),
        'db-1 is the same instance',
      );
      t.equal(
        await docker.runOnce(withNames, 'ask-musl', dbName, '5432', '4').then((text) => new Set(text.split('\n')).size),
        2,
      );
    }
  });
  t.equal(await agent.kill(), 0);
  t.notMatch(await must('nft', 'list', 'tables'), 'legate_240_88');
});

t.test('stopping and killing containers under traffic', { skip, timeout: 240_000 }, async (t) => {
  const docker = await TestDocker.open(t);
  const agent = await sidecar(t, {
    vip: { mode: 'auto', range: '240.90.0.0/16', local_range: '240.91.0.0/16' },
  }).start();
  const busy = labels('busy', 5432);
  const vipOf = async (): Promise<string> => {
    const { vip } = await linked(agent, 'busy', 2);
    // The catalog knows of it a moment before the kernel does.
    await waitFor('an answer', async () => {
      const asked = open(vip, 5432);
      await asked.closed;
      return asked.text() === '?\n';
    });
    return vip;
  };

  await t.test('docker kill under 64 busy connections: nothing new fails', async (t) => {
    await docker.start('k1', busy, sayOn(5432, '-'));
    await docker.start('k2', busy, sayOn(5432, '-'));
    await usable(agent, 'busy', 2);
    const vip = await vipOf();
    const traffic = new Traffic(vip, 5432, 64);
    await waitFor('traffic', () => traffic.answered > 500);
    await docker.docker('kill', docker.name('k1'));
    await usable(agent, 'busy', 1);
    const atKill = traffic.answered;
    await waitFor('traffic after the kill', () => traffic.answered > atKill + 500);
    await traffic.stop();
    const cutAt = Math.min(...traffic.failures.map((failure) => failure.endedAt));
    const fresh = traffic.failures.filter((failure) => failure.beganAt > cutAt);
    t.same(fresh, [], 'no connection that began after the kill failed');
    t.ok(traffic.failures.length <= 64, `${traffic.failures.length} in flight`);
    await docker.docker('rm', '-f', docker.name('k1'), docker.name('k2'));
    await usable(agent, 'busy', 0).catch(() => undefined);
  });

  await t.test('docker stop of a server that finishes its requests: none fail', async (t) => {
    await docker.start('s1', ['--stop-timeout', '5', ...busy], sayOn(5432, '-'));
    await docker.start('s2', busy, sayOn(5432, '-'));
    await usable(agent, 'busy', 2);
    const vip = await vipOf();
    const traffic = new Traffic(vip, 5432, 16);
    await waitFor('traffic', () => traffic.answered > 200);
    await docker.docker('stop', docker.name('s1'));
    const after = traffic.answered;
    await waitFor('traffic after the stop', () => traffic.answered > after + 200);
    await traffic.stop();
    t.same(traffic.failures, [], 'no request failed');
    await docker.docker('rm', '-f', docker.name('s1'), docker.name('s2'));
  });

  await t.test('only the stop signal drains; an ignored one is cancelled after StopTimeout + 5 s', async (t) => {
    await docker.start('g1', ['--stop-timeout', '1', ...busy], sayOn(5432, '-', 'ignore'));
    await usable(agent, 'busy', 1);
    await docker.docker('kill', '-s', 'HUP', docker.name('g1'));
    await docker.docker('rename', docker.name('g1'), docker.name('g1b'));
    await waitFor('the rename, which comes after the HUP, to be seen', async () =>
      (await service(agent, 'busy')).instances[0]?.source.endsWith('g1b'),
    );
    t.equal((await service(agent, 'busy')).usable, 1, 'HUP changes nothing');
    await docker.docker('rename', docker.name('g1b'), docker.name('g1'));
    const beganAt = performance.now();
    await docker.docker('kill', '-s', 'TERM', docker.name('g1'));
    await waitFor('draining', async () => (await service(agent, 'busy')).instances[0]?.draining);
    await usable(agent, 'busy', 1);
    const tookMs = performance.now() - beganAt;
    t.ok(tookMs > 5500 && tookMs < 8000, `taken in again after ${Math.round(tookMs)} ms`);
    await docker.docker('rm', '-f', docker.name('g1'));
  });

  await t.test('a container that is starting gets no traffic; an unhealthy one is left out', async (t) => {
    const health = [
      '--health-cmd',
      'test -e /tmp/healthy',
      '--health-interval',
      '300ms',
      '--health-timeout',
      '2s',
      '--health-retries',
      '1',
      '--health-start-period',
      '60s',
    ];
    await docker.start('h1', [...health, ...busy], sayOn(5432, '-'));
    await waitFor('starting', async () => (await service(agent, 'busy')).instances[0]?.status === 'starting');
    t.equal((await service(agent, 'busy')).usable, 0);
    await docker.docker('exec', docker.name('h1'), 'touch', '/tmp/healthy');
    await usable(agent, 'busy', 1);
    await docker.docker('exec', docker.name('h1'), 'rm', '/tmp/healthy');
    await waitFor('unhealthy', async () => (await service(agent, 'busy')).instances[0]?.status === 'critical');
    t.equal((await service(agent, 'busy')).usable, 0);
  });
  const links = (await agent.json<{ links: LinkDocument[] }>('/api/links')).links;
  t.match(
    links.find((link) => link.service === named('busy')),
    { kind: 'vip', state: 'refusing' },
  );
});

/** Connections that each send a line and want it back, as many at a time as told, until stopped. */
class Traffic {
  answered = 0;
  readonly failures: { readonly beganAt: number; readonly endedAt: number; readonly problem: string }[] = [];
  #stopped = false;
  readonly #workers: Promise<unknown>;

  constructor(address: string, port: number, concurrency: number) {
    this.#workers = Promise.all(Array.from({ length: concurrency }, () => this.#work(address, port)));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#workers;
  }

  async #work(address: string, port: number): Promise<void> {
    while (!this.#stopped && this.failures.length < 1000) {
      const beganAt = performance.now();
      const asked = open(address, port);
      asked.socket.setTimeout(5000, () => asked.socket.destroy(new Error('no answer in 5 s')));
      await asked.closed;
      if (asked.text() === '?\n') this.answered += 1;
      else
        this.failures.push({
          beganAt,
          endedAt: performance.now(),
          problem: asked.problem() || 'closed without an answer',
        });
    }
  }
}

t.test(
  'an engine of its own is restarted, then sidecar and engine together',
  { skip: unless('docker', 'dockerd', 'busybox', 'command:musl-gcc', 'command:gcc', 'command:ip'), timeout: 240_000 },
  async (t) => {
    const { Engine } = await import('./support/engine.ts');
    const engine = await Engine.start(t);
    const docker = await TestDocker.open(t, engine.socket);
    const agent = new Agent(t, { docker: { socket: engine.socket, expose: 'labelled' } });
    await agent.start();
    await docker.start('db-1', ['--restart', 'always', ...db()], sayOn(5432, 'db-1'));
    await docker.start('db-2', db(), sayOn(5432, 'db-2'));
    const ids = (found: ServiceDocument): string[] => found.instances.map((each: InstanceDocument) => each.id).sort();
    const before = ids(await usable(agent, 'db', 2));
    const check = async (what: string): Promise<void> => {
      const running = (await docker.docker('ps', '-q'))
        .split('\n')
        .filter((line) => line !== '')
        .sort();
      const found = await waitFor(
        `${what}: what runs and what is registered to agree`,
        async () => {
          const now = await service(agent, 'db').catch(() => undefined);
          const registered = ids(now ?? ({ instances: [] } as unknown as ServiceDocument));
          const expected = running.map((id) => `web-1/${id}-5432`);
          return JSON.stringify(registered) === JSON.stringify(expected) ? now : undefined;
        },
        { timeoutMs: 30_000 },
      );
      t.ok(
        found.instances.length >= 1 && found.instances.every((each) => before.includes(each.id)),
        `${what}: neither duplicates nor orphans`,
      );
    };
    await agent.kill('SIGTERM');
    await agent.start();
    await check('sidecar restarted');
    await engine.restart();
    await docker.docker('start', docker.name('db-2'));
    await check('engine restarted');
    await Promise.all([agent.kill('SIGKILL'), engine.restart()]);
    await agent.start();
    await check('both restarted');
    await engine.hang();
    await waitFor(
      'the sidecar to say that Docker does not answer',
      async () => (await agent.json<StatusDocument>('/api/status')).docker.state === 'away',
      { timeoutMs: 60_000 },
    );
    t.equal((await service(agent, 'db')).usable >= 1, true, 'the last picture stays while Docker hangs');
    engine.resume();
    await waitFor(
      'Docker to be back',
      async () => (await agent.json<StatusDocument>('/api/status')).docker.state === 'connected',
      { timeoutMs: 60_000 },
    );
  },
);
