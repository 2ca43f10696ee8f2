import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type Server } from 'node:net';
import t from 'tap';
import type { InstanceDocument, LinkDocument, ServiceDocument, ServicesDocument } from '../sidecar/admin/documents.ts';
import { Agent, type Teardown } from './support/agent.ts';
import { ask, freePort, metricOf, statusOf } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** Each service is a run of its own, beside the others in one sidecar. */
const runs = 20;
const each = 5;
const names = Array.from({ length: runs }, (_, index) => `s-${index}`);
const addressesOf = (service: string): string[] =>
  Array.from({ length: each }, (_, index) => `127.112.${Number(service.slice(2))}.${index + 1}`);

async function portOf(t: Teardown, server: Server): Promise<number> {
  server.listen(0, '0.0.0.0');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
  });
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

interface Scene {
  readonly agent: Agent;
  readonly resolver: () => Promise<Resolver>;
  readonly linkPort: (service: string) => number;
  /** Whose checks fail from now on. */
  readonly fail: (addresses: Iterable<string>) => void;
}

/** All instances listen on addresses of their own, say which one that is, and go on serving when their check fails. */
async function scene(t: Teardown, vip: Readonly<Record<string, unknown>>): Promise<Scene> {
  const failing = new Set<string>();
  const health = createHttpServer((request, response) => {
    const good = !failing.has(request.socket.localAddress ?? '');
    response.writeHead(good ? 200 : 503).end(good ? 'well' : 'told to fail');
  });
  const serving = createServer((socket) => {
    socket.on('error', () => socket.destroy()).end(`${socket.localAddress}\n`);
  });
  const checked = await portOf(t, health);
  const port = await portOf(t, serving);
  const check = { kind: 'http', path: '/health', port: checked, interval: '300ms', timeout: '2s', rise: 1, fall: 2 };
  const links: { service: string; listen: string }[] = [];
  for (const service of names) links.push({ service, listen: `127.0.0.1:${await freePort()}` });
  const instances = names.flatMap((service) =>
    addressesOf(service).map((address, index) => ({
      ...{ service, address, port, name: `${service}-${index + 1}`, checks: [check] },
    })),
  );
  const agent = await new Agent(t, { instances, links, vip, log: { level: 'warn' } }).start();
  return {
    agent,
    async resolver() {
      const resolver = new Resolver({ timeout: 5000, tries: 2 });
      const { names: servers } = await statusOf(agent);
      resolver.setServers([servers.find(({ purpose }) => purpose === 'configured')?.listen ?? '']);
      return resolver;
    },
    linkPort: (service) => Number(links.find((link) => link.service === service)?.listen.split(':')[1]),
    fail(addresses) {
      failing.clear();
      for (const address of addresses) failing.add(address);
    },
  };
}

/** Waits until so many instances of every service are critical. */
async function critical({ agent }: Scene, count: number): Promise<ServicesDocument> {
  return waitFor(
    `${count} of each service to be critical`,
    async () => {
      const document = await agent.json<ServicesDocument>('/api/services');
      const shown = document.services.filter(
        ({ instances }) => instances.filter(({ status }) => status === 'critical').length === count,
      );
      return shown.length === runs && document;
    },
    { timeoutMs: 30_000, everyMs: 50 },
  );
}

/** Asks the name, the listener, and the virtual address where there is one; how many services gave exactly these. */
async function agreeing(scene: Scene, expected: (service: string) => string[], vips: boolean): Promise<number> {
  const resolver = await scene.resolver();
  const { services } = await scene.agent.json<ServicesDocument>('/api/services');
  let good = 0;
  for (const service of names) {
    const wanted = String(expected(service).sort());
    const seen = [String((await resolver.resolve4(`${service}.service.mesh.internal`)).sort())];
    const document = services.find(({ name }) => name === service);
    const doors: [number, string][] = [[scene.linkPort(service), '127.0.0.1']];
    if (vips) doors.push([document?.port ?? 0, document?.vip ?? '']);
    for (const [port, address] of doors) {
      const reached = new Set<string>();
      for (let count = 0; count < 2 * each; count += 1) reached.add(await ask(port, address));
      seen.push(String([...reached].sort()));
    }
    if (seen.every((text) => text === wanted)) good += 1;
    else process.stderr.write(`${service}: wanted ${wanted}, seen ${seen.join(' and ')}\n`);
  }
  return good;
}

/** Virtual addresses are asked as well where there can be some. */
const withoutVips = unless('nft');

t.test(
  'names and links use what turned critical at once, and leave out a single one',
  { timeout: 180_000 },
  async (t) => {
    const vips = withoutVips === false;
    if (!vips) t.comment(`without virtual addresses: ${withoutVips}`);
    const range = { mode: 'auto', range: '240.112.0.0/16', local_range: '240.113.0.0/16' };
    const s = await scene(t, vips ? range : { mode: 'off' });
    const { agent } = s;
    const all = addressesOf;
    const but = (service: string, ...left: number[]): string[] =>
      all(service).filter((_, index) => !left.includes(index));
    const failing = (...which: number[]): void =>
      s.fail(names.flatMap((service) => all(service).filter((_, index) => which.includes(index))));
    const conditions = async (): Promise<string[]> =>
      (await statusOf(agent)).todo.filter(({ id }) => id.startsWith('service.')).map(({ id }) => id);
    await waitFor('all to be passing', async () => {
      const { services } = await agent.json<ServicesDocument>('/api/services');
      return services.length === runs && services.every((one) => one.usable === each && (!vips || one.vip !== null));
    });
    if (vips) {
      await waitFor('all links to be open', async () => {
        const { links } = await agent.json<{ links: LinkDocument[] }>('/api/links');
        return links.length === 2 * runs && links.every(({ state }) => state === 'open');
      });
    }

    failing(2);
    await critical(s, 1);
    t.equal(await agreeing(s, (service) => but(service, 2), vips), runs, 'one of five is left out, everywhere');
    t.same(await conditions(), []);
    failing();
    await critical(s, 0);

    failing(0, 1, 2, 3, 4);
    const { services } = await critical(s, each);
    t.ok(services.every(({ brake, usable }) => brake !== null && usable === each));
    t.equal(await agreeing(s, all, vips), runs, 'all of them go on being used, everywhere');
    t.equal((await conditions()).length, runs);
    t.equal(await metricOf(agent, 'legate_catalog_braked_services_count'), runs);

    const [first = ''] = names;
    const told = (await statusOf(agent)).todo.find(({ id }) => id === `service.${first}.brake`);
    t.match(told?.message, /^s-0: \d of 5 instances turned critical within 30 s; all are still used, at most until 2/);
    const { brake } = await agent.json<ServiceDocument>(`/api/services/${first}`);
    t.equal(Date.parse(brake?.until ?? '') - Date.parse(brake?.since ?? ''), 600_000);
    t.match((await agent.cli('services')).stdout, /s-0 .*5 of 5.*5 critical: still used, for at most 9 min/);
    t.match((await agent.cli('instances', first)).stdout, /critical, still used +web-1\/s-0-1/);
    t.notMatch((await agent.cli('resolve', `${first}.service.mesh.internal`)).stdout, /left out/);

    t.equal(await agent.kill(), 0);
    await agent.start();
    await critical(s, each);
    t.equal(await agreeing(s, all, vips), runs, 'also after a restart of the sidecar');
    t.same((await agent.json<ServiceDocument>(`/api/services/${first}`)).brake, brake, 'which does not extend it');

    failing(0, 1);
    await critical(s, 2);
    t.equal(await agreeing(s, (service) => but(service, 0, 1), vips), runs, 'when most pass again the others are out');
    t.same(await conditions(), []);
    const { instances } = await agent.json<{ instances: InstanceDocument[] }>('/api/instances');
    t.notOk(instances.some(({ stillUsed }) => stillUsed));
    t.match(
      (await agent.cli('resolve', `${first}.service.mesh.internal`)).stdout,
      /left out: 2 instances[\s\S]*is critical: /,
    );
    t.equal(await metricOf(agent, 'legate_catalog_braked_services_count'), 0);
  },
);
