import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { InstanceDocument } from '../sidecar/admin/documents.ts';
import { Agent, must } from './support/agent.ts';
import { sayOn, TestDocker } from './support/docker.ts';
import { ask, descendantsOf, instancesOf, isRunning, statusOf } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** Death of the sidecar at any moment, on the machine's own engine. */
const skip = unless('docker', 'nft', 'busybox', 'command:musl-gcc', 'command:gcc');
const range = '240.98.0.0/16';
const table = 'legate_240_98_0_0_16';

/** Names of the tests' own: other tests run containers on the same engine. */
const named = (name: string): string => `${name}-${process.pid}`;
const labels = (name: string, port: number): string[] => [
  '--label',
  `legate.service=${named(name)}`,
  '--label',
  `legate.port=${port}`,
];

function sidecar(t: { teardown(run: () => void | Promise<void>): void }): Agent {
  return new Agent(t, {
    docker: { socket: '/var/run/docker.sock', expose: 'labelled' },
    vip: { mode: 'auto', range, local_range: '240.99.0.0/16' },
    services: { [named('kept')]: { port: 80 } },
  });
}

const listing = (): Promise<string> => must('nft', 'list', 'table', 'ip', table);
const isOurs = ({ service }: { readonly service: string }): boolean => service.endsWith(named(''));
/** What an instance is, without what differs between two runs. */
const essence = ({ id, service, address, port }: InstanceDocument): string => `${id} ${service} ${address}:${port}`;

t.test('killed at random moments, 20 times', { skip, timeout: 240_000 }, async (t) => {
  const docker = await TestDocker.open(t);
  const agent = sidecar(t);
  const running = new Map<string, string>();
  /** By name; `undefined`: under way when the sidecar died, so either is right. */
  const wanted = new Map<string, number | undefined>();
  const keys = new Map<string, string>();
  let serial = 0;
  let stop = false;
  const api = async (): Promise<void> => {
    while (!stop) {
      serial += 1;
      const name = `hand-${serial % 7}`;
      const known = wanted.get(name);
      const present = known !== undefined && known > 0;
      wanted.set(name, undefined);
      try {
        const port = 1000 + serial;
        const done = present
          ? await agent.api('DELETE', `/api/instances/web-1/${name}`)
          : await agent.api('PUT', `/api/instances/web-1/${name}`, {
              service: named('hand'),
              address: '127.0.0.1',
              port,
            });
        if (done.status === 200 || done.status === 204) wanted.set(name, present ? 0 : port);
        const key = `k/${serial % 50}`;
        keys.delete(key);
        if ((await agent.api('PUT', `/api/kv/${key}`, `v${serial}`)).status === 200) keys.set(key, `v${serial}`);
      } catch {
        // It has died under the request; the next round goes on.
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    }
  };
  const containers = async (): Promise<void> => {
    for (let index = 0; !stop; index += 1) {
      const name = `r${index % 3}`;
      const old = running.get(name);
      if (old !== undefined) {
        running.delete(name);
        await docker.docker('rm', '-f', old);
      } else running.set(name, await docker.start(`${name}-${index}`, labels('random', 7000), sayOn(7000, name)));
    }
  };
  const kept = await docker.start('kept', labels('kept', 80), sayOn(80, 'kept'));
  const work = Promise.all([api(), containers()]);
  // A generator of its own: the moments are the same in each run.
  let seed = 7;
  const random = (): number => {
    seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
    return seed / 2 ** 31;
  };
  const helpers: number[] = [];
  for (let round = 0; round < 20; round += 1) {
    // Some rounds end while it is still starting.
    await agent.start({ ready: false });
    if (round % 4 !== 0)
      await waitFor('the door', async () => (await agent.api('GET', '/healthz')).status === 200, { timeoutMs: 30_000 });
    const until = performance.now() + random() * 400;
    await waitFor('a random moment', () => performance.now() > until, { everyMs: 1 });
    helpers.push(...descendantsOf(agent.pid).map((each) => each.pid));
    await agent.kill('SIGKILL');
  }
  stop = true;
  await work;
  t.ok(helpers.length > 20, `${helpers.length} helpers ran`);
  await waitFor('all helpers to have ended', () => helpers.every((pid) => !isRunning(pid)));

  await agent.start();
  const expectedContainers = new Set([kept, ...running.values()].map((id) => id.slice(0, 12)));
  const instances = await waitFor('what is registered to be what runs', async () => {
    const all = await instancesOf(agent);
    const ofDocker = all.filter((each) => each.service === named('random') || each.service === named('kept'));
    const ids = new Set(ofDocker.map((each) => each.name.slice(0, 12)));
    if (ids.size !== ofDocker.length || ids.size !== expectedContainers.size)
      throw new Error(`${ofDocker.length} of ${expectedContainers.size}`);
    // Other tests' containers on the same engine come and go meanwhile.
    return [...ids].every((id) => expectedContainers.has(id)) && all.filter(isOurs);
  });
  t.pass('neither duplicates nor orphans of containers');
  const byHand = new Map(
    instances.filter((each) => each.service === named('hand')).map((each) => [each.name, each.port]),
  );
  for (const [name, port] of wanted) {
    if (port === undefined) continue;
    t.equal(byHand.get(name) ?? 0, port, `${name} is as it was acknowledged`);
  }
  t.ok(
    [...byHand.keys()].every((name) => wanted.has(name)),
    'nothing that nobody registered',
  );
  const lost: string[] = [];
  for (const [key, value] of keys) if ((await agent.api('GET', `/api/kv/${key}`)).text !== value) lost.push(key);
  t.same(lost, [], `${keys.size} acknowledged keys are there`);
  t.ok(keys.size > 3, `the test did something: ${keys.size} keys`);
  const stored = await agent.json<{ instances: InstanceDocument[] }>('/api/instances');
  t.equal(new Set(stored.instances.map((each) => each.id)).size, stored.instances.length, 'ids are unique');

  const { vip } = await agent.json<{ vip: string | null }>(`/api/services/${named('kept')}`);
  t.equal(await ask(80, vip ?? '', '?\n'), 'kept', 'the link works');
  const rules = await listing();
  t.equal((rules.match(/chain guard/g) ?? []).length, 1);
  t.equal(
    (rules.match(new RegExp(`${vip?.replaceAll('.', '\\.')} \\. 80 : `, 'g')) ?? []).length,
    1,
    'its port is mapped once',
  );
  type Served = { readonly service: string; readonly kind: string; readonly state: string; readonly address: string };
  const links = (await agent.json<{ links: Served[] }>('/api/links')).links;
  for (const link of links.filter((each) => each.kind === 'vip' && isOurs(each))) {
    const [address = '', port = ''] = link.address.split(':');
    const mapped = rules.includes(`${address} . ${port} : ${address} . `);
    t.equal(mapped, link.state === 'open', `${link.service} is ${mapped ? '' : 'not '}mapped and ${link.state}`);
  }
  const beingWritten = (): string[] => readdirSync(join(agent.folder, 'data')).filter((name) => name.endsWith('.tmp'));
  const remains = new Set(beingWritten());
  // What the sidecar is writing just now is gone a moment later, a remain of one that was killed is not.
  await waitFor('no remains of writing', () => beingWritten().every((name) => !remains.has(name)));

  const before = instances.map(essence).sort();
  await agent.kill('SIGKILL');
  await agent.start();
  await waitFor('the store', async () => (await statusOf(agent)).store.snapshot.origin === 'store');
  t.same((await instancesOf(agent)).filter(isOurs).map(essence).sort(), before, 'once more, and nothing has changed');
  const last = descendantsOf(agent.pid);
  t.equal(await agent.kill(), 0);
  t.notMatch(await must('nft', 'list', 'tables'), table, 'a clean stop takes the table back');
  t.notMatch(await must('ip', 'route', 'show', 'table', 'local'), range, 'and the route');
  await waitFor('all helpers to have ended', () => last.every((each) => !isRunning(each.pid)));
});
