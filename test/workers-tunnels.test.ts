import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { LinksDocument } from '../sidecar/admin/documents.ts';
import type { WhyDocument } from '../sidecar/admin/why-document.ts';
import { type Agent, run } from './support/agent.ts';
import { statusOf } from './support/faults.ts';
import {
  identityOf,
  joinTo,
  legate,
  type MeshHost,
  meshHost,
  nextToken,
  served,
  tokenOf,
} from './support/mesh-host.ts';
import { unless } from './support/needs.ts';
import { Client, echoServer, isWorker, Load, workersOf } from './support/planes.ts';
import { waitFor } from './support/wait.ts';

/** Two hosts of one mesh whose links and tunnels are carried by workers, which are killed and replaced on either side. */

const slow = { timeoutMs: 30_000, everyMs: 100 };
const loops = 64;

class Mesh {
  readonly here: MeshHost;
  readonly there: MeshHost;
  readonly port: number;
  vip = '';
  readonly #pids = new Set<number>();

  private constructor(here: MeshHost, there: MeshHost, port: number) {
    this.here = here;
    this.there = there;
    this.port = port;
  }

  /** `db` is on the second host; the first one, which holds the store and the authority, has a virtual address for it. */
  static async up(t: Test, range: number): Promise<Mesh> {
    const port = await echoServer(t);
    const table = `legate_240_${range}_0_0_16`;
    t.teardown(async () => {
      for (const agent of [mesh.here.agent, mesh.there.agent]) {
        for (const pid of mesh.workers(agent)) process.kill(pid, 'SIGKILL');
      }
      await run('nft', ['delete', 'table', 'ip', table]);
      await run('nft', ['delete', 'table', 'bridge', table]);
      for (const each of [range, range + 1])
        await run('ip', ['route', 'del', 'local', `240.${each}.0.0/16`, 'dev', 'lo']);
    });
    const common = { workers: 2, drain: { timeout: '2s' } };
    const here = await meshHost(t, 'web-1', {
      ...common,
      vip: { range: `240.${range}.0.0/16`, local_range: `240.${range + 1}.0.0/16` },
    });
    here.agent.configure({
      ...here.config,
      store: { kind: 'embedded', listen: `127.0.0.1:${here.ports.store}`, lease_ttl: '60s' },
    });
    const there = await meshHost(t, 'db-1', {
      ...common,
      store: { lease_ttl: '60s' },
      instances: [{ service: 'db', address: '127.0.0.1', port, reach: 'host' }],
    });
    const mesh = new Mesh(here, there, port);
    const init = await legate(['init', '-c', here.agent.configFile, '--certificate-life', '60s']);
    if (init.status !== 0) throw new Error(init.stderr + init.stdout);
    await here.agent.start();
    const joined = await joinTo(here, there, tokenOf(init));
    if (joined.status !== 0) throw new Error(joined.stderr + joined.stdout);
    // The second host, of the same kernel, has no virtual addresses and claims none.
    const claimed = await here.agent.api('PUT', '/api/services/db', { port });
    if (claimed.status !== 200) throw new Error(claimed.text);
    await there.agent.start();
    await mesh.carries();
    return mesh;
  }

  /** Waits until a connection gets through. */
  async carries(): Promise<void> {
    const open = async (): Promise<boolean> => {
      const { links } = await this.here.agent.json<LinksDocument>('/api/links');
      const link = links.find(({ kind, state }) => kind === 'vip' && state === 'open');
      this.vip = link?.address.split(':')[0] ?? '';
      return this.vip !== '' && link?.backends.length === 1;
    };
    await waitFor('the virtual address', open, slow);
    const answers = async (): Promise<boolean> => {
      const client = this.client();
      const problem = await client.ask();
      client.close();
      return problem === undefined;
    };
    await waitFor('a connection', answers, slow);
  }

  client(): Client {
    return new Client(this.vip, this.port);
  }

  async hold(count: number): Promise<Client[]> {
    const clients = Array.from({ length: count }, () => this.client());
    const problems = await Promise.all(clients.map((client) => client.ask()));
    if (problems.some((problem) => problem !== undefined)) throw new Error(`not connected: ${problems.join(' ')}`);
    return clients;
  }

  load(): Load {
    return new Load(this.vip, this.port, loops, 200);
  }

  workers(agent: Agent): number[] {
    for (const pid of workersOf(agent)) this.#pids.add(pid);
    return [...this.#pids].filter((pid) => isWorker(pid) && workersOf(agent).includes(pid));
  }
}

async function more(load: Load, count = 2 * loops): Promise<void> {
  const before = load.count;
  await waitFor('more load', () => load.count >= before + count, slow);
}

async function goOn(t: Test, clients: readonly Client[], what: string): Promise<void> {
  const problems = await Promise.all(clients.map((client) => client.ask()));
  t.same(
    problems.filter((problem) => problem !== undefined),
    [],
    what,
  );
}

function metric(text: string, name: string): number {
  const line = text.split('\n').find((each) => each.startsWith(name));
  return Number(line?.split(' ').pop() ?? Number.NaN);
}

function summary(load: Load): string {
  return `of ${load.count} connections, the slowest ${Math.round(load.longestMs)} ms`;
}

t.test('tunnels of several workers', { skip: unless('root', 'nft'), timeout: 115_000 }, async (t) => {
  const mesh = await Mesh.up(t, 184);
  const { here, there } = mesh;

  await t.test('documents, enrolment and renewal over the shared listener', async (t) => {
    const held = await mesh.hold(8);
    const connections = async ({ agent }: MeshHost, role: string): Promise<number> =>
      metric((await agent.api('GET', '/metrics')).text, `legate_tunnel_open_connections{role="${role}"}`);
    await waitFor('two of each worker', async () => (await connections(here, 'dialled')) === 4, slow);
    t.equal(await connections(there, 'accepted'), 4);
    t.match((await statusOf(here.agent)).tunnels, [{ host: 'db-1', state: 'ready', problem: null }]);
    const link = (await here.agent.json<LinksDocument>('/api/links')).links.find(({ kind }) => kind === 'vip');
    t.match(link, { connections: { active: 8 }, backends: [{ via: 'tunnel', active: 8, tunnel: { state: 'ready' } }] });
    const { steps } = await here.agent.json<WhyDocument>('/api/why?name=db&consumer=host');
    t.same(
      steps.filter(({ verdict }) => verdict === 'bad'),
      [],
    );
    t.match(steps.at(-1)?.text, /through the tunnel in .* ms: connected$/);
    for (const client of held) client.close();

    // Each of them over a connection of its own, which any worker may take.
    const roots = join(here.dataDir, 'pki', 'roots.pem');
    const serials = await Promise.all(Array.from({ length: 8 }, () => served(here.ports.tunnel, roots)));
    t.equal(new Set(serials).size, 1, 'all show the same certificate');
    const late = await meshHost(t, 'late-1');
    t.match(await joinTo(here, late, await nextToken(here)), { status: 0 });
  });

  const { serial } = await identityOf(there);
  const load = mesh.load();
  /** Does something under load: what failed meanwhile. */
  const during = async (act: () => Promise<unknown>): Promise<readonly string[]> => {
    await more(load, loops);
    load.failures.length = 0;
    load.longestMs = 0;
    await act();
    await more(load);
    return [...load.failures];
  };

  await t.test('a killed worker on the receiving side', async (t) => {
    const failures = await during(async () => {
      const [victim = 0] = mesh.workers(there.agent);
      process.kill(victim, 'SIGKILL');
      await waitFor('another one', () => mesh.workers(there.agent).filter((pid) => pid !== victim).length === 2, slow);
    });
    // Those that it carried at that moment are lost, and no other.
    t.ok(failures.length <= loops, `${summary(load)}: ${failures.join(' ')}`);
  });

  const held = await mesh.hold(8);
  const steps = [
    ['--replace on the sending side', async () => t.match(await here.agent.replace(), { former: 0 })],
    ['--replace on the receiving side', async () => t.match(await there.agent.replace(), { former: 0 })],
    [
      'control killed on the sending side',
      async () => {
        await here.agent.kill('SIGKILL');
        await more(load, loops);
        await here.agent.start();
      },
    ],
    [
      'control killed on the receiving side',
      async () => {
        await there.agent.kill('SIGKILL');
        await more(load, loops);
        await there.agent.start();
      },
    ],
  ] as const;
  for (const [what, act] of steps) {
    await t.test(what, async (t) => {
      t.same(await during(act), [], summary(load));
      t.comment(summary(load));
      await goOn(t, held, 'established ones go on');
    });
  }
  await load.stop();
  for (const client of held) client.close();

  for (const { agent } of [here, there]) {
    await waitFor('the former ones end', () => mesh.workers(agent).length === 2, slow);
  }
  const renewed = async (): Promise<boolean> => (await identityOf(there)).serial !== serial;
  await waitFor('a new certificate', renewed, { timeoutMs: 60_000, everyMs: 100 });
  t.equal(await there.agent.kill('SIGTERM'), 0);
  t.equal(await here.agent.kill('SIGTERM'), 0);
  t.same([...mesh.workers(here.agent), ...mesh.workers(there.agent)], [], 'no process is left');
});
