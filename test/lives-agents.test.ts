import { cpSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { ConditionDocument, HostDocument, ServiceDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { Agent } from './support/agent.ts';
import { freePort } from './support/faults.ts';
import { waitFor } from './support/wait.ts';

/** Two sidecars and a copy of one, on the embedded store of the first: what the hosts of a mesh do to each other. */

class Mesh {
  readonly store: Agent;
  readonly other: Agent;
  readonly #port: number;
  readonly #t: Test;

  constructor(t: Test, port: number) {
    this.#t = t;
    this.#port = port;
    this.store = new Agent(t, {
      store: { kind: 'embedded', listen: `127.0.0.1:${port}`, lease_ttl: '3s' },
      ...placeOf(1),
    });
    this.other = new Agent(t, { store: this.#remote, ...placeOf(2) });
  }

  get #remote(): object {
    return { kind: 'etcd', endpoints: [`http://127.0.0.1:${this.#port}`], lease_ttl: '3s' };
  }

  /** A sidecar on another address with a copy of the other's data directory as it is now. */
  copy(number: number): Agent {
    const copy = new Agent(this.#t, { store: this.#remote, ...placeOf(number) });
    const from = join(this.other.folder, 'data');
    cpSync(from, join(copy.folder, 'data'), { recursive: true, filter: (path) => !path.endsWith('agent.pid') });
    return copy;
  }
}

const placeOf = (number: number): object => ({
  host: `web-${number}`,
  advertise: `127.0.0.${number}`,
  network: { underlay: 'trusted' },
  instances: [{ service: 'db', address: `127.0.0.${number}`, port: 5432, reach: 'mesh' }],
});

const hosts = async (agent: Agent): Promise<string> => {
  const list = await agent.json<{ hosts: HostDocument[] } | HostDocument[]>('/api/hosts');
  const all = Array.isArray(list) ? list : list.hosts;
  return all.map(({ name, alive }) => `${name}${alive ? '' : ':lost'}`).join(' ');
};

const statuses = async (agent: Agent): Promise<string> => {
  const { instances } = await agent.json<ServiceDocument>('/api/services/db');
  return instances.map(({ host, status }) => `${host}:${status}`).join(' ');
};

const told = async (agent: Agent, id: string): Promise<ConditionDocument | undefined> =>
  (await agent.json<StatusDocument>('/api/status')).todo.find((condition) => condition.id === id);

t.test('hosts come, go, return, and are told from their copies', async (t) => {
  const mesh = new Mesh(t, await freePort());
  const { store, other } = mesh;
  await store.start();
  await other.start();
  for (const agent of [store, other]) {
    await waitFor('both', async () => (await statuses(agent)) === 'web-1:passing web-2:passing');
  }

  await other.kill('SIGKILL');
  await other.start();
  await waitFor('it is back', async () => (await hosts(store)) === 'web-1 web-2');
  t.equal(await told(other, 'host.duplicate'), undefined, 'a killed sidecar takes its own lease over');
  t.notOk(
    other.log.some((line) => line.includes('waiting whether it lapses')),
    'at once',
  );

  const copy = mesh.copy(3);
  await copy.start({ ready: false });
  t.equal(await copy.ended(), 1, 'a copy of a running sidecar refuses to start');
  const last = copy.log.filter((line) => !line.startsWith('{')).join('\n');
  t.match(last, /another sidecar, at 127\.0\.0\.2, runs with this host's id [0-9a-f]{16}.*data_dir/);
  t.equal(await hosts(store), 'web-1 web-2');

  await other.kill('SIGKILL');
  await waitFor('lost', async () => (await statuses(store)) === 'web-1:passing web-2:lost', { timeoutMs: 20_000 });
  t.equal(await hosts(store), 'web-1 web-2:lost');
  t.match((await store.cli('status')).stdout, /host web-2 \(127\.0\.0\.2\) is lost/);
  const taker = mesh.copy(4);
  await taker.start();
  await waitFor('a copy of one that is off becomes the host', async () => (await hosts(store)) === 'web-1 web-4');
  t.notMatch((await store.cli('status')).stdout, /is lost/);
  await other.start({ ready: false });
  t.equal(await other.ended(), 1, 'and the original refuses when it comes back');
  await taker.kill();
});

t.test('with the store away all goes on, and two of one id do not fight when it is back', async (t) => {
  const mesh = new Mesh(t, await freePort());
  const { store, other } = mesh;
  await store.start();
  await other.start();
  await waitFor('both', async () => (await statuses(other)) === 'web-1:passing web-2:passing');
  await waitFor('on disk', () => existsSync(join(other.folder, 'data', 'snapshot.json')));
  t.match(await other.json('/api/instances?service=db'), {
    instances: [{ host: 'web-1', dial: '127.0.0.1:5432', unreachable: null }, { host: 'web-2' }],
    picture: { store: 'connected' },
  });
  await store.kill('SIGKILL');
  const killedAtMs = Date.now();
  await waitFor('it is noticed', async () => {
    const { state, snapshot } = (await other.json<StatusDocument>('/api/status')).store;
    return state !== 'connected' && snapshot.ageMs > 0;
  });
  const askedAtMs = Date.now();
  const { ageMs } = (await other.json<StatusDocument>('/api/status')).store.snapshot;
  t.ok(askedAtMs - ageMs <= killedAtMs, 'what is known is of before, however late it was noticed');
  t.match((await other.cli('hosts')).stdout, /as of .* ago: the store is away/);
  t.match((await other.cli('instances')).stdout, /as of .* ago: the store is away/);
  t.equal(await statuses(other), 'web-1:passing web-2:passing');
  await other.kill('SIGTERM');
  await other.start();
  t.equal(await statuses(other), 'web-1:passing web-2:passing', 'a restart serves from the disk');
  t.match((await other.json<StatusDocument>('/api/status')).store.snapshot, { origin: 'disk' });
  t.match((await other.cli('status')).stdout, /etcd (away|connecting) .*snapshot .* old, from disk/s);
  const copy = mesh.copy(3);
  await copy.start();
  await store.start();
  const both = [other, copy];
  await waitFor(
    'one stands back',
    async () => (await Promise.all(both.map((agent) => told(agent, 'host.duplicate')))).some(Boolean),
    {
      timeoutMs: 30_000,
    },
  );
  const duplicates = await Promise.all(both.map((agent) => told(agent, 'host.duplicate')));
  t.equal(duplicates.filter(Boolean).length, 1);
  const [owner, loser] = duplicates[0] === undefined ? both : [...both].reverse();
  t.match(await loser?.cli('status'), { stdout: /runs with this host's id/ });
  await owner?.kill();
  await waitFor('the other takes over when it has gone', async () => {
    return loser !== undefined && (await told(loser, 'host.duplicate')) === undefined;
  });
});
