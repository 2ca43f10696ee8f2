import t from 'tap';
import type {
  DeclaredLinkDocument,
  LinksDocument,
  ResolveDocument,
  ServiceDocument,
  StatusDocument,
} from '../sidecar/admin/documents.ts';
import { Agent, must, run } from './support/agent.ts';
import { sayOn, TestDocker } from './support/docker.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** `legate.links` with real containers and the C libraries' own resolvers. */
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc', 'command:dig');
const nameServer = '240.108.0.53';
const config = {
  docker: { socket: '/var/run/docker.sock', expose: 'labelled' },
  dns: { listen: ['127.0.0.1:0'], bridges: 'off', upstream: 'off' },
  vip: { mode: 'auto', range: '240.108.0.0/16', local_range: '240.109.0.0/16' },
};

/** Names of this test's own: other tests run containers on the same engine at the same time. */
const named = (name: string): string => `${name}-${process.pid}`;
const offers = (name: string, port: number): string[] => [
  '--label',
  `legate.service=${named(name)}`,
  '--label',
  `legate.port=${port}`,
];
const wants = (links: string): string[] => ['--label', `legate.links=${links}`];
const withNames = ['--dns', nameServer, '--dns-search', 'mesh.internal'];

t.test('aliases of containers', { skip, timeout: 240_000 }, async (t) => {
  const docker = await TestDocker.open(t);
  const agent = await new Agent(t, config).start();
  const status = await agent.json<StatusDocument>('/api/status');
  t.equal(status.vip.state, 'on', status.vip.reason ?? '');
  const [redis, cache] = [named('redis'), named('cache')];
  await docker.start('redis', offers('redis', 6380), sayOn(6380, 'redis'));
  await docker.start('cache', offers('cache', 80), sayOn(80, 'the service'));
  const vipOf = (name: string): Promise<string> =>
    waitFor(`a virtual address of ${name}`, async () => {
      const found = await agent.json<ServiceDocument>(`/api/services/${name}`);
      return found.usable > 0 ? found.vip : undefined;
    });
  const vip = await vipOf(redis);
  const cacheVip = await vipOf(cache);
  const declared = async (container: string): Promise<DeclaredLinkDocument[]> =>
    (await agent.json<LinksDocument>('/api/links')).declared.filter(
      (link) => link.container === docker.name(container),
    );
  const settled = (container: string, ...states: string[]): Promise<DeclaredLinkDocument[]> =>
    waitFor(`the links of ${container} to be ${states}`, async () => {
      const links = await declared(container);
      return links.map(({ state }) => state).join() === states.join() ? links : undefined;
    });
  const ask = (container: string, ...words: string[]): Promise<string> =>
    run('docker', ['exec', docker.name(container), ...words]).then(({ stdout }) => stdout.trim());
  /** Runs a container whose very first act is the question. */
  const fresh = async (options: readonly string[], ...words: string[]): Promise<string> =>
    (await run('docker', ['run', '--rm', ...withNames, ...options, docker.image, ...words])).stdout.trim();
  const unknownName = /not known|does not resolve|No address|has no usable|unknown/i;

  await t.test('the first question of a new container is answered by its own aliases', async (t) => {
    const net = await docker.network('net');
    for (const place of [[], ['--network', net]]) {
      for (const tool of ['ask-musl', 'ask-glibc']) {
        const label = `${tool} ${place.join(' ')}`;
        const linked = [...place, ...wants(`kv=${redis}@6379,${cache}=${redis}`)];
        const [alias, inZone, before, unknown, others] = await Promise.all([
          fresh(linked, tool, 'kv'),
          fresh(linked, tool, 'KV.Mesh.internal'),
          fresh(linked, tool, cache),
          fresh(place, tool, 'kv'),
          fresh(place, tool, cache),
        ]);
        t.equal(alias, vip, label);
        t.equal(inZone, vip, `${label}, in the zone`);
        t.equal(before, vip, `${label}, before a service of the name`);
        t.match(unknown, unknownName, `${label}, another container`);
        t.equal(others, cacheVip, `${label}, what the name means for others`);
      }
    }
    t.match(await must('dig', `@${nameServer}`, 'kv.mesh.internal'), /status: NXDOMAIN/, 'the host');
  });

  await t.test('at the port that the container uses', async (t) => {
    const refused = async (port: number): Promise<boolean> =>
      (await run('busybox', ['nc', '-w', '2', vip, String(port)], { input: '?\n' })).status !== 0;
    t.ok(await refused(6379), 'nobody wants that port yet');
    await docker.start('web', [...withNames, ...wants(`kv=${redis}@6379,same=${redis}`)], ['sleep', '600']);
    await docker.start('api', [...withNames, ...wants(`kv=${redis}@6379`)], ['sleep', '600']);
    const links = await settled('web', 'open', 'open');
    t.match(links, [
      { alias: 'kv', service: redis, address: `${vip}:6379`, consumer: null, problem: null, since: null },
      { alias: 'same', service: redis, address: `${vip}:6380` },
    ]);
    for (const tool of ['ask-musl', 'ask-glibc']) {
      t.equal(await ask('web', tool, 'kv', '6379'), 'redis', tool);
      t.equal(await ask('web', tool, 'same', '6380'), 'redis', `${tool}, the service’s own port`);
    }
    const document = await agent.json<LinksDocument>('/api/links');
    const places = document.links
      .filter(({ service }) => service === redis)
      .map(({ kind, address }) => [kind, address]);
    t.strictSame(places, [
      ['vip', `${vip}:6380`],
      ['alias', `${vip}:6379`],
    ]);
    await docker.docker('rm', '-f', docker.name('web'));
    await settled('web');
    await settled('api', 'open');
    t.equal(await ask('api', 'ask-musl', 'kv', '6379'), 'redis', 'another one still wants it');
    await docker.docker('rm', '-f', docker.name('api'));
    await waitFor('the port to leave with the last container', () => refused(6379));
    t.notOk(await refused(6380));
  });

  await t.test('the port is there for those who declare it only', async (t) => {
    await docker.start('web', [...withNames, ...wants(`kv=${redis}@6379`)], ['sleep', '600']);
    await settled('web', 'open');
    t.equal(await ask('web', 'ask-musl', vip, '6379'), 'redis');
    t.equal(await fresh([], 'ask-musl', vip, '6379'), '', 'another container');
    t.equal(await fresh(wants(`kv=${redis}`), 'ask-musl', vip, '6379'), '', 'one that declares the service without it');
    t.equal((await run('busybox', ['nc', '-w', '2', vip, '6379'], { input: '?\n' })).stdout, '', 'the host');
    t.equal(await fresh([], 'ask-musl', vip, '6380'), 'redis', 'the service’s own port is for everybody');
    await docker.docker('rm', '-f', docker.name('web'));
    await settled('web');
    const ports = [6390, 6391, 6392, 6393, 6394];
    const answers = await Promise.all(
      ports.map((port) => fresh(wants(`kv=${redis}@${port}`), 'ask-musl', vip, String(port))),
    );
    for (const [index, port] of ports.entries())
      t.equal(answers[index], 'redis', `nobody else declares ${port}, and it is the first that the container does`);
  });

  await t.test('a link for a service that does not exist yet', async (t) => {
    const [soon, early] = [named('soon'), named('early')];
    await docker.start('waiter', [...withNames, ...wants(`later=${soon},early=${early}@7000`)], ['sleep', '600']);
    const [first] = await settled('waiter', 'waiting', 'waiting');
    t.match(first, { alias: 'early', since: /^20/ });
    t.match(await ask('waiter', 'ask-musl', 'later'), unknownName);
    t.match(
      await must('docker', 'exec', docker.name('waiter'), 'sh', '-c', 'ask-glibc later || true'),
      unknownName,
      'known, without an address',
    );
    // One with a port has an address before its first instance, at which connecting is refused.
    const earlyVip = await waitFor('an address for early', async () => (await declared('waiter'))[0]?.address);
    t.equal(`${await ask('waiter', 'ask-musl', 'early')}:7000`, earlyVip);
    t.equal(await ask('waiter', 'ask-musl', 'early', '7000'), '', 'refused');
    t.match((await agent.cli('links')).stdout, new RegExp(`early +${early} .*waiting`));
    t.match((await agent.cli('links')).stdout, `${soon} has no instances: waiting for`);

    await docker.start('soon', offers('soon', 81), sayOn(81, 'soon'));
    await docker.start('early', offers('early', 7001), sayOn(7001, 'early'));
    await settled('waiter', 'open', 'open');
    t.equal(await ask('waiter', 'ask-musl', 'later', '81'), 'soon');
    t.equal(`${await ask('waiter', 'ask-glibc', 'early')}:7000`, earlyVip, 'the same address');
    t.equal(await ask('waiter', 'ask-glibc', 'early', '7000'), 'early');
    await docker.docker('rm', '-f', docker.name('soon'), docker.name('early'));
    await settled('waiter', 'waiting', 'waiting');
  });

  await t.test('what is shown', async (t) => {
    await docker.start('shown', [...withNames, ...wants(`${cache}=${redis},kv=${redis}`)], ['sleep', '600']);
    await settled('shown', 'open', 'open');
    const { todo } = await agent.json<StatusDocument>('/api/status');
    const note = todo.find(({ id }) => id === `links.alias.${cache}`);
    t.match(note, { severity: 'note', message: `the alias ${cache} of ${docker.name('shown')} hides the service` });
    const from = encodeURIComponent(docker.name('shown'));
    const resolved = await agent.json<ResolveDocument>(`/api/resolve?name=kv&from=${from}`);
    t.match(resolved, { status: 'NOERROR', answers: [{ data: vip }] });
    t.match(await agent.json(`/api/resolve?name=kv`), { status: 'NXDOMAIN' });
    t.match((await agent.cli('resolve', 'kv', '--from', docker.name('shown'))).stdout, vip);
    const id = (await docker.docker('inspect', '--format', '{{.Id}}', docker.name('shown'))).trim();
    for (const text of [id, id.slice(0, 12)]) t.match((await agent.cli('resolve', 'kv', '--from', text)).stdout, vip);
    t.match(await agent.cli('resolve', 'kv', '--from', id.slice(0, 11)), { status: 1, stderr: /no container/ });
    t.match(await agent.cli('resolve', 'kv', '--from', 'nobody'), { status: 1, stderr: /no container nobody/ });
    await docker.start('host', ['--network', 'host', ...wants(`kv=${redis}`)], ['sleep', '600']);
    t.match(await settled('host', 'down'), [{ problem: /its address is not known/ }]);
    await docker.docker('rm', '-f', docker.name('shown'), docker.name('host'));
    await waitFor('the note to end', async () =>
      (await agent.json<StatusDocument>('/api/status')).todo.every(({ id }) => !id.startsWith('links.')),
    );
  });
});
