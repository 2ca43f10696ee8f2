import { readFileSync } from 'node:fs';
import t from 'tap';
import type { LinkDocument, ServiceDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { Agent, must, run, type Teardown } from './support/agent.ts';
import { sayOn, TestDocker } from './support/docker.ts';
import { Engine } from './support/engine.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** Who is calling, on real containers: counted under their names, held to their addresses, bound and forgotten. */
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc');
const table = 'legate_240_104_0_0_16';
/** Of the sidecar with an engine of its own, which runs at the same time. */
const otherTable = 'legate_240_106_0_0_16';
const nameServer = '240.104.0.53';
const named = (name: string): string => `${name}-${process.pid}`;
const db = named('db');

function sidecar(t: Teardown, more: Readonly<Record<string, unknown>> = {}): Agent {
  const docker = { socket: '/var/run/docker.sock', expose: 'labelled' };
  const dns = { listen: ['127.0.0.1:0'], bridges: 'off', upstream: 'off' };
  const vip = { mode: 'auto', range: '240.104.0.0/16', local_range: '240.105.0.0/16' };
  return new Agent(t, { docker, dns, vip, ...more });
}

const status = (agent: Agent): Promise<StatusDocument> => agent.json<StatusDocument>('/api/status');

/** Connections over the virtual address so far, by consumer. */
async function counts(agent: Agent): Promise<Record<string, number>> {
  const links = (await agent.json<{ links: LinkDocument[] }>('/api/links')).links;
  const link = links.find(({ service, kind }) => service === db && kind === 'vip');
  return Object.fromEntries((link?.consumers ?? []).map(({ name, total }) => [name, total]));
}

/** What came over the virtual address while `work` was done, by consumer. */
async function counted(agent: Agent, work: () => Promise<unknown>): Promise<Record<string, number>> {
  const before = await counts(agent);
  await work();
  const after = Object.entries(await counts(agent)).map(
    ([name, total]) => [name, total - (before[name] ?? 0)] as const,
  );
  return Object.fromEntries(after.filter(([, total]) => total > 0));
}

async function virtualAddress(agent: Agent): Promise<string> {
  return waitFor(`a virtual address of ${db}`, async () => {
    const found = await agent.json<ServiceDocument>(`/api/services/${db}`);
    return found.usable > 0 && found.vip;
  });
}

async function metric(agent: Agent, name: string): Promise<number> {
  const line = (await agent.api('GET', '/metrics')).text.split('\n').find((text) => text.startsWith(`${name} `));
  return Number(line?.split(' ').at(-1));
}

/** Elements of a set of the bridge table, as nft prints them. */
async function elements(set: string, of = table): Promise<string[]> {
  const text = await must('nft', 'list', 'set', 'bridge', of, set);
  return (/elements = \{([^}]*)\}/.exec(text)?.[1] ?? '')
    .split(',')
    .map((element) => element.trim())
    .filter((element) => element !== '');
}

/**
 * Over the tables of all sidecars of this host: tests run side by side on one engine, whose containers each sidecar binds,
 * and of frames to a gateway, or with VLAN tags, the first table drops and counts.
 */
async function spoofedPackets(): Promise<number> {
  const listing = await must('nft', 'list', 'counters', 'bridge');
  return [...listing.matchAll(/counter spoofed \{\s*packets (\d+)/g)].reduce(
    (sum, [, count]) => sum + Number(count),
    0,
  );
}

const web = ['--label', 'legate.consumer=web'];

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('who calls', { skip, timeout: 240_000 }, async (t) => {
  const docker = await TestDocker.open(t);
  const agent = await sidecar(t).start();
  await docker.start('db', ['--label', `legate.service=${db}`, '--label', 'legate.port=5432'], sayOn(5432, 'db'));
  const vip = await virtualAddress(agent);
  const ask = (options: readonly string[], count = 1): Promise<string> =>
    docker.runOnce(options, 'ask-musl', vip, '5432', String(count));
  const addressOf = async (name: string, network = 'bridge'): Promise<string> =>
    docker.docker('inspect', '-f', `{{(index .NetworkSettings.Networks "${network}").IPAddress}}`, docker.name(name));
  const bound = (address: string): Promise<unknown> =>
    waitFor(`${address} to be bound`, async () => (await elements('bound')).includes(address));
  const net = await docker.network('shop');
  const bridge = `br-${(await docker.docker('network', 'inspect', '-f', '{{.Id}}', net)).slice(0, 12)}`;

  await t.test('containers are counted under their names from their first connection on', async (t) => {
    const { callers } = await status(agent);
    t.match(callers, { state: 'on', reason: null });
    for (const [what, options, expected] of [
      ['a consumer', web, 'web'],
      ['a consumer on a network of its own', ['--network', net, ...web], 'web'],
      ['a service', ['--label', 'legate.service=api', '--label', 'legate.port=80'], 'api'],
      ['nobody in particular', [], 'anonymous'],
      ['one that is nobody for Legate', ['--label', 'legate.consumer=not/a name'], 'anonymous'],
      ['the network of the host, whatever it says', ['--network', 'host', ...web], 'host'],
    ] as const) {
      const seen = await counted(agent, async () => t.equal(await ask(options, 3), 'db\ndb\ndb', what));
      t.same(seen, { [expected]: 3 }, what);
    }
    const { consumers } = (await agent.json<{ links: LinkDocument[] }>('/api/links')).links.find(
      ({ service }) => service === db,
    ) as LinkDocument;
    t.same(consumers.map(({ name, active }) => [name, active]).sort(), [
      ['anonymous', 0],
      ['api', 0],
      ['host', 0],
      ['web', 0],
    ]);
    t.equal(await metric(agent, `legate_link_consumer_connections_total{service="${db}",consumer="web"}`), 6);
    t.equal(await metric(agent, 'legate_callers_refused_total'), 0);
    t.equal(await metric(agent, 'legate_callers_held_count'), 0);
    t.match((await agent.cli('status')).stdout, /callers +\d+ address(es)? of containers bound/);
  });

  await t.test('a caller of several services or of a shared network', async (t) => {
    const several = ['--label', 'legate.80.service=one', '--label', 'legate.81.service=two'];
    t.same(await counted(agent, () => ask(several)), { anonymous: 1 }, 'two services and no word which');
    t.same(await counted(agent, () => ask([...several, ...web])), { web: 1 }, 'two services and a word');
    await docker.start('owner', [], ['sleep', '60']);
    const shared = ['--network', `container:${docker.name('owner')}`];
    t.same(await counted(agent, () => ask(shared)), { anonymous: 1 }, 'none says who');
    await docker.start('side', [...shared, ...web], ['sleep', '60']);
    await waitFor('the network to be called web', async () => {
      const seen = await counted(agent, () => ask(shared));
      return seen.web === 1;
    });
    await docker.start('other', [...shared, '--label', 'legate.consumer=api'], ['sleep', '60']);
    const contradiction = await waitFor('a note', async () =>
      (await status(agent)).todo.find(({ message }) => message.includes(`${docker.name('owner')} are api, web`)),
    );
    t.equal(contradiction.severity, 'note');
    t.same(await counted(agent, () => ask(shared)), { anonymous: 1 }, 'two names are none');
    await docker.docker('rm', '-f', docker.name('other'), docker.name('side'), docker.name('owner'));
  });

  await t.test('an address of another container is of no use', async (t) => {
    await docker.start('victim', web, ['sleep', '120']);
    await docker.start('thief', [], ['sleep', '120']);
    const [victim, thief] = [await addressOf('victim'), await addressOf('thief')];
    await Promise.all([bound(victim), bound(thief)]);
    const macOf = (address: string): string =>
      `02:42:${address
        .split('.')
        .map((part) => Number(part).toString(16).padStart(2, '0'))
        .join(':')}`;
    t.match((await elements('bindings')).join(), `${macOf(victim)} . ${victim}`);
    const gatewayMac = readFileSync('/sys/class/net/docker0/address', 'utf8').trim();
    const spoof = (mac: string, source: string, to: string, port: number, protocol: string): Promise<string> =>
      docker.docker(
        ...['exec', docker.name('thief'), 'spoof', 'eth0', mac, gatewayMac, source, to, String(port), protocol, '5'],
      );
    const queries = async (): Promise<number> =>
      (await status(agent)).names.find(({ listen }) => listen === `${nameServer}:53`)?.queries ?? Number.NaN;

    const asked = await queries();
    await spoof('own', thief, nameServer, 53, 'udp');
    await waitFor('questions of its own address to arrive', async () => (await queries()) === asked + 5);

    for (const mac of ['own', macOf(victim)]) {
      for (const [to, port, protocol] of [
        [vip, 5432, 'tcp'],
        [nameServer, 53, 'udp'],
        [nameServer, 53, 'qinq'],
      ] as const) {
        const expected = (await spoofedPackets()) + 5;
        const seen = await counted(agent, () => spoof(mac, victim, to, port, protocol));
        t.same(seen, {}, `${protocol} from ${mac}: no connection`);
        t.equal(await spoofedPackets(), expected, `${protocol} from ${mac}: dropped and counted`);
      }
    }
    const before = await spoofedPackets();
    await spoof(macOf(victim), thief, nameServer, 53, 'udp');
    t.equal(await spoofedPackets(), before + 5, "its own address from another one's MAC neither");
    t.equal(await queries(), asked + 5, 'no question arrived');
    const warning = await waitFor(
      'a warning',
      async () => (await status(agent)).todo.find(({ message }) => message.includes('address of another one')),
      { timeoutMs: 25_000 },
    );
    t.equal(warning.severity, 'warning');
    t.ok((await metric(agent, 'legate_callers_spoofed_packets_total')) > 0);
    const still = await counted(agent, () => docker.docker('exec', docker.name('victim'), 'ask-musl', vip, '5432'));
    t.same(still, { web: 1 }, 'the victim itself is served');
    await docker.docker('rm', '-f', docker.name('victim'), docker.name('thief'));
  });

  await t.test('the gateway of a network', async (t) => {
    await docker.start('victim', ['--network', net, ...web], ['sleep', '120']);
    await docker.start('thief', ['--network', net], ['sleep', '120']);
    const victim = await addressOf('victim', net);
    await Promise.all([bound(victim), bound(await addressOf('thief', net))]);
    const gateway = await docker.docker('network', 'inspect', '-f', '{{(index .IPAM.Config 0).Gateway}}', net);
    await waitFor('the gateway to be watched', async () => (await elements('endpoints')).includes(`${gateway} . 53`));
    const mac = readFileSync(`/sys/class/net/${bridge}/address`, 'utf8').trim();
    const before = await spoofedPackets();
    const thief = docker.name('thief');
    await docker.docker('exec', thief, 'spoof', 'eth0', 'own', mac, victim, gateway, '53', 'udp', '5');
    t.equal(await spoofedPackets(), before + 5);
    await docker.docker('rm', '-f', docker.name('victim'), thief);
  });

  await t.test('an address that somebody else gets is that one then', async (t) => {
    const subnet = `10.104.${process.pid % 250}.0/24`;
    const fixed = await docker.network('fixed', '--subnet', subnet);
    const address = subnet.replace('.0/24', '.7');
    const at = ['--network', fixed, '--ip', address];
    for (const [round, consumer] of ['one', 'two', 'one'].entries()) {
      const name = `fixed-${round}`;
      const options = [...at, '--label', `legate.consumer=${consumer}`];
      const seen = await counted(agent, async () => {
        await docker.start(name, options, ['sh', '-c', `ask-musl ${vip} 5432; sleep 60`]);
        await waitFor('its answer', async () => (await docker.docker('logs', docker.name(name))) === 'db');
      });
      t.same(seen, { [consumer]: 1 }, `round ${round}`);
      t.same(
        (await elements('bound')).filter((each) => each === address),
        [address],
      );
      await docker.docker('kill', docker.name(name));
    }
    await waitFor('the address to be free', async () => !(await elements('bound')).includes(address));
  });

  await t.test('networks come and go under a running container', async (t) => {
    await docker.start('mobile', web, ['sleep', '120']);
    const [first, id] = [await addressOf('mobile'), docker.name('mobile')];
    await bound(first);
    await docker.docker('network', 'connect', net, id);
    const second = await addressOf('mobile', net);
    await bound(second);
    await docker.docker('network', 'disconnect', 'bridge', id);
    await waitFor('the first to be free', async () => !(await elements('bound')).includes(first));
    t.same(await counted(agent, () => docker.docker('exec', id, 'ask-musl', vip, '5432')), { web: 1 });
    await docker.docker('rm', '-f', id);
    await waitFor('both to be free', async () => !(await elements('bound')).includes(second));
  });

  await t.test('a sidecar that was killed or restarted binds again what runs', async (t) => {
    await docker.start('steady', web, ['sleep', '120']);
    const id = docker.name('steady');
    await bound(await addressOf('steady'));
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      await agent.kill(signal);
      const left = await run('nft', ['list', 'table', 'bridge', table]);
      t.equal(
        left.status === 0,
        signal === 'SIGKILL',
        `${signal}: the table is ${signal === 'SIGKILL' ? '' : 'not '}left`,
      );
      await agent.start();
      await virtualAddress(agent);
      t.same(await counted(agent, () => docker.docker('exec', id, 'ask-musl', vip, '5432')), { web: 1 }, signal);
      t.ok((await elements('bound')).includes(await addressOf('steady')));
    }
    await must('nft', 'delete', 'table', 'bridge', table);
    await waitFor(
      'the table to be back',
      async () => (await run('nft', ['list', 'table', 'bridge', table])).status === 0,
    );
    t.ok((await elements('bound')).includes(await addressOf('steady')), 'with its bindings');
  });
});

t.test('a link that stands for somebody, and an engine that goes and comes', { skip, timeout: 200_000 }, async (t) => {
  const engine = await Engine.start(t);
  const docker = await TestDocker.open(t, engine.socket);
  const agent = sidecar(t, {
    docker: { socket: engine.socket, expose: 'labelled' },
    links: [{ service: db, listen: '127.0.0.1:0', consumer: 'legacy' }],
    vip: { mode: 'auto', range: '240.106.0.0/16', local_range: '240.107.0.0/16' },
  });
  await agent.start();
  const start = async (name: string, ...options: string[]): Promise<void> => {
    await docker.start(name, options, sayOn(5432, name));
  };
  await start('db', '--label', `legate.service=${db}`, '--label', 'legate.port=5432');
  const vip = await virtualAddress(agent);
  const links = async (): Promise<LinkDocument[]> => (await agent.json<{ links: LinkDocument[] }>('/api/links')).links;
  const listener = (await links()).find(({ kind }) => kind === 'listen');
  const port = listener?.address.split(':').at(-1) ?? '';
  await must('sh', '-c', `echo | busybox nc -w 3 127.0.0.1 ${port}`);
  t.match(
    (await links()).find(({ kind }) => kind === 'listen')?.consumers,
    [{ name: 'legacy', total: 1 }],
    'whoever connects is who the link stands for',
  );
  const ask = (): Promise<string> => docker.runOnce(web, 'ask-musl', vip, '5432');
  t.same(await counted(agent, ask), { web: 1 });
  await start('web', ...web);
  await waitFor('two bindings', async () => (await elements('bindings', otherTable)).length === 2);
  await engine.restart();
  await waitFor('no binding to be left, for the containers went with the engine', async () => {
    const { docker: engineState, callers } = await status(agent);
    return (
      engineState.state === 'connected' && callers.bound === 0 && (await elements('bindings', otherTable)).length === 0
    );
  });
  await docker.docker('start', docker.name('db'), docker.name('web'));
  await waitFor('both to be bound again', async () => (await elements('bindings', otherTable)).length === 2);
  await virtualAddress(agent);
  t.same(await counted(agent, ask), { web: 1 });
});
