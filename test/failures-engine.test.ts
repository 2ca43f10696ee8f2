import { join } from 'node:path';
import tap from 'tap';
import type { ServiceDocument } from '../sidecar/admin/documents.ts';
import { Agent, type Teardown } from './support/agent.ts';
import { FakeEngine } from './support/fake-engine.ts';
import {
  ask,
  complaint,
  cpuMsOf,
  descriptorsOf,
  freePort,
  noComplaint,
  rssOf,
  sayingServer,
  statusOf,
} from './support/faults.ts';
import { waitFor } from './support/wait.ts';

/** A Docker Engine that misbehaves in ways that a real one does not on request: one line says so, nothing else suffers. */

interface Scene {
  readonly agent: Agent;
  readonly engine: FakeEngine;
  readonly link: number;
  readonly id: string;
}

/** A sidecar with one container of an engine that is well, and a link to a service that has nothing to do with it. */
async function scene(t: Teardown): Promise<Scene> {
  const { port } = await sayingServer(t, 'file');
  const container = await sayingServer(t, 'container');
  const link = await freePort();
  const agent = new Agent(t);
  const engine = new FakeEngine(t, join(agent.folder, 'docker.sock'));
  const id = 'c'.repeat(64);
  engine.containers.set(
    id,
    engine.container(id, 'db-1', { 'legate.service': 'db', 'legate.port': String(container.port) }),
  );
  agent.configure({
    docker: { socket: engine.socket, expose: 'labelled' },
    instances: [{ service: 'file', address: '127.0.0.1', port }],
    links: [{ service: 'file', listen: `127.0.0.1:${link}` }],
  });
  return { agent, engine, link, id };
}

const usable = (agent: Agent, name: string): Promise<boolean> =>
  agent.json<ServiceDocument>(`/api/services/${name}`).then(
    (found) => found.usable === 1,
    () => false,
  );

/** Sees that names and links of what does not come from Docker work, and that waiting costs no CPU time. */
async function undisturbed(t: Pick<typeof tap, 'equal' | 'ok'>, { agent, link }: Scene, what: string): Promise<void> {
  t.equal(await ask(link), 'file', `${what}: links work`);
  t.ok(await usable(agent, 'file'), `${what}: the catalog works`);
  t.equal((await agent.api('PUT', '/api/kv/a', what)).status, 200, `${what}: the store works`);
}

// They share nothing, and wait more than they work.
tap.jobs = 3;

tap.test('an engine that accepts and never answers, and one that comes back', { timeout: 60_000 }, async (t) => {
  const at = await scene(t);
  const { agent, engine } = at;
  engine.misbehave = () => true;
  await engine.listen();
  await agent.start({ ready: false });
  await waitFor('the admin door', async () => (await agent.api('GET', '/healthz')).status === 200);
  await undisturbed(t, at, 'hanging from the start');
  const said = await complaint(agent, /Docker/, 20_000);
  t.match(said, { message: /10 s/, hint: /.{10,}/ });
  t.notMatch(said.message, /\n/);
  engine.misbehave = () => false;
  await waitFor('the container', () => usable(agent, 'db'), { timeoutMs: 20_000 });
  await noComplaint(agent, /Docker/);

  const before = { cpu: cpuMsOf(agent.pid), at: performance.now(), descriptors: descriptorsOf(agent.pid) };
  engine.misbehave = () => true;
  await complaint(agent, /Docker/, 30_000);
  t.match((await statusOf(agent)).docker, { state: 'away' });
  t.ok(await usable(agent, 'db'), 'the last picture stays');
  await undisturbed(t, at, 'hanging later');
  const share = (cpuMsOf(agent.pid) - before.cpu) / (performance.now() - before.at);
  t.ok(share < 0.2, `no busy loop: ${(share * 100).toFixed(1)} % of a core`);
  t.ok(descriptorsOf(agent.pid) < before.descriptors + 12, 'connections to it are bounded');
  engine.misbehave = () => false;
  await noComplaint(agent, /Docker/, 30_000);
  t.equal(agent.log.filter((line) => /"level":"(error|warn)"/.test(line)).length, 2, 'each outage was logged once');
  t.equal(await agent.kill(), 0);
});

tap.test('engines that answer wrongly', { timeout: 60_000 }, async (t) => {
  const at = await scene(t);
  const { agent, engine } = at;
  await engine.listen();
  await agent.start();
  await waitFor('the container', () => usable(agent, 'db'));
  const answers: readonly (readonly [string, RegExp, FakeEngine['misbehave']])[] = [
    [
      'HTML',
      /is not that of a Docker Engine/,
      (_request, response) => void response.end('<html>nginx</html>') === undefined,
    ],
    [
      'no HTTP',
      /Docker/,
      (request) => {
        request.socket.write(`SSH-2.0-OpenSSH_9.2\r\n\u0007\u001b[2J`);
        request.socket.end();
        return true;
      },
    ],
    [
      'JSON of another form',
      /is not that of a Docker Engine/,
      (_request, response) => void response.end('[[[]]]') === undefined,
    ],
    [
      '500 with control characters',
      /answers 500/,
      (_request, response) => {
        response.writeHead(500).end(JSON.stringify({ message: 'bad\u001b[31m\nthing' }));
        return true;
      },
    ],
    [
      'an answer without end',
      /larger than|gave no|10 s|Docker/,
      (_request, response) => {
        const more = (): void => {
          while (!response.destroyed && response.write('x'.repeat(65_536)));
          if (!response.destroyed) response.once('drain', more);
        };
        more();
        return true;
      },
    ],
    ['an old API', /speaks API 1\.24, Legate needs 1\.29/, () => false],
  ];
  const rss = rssOf(agent.pid);
  for (const [what, pattern, misbehave] of answers) {
    engine.misbehave = misbehave;
    engine.api = what === 'an old API' ? { version: '1.24', minimum: '1.12' } : { version: '1.41', minimum: '1.12' };
    for (const stream of engine.streams) stream.destroy();
    const said = await complaint(agent, pattern);
    t.match(said.hint, /.{8,}/, `${what}: ${said.message}`);
    t.notMatch(said.message + said.hint, /[\u0000-\u001f\u007f]/, 'one printable line');
    t.ok(await usable(agent, 'db'), `${what}: the last picture stays`);
    await undisturbed(t, at, what);
    engine.misbehave = () => false;
    engine.api = { version: '1.41', minimum: '1.12' };
    await noComplaint(agent, /Docker/, 15_000);
  }
  t.ok(
    rssOf(agent.pid) < rss + 120 * 1024 * 1024,
    `memory is bounded: ${Math.round((rssOf(agent.pid) - rss) / 1024 / 1024)} MiB more`,
  );
  t.ok(agent.log.length < 120, `${agent.log.length} log lines`);
});

tap.test('events without end', { timeout: 60_000 }, async (t) => {
  const at = await scene(t);
  const { agent, engine, id } = at;
  await engine.listen();
  await agent.start();
  await waitFor('the container', () => usable(agent, 'db'));
  const seen = await waitFor('the stream', () => [...engine.streams][0]);
  const floods: readonly (readonly [string, (index: number) => string])[] = [
    ['endless line', () => 'x'.repeat(65_536)],
    ['garbage lines', () => `${'{"nonsense":[1,2'.repeat(8)}\n`.repeat(500)],
    [
      'unknown containers',
      (index) =>
        Array.from({ length: 200 }, (_, each) =>
          eventLine('start', (index * 200 + each).toString(16).padStart(64, '0'), index * 200 + each),
        ).join(''),
    ],
    [
      'one container',
      (index) => Array.from({ length: 200 }, (_, each) => eventLine('update', id, 1e9 + index * 200 + each)).join(''),
    ],
  ];
  const rss = rssOf(agent.pid);
  for (const [what, make] of floods) {
    const stream = [...engine.streams][0] ?? seen;
    let written = 0;
    let index = 0;
    const until = performance.now() + 2000;
    while (performance.now() < until && !stream.destroyed && written < 64 * 1024 * 1024) {
      const chunk = make(index++);
      written += chunk.length;
      if (!stream.write(chunk))
        await Promise.race([
          new Promise((resolve) => stream.once('drain', resolve)),
          new Promise((resolve) => stream.once('close', resolve)),
          new Promise((resolve) => setTimeout(resolve, 100)),
        ]);
    }
    await undisturbed(t, at, what);
    t.ok(written > 100_000, `${what}: ${Math.round(written / 1024)} KiB written`);
    stream.destroy();
    await waitFor('a new stream', () => [...engine.streams].some((each) => each !== stream), { timeoutMs: 20_000 });
    await waitFor(`${what}: the container is still there`, () => usable(agent, 'db'));
  }
  const more = (rssOf(agent.pid) - rss) / 1024 / 1024;
  t.ok(more < 150, `memory is bounded: ${Math.round(more)} MiB more`);
  await waitFor('Docker to be connected', async () => (await statusOf(agent)).docker.state === 'connected', {
    timeoutMs: 20_000,
  });
  engine.containers.delete(id);
  [...engine.streams].at(-1)?.write(eventLine('die', id, Date.now() * 1e6));
  await waitFor('the container to go', async () => !(await usable(agent, 'db')));
  t.equal((await statusOf(agent)).here.containers, 0);
  await waitFor('nothing to be left in status', async () => (await statusOf(agent)).todo.length === 0, {
    timeoutMs: 30_000,
  });
});

function eventLine(action: string, id: string, timeNano: number): string {
  return `${JSON.stringify({ Type: 'container', Action: action, Actor: { ID: id, Attributes: {} }, time: Math.floor(timeNano / 1e9), timeNano })}\n`;
}
