import { fork } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { Latest } from '../src/base/feed.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import type { Policy } from '../src/model/policy.ts';
import { makeTestAuthority } from '../test/support/certificates.ts';
import { freePort } from '../test/support/faults.ts';
import { intents, policyOf } from '../test/support/policies.ts';
import { waitFor } from '../test/support/wait.ts';
import { dial, instanceOf, outcome, serviceOf, startBackend } from './link-plane.fixture.ts';
import { type Place, planeOf, recordingLog } from './local-plane.fixture.ts';

const authority = await makeTestAuthority();

async function places(count: number): Promise<Place[]> {
  const made: Place[] = [];
  for (let index = 1; index <= count; index += 1) {
    const hostId = String(index).repeat(16);
    made.push({ hostId, name: `host-${index}`, address: `127.0.0.${index}`, tunnelPort: await freePort() });
  }
  return made;
}

/** Two hosts; the first reaches the second's instance, which `serve` is, through a tunnel. */
async function pair(t: Test, serve: (socket: Socket) => void) {
  const { port } = await startBackend(t, serve);
  const all = await places(2);
  const [near, far] = all as [Place, Place];
  const services: Service[] = [serviceOf([instanceOf({ name: 'a', port, hostId: far.hostId, host: far.name })])];
  const planes = await Promise.all(
    [near, far].map(async (self) => {
      const made = planeOf({ self, all, services, credentials: await authority.issue(self.hostId) });
      t.teardown(() => made.plane.close());
      await made.plane.start();
      return made;
    }),
  );
  const [here, there] = planes;
  if (here === undefined || there === undefined) throw new Error('no planes');
  await ready(here.plane, 1);
  return { here: here.plane, there: there.plane, port: here.plane.listenerOf('db')?.port ?? 0 };
}

function ready(plane: ReturnType<typeof planeOf>['plane'], count: number): Promise<unknown> {
  return waitFor('tunnels', async () => {
    const tunnels = await plane.tunnels();
    return tunnels.filter(({ state }) => state === 'ready').length === count;
  });
}

/** Bytes that look random, the same each time, without keeping them all. */
function* stream(bytes: number): Iterable<Buffer> {
  const pool = randomBytes(1_048_576 + 65_536);
  for (let left = bytes; left > 0; left -= 1_048_576) {
    const start = left % 65_536;
    yield pool.subarray(start, start + Math.min(left, 1_048_576));
  }
}

t.test('all arrives whole when the origin closes right behind its last byte', async (t) => {
  const bytes = 134_217_728;
  let sent = '';
  const { here, port } = await pair(t, (socket) => {
    socket.once('data', async () => {
      const hash = createHash('sha256');
      for (const chunk of stream(bytes)) {
        hash.update(chunk);
        if (!socket.write(chunk)) await once(socket, 'drain');
      }
      sent = hash.digest('hex');
      socket.end();
    });
  });
  for (let each = 0; each < 3; each += 1) {
    const socket = dial(t, port);
    const hash = createHash('sha256');
    let got = 0;
    socket.on('data', (chunk: Buffer) => {
      got += chunk.length;
      hash.update(chunk);
    });
    socket.write('GET');
    await once(socket, 'end');
    socket.end();
    t.equal(got, bytes);
    t.equal(hash.digest('hex'), sent);
  }
  await waitFor('quiet', async () => (await here.activeConnections()) === 0);
});

t.test('five hundred streams at a time, each with its own bytes and its half-close', async (t) => {
  const { here, there, port } = await pair(t, (socket) => void socket.pipe(socket));
  const one = async (): Promise<boolean> => {
    const question = randomBytes(1 + Math.floor(Math.random() * 60_000));
    const socket = dial(t, port);
    socket.end(question);
    const { data, how } = await outcome(socket);
    return how === 'end' && data.equals(question);
  };
  const answers = await Promise.all(Array.from({ length: 500 }, one));
  t.equal(answers.filter(Boolean).length, 500);
  await waitFor('quiet', async () => (await here.activeConnections()) + (await there.activeConnections()) === 0);
  const [link] = await here.links();
  t.match(link, { connections: { total: 500, failed: 0 } });
});

t.test('a peer that is killed under load costs what is in flight, and nothing new', async (t) => {
  const all = await places(3);
  const [self, ...others] = all as [Place, Place, Place];
  const ports = await Promise.all(others.map(() => freePort()));
  const services = [
    serviceOf(
      others.map(({ hostId, name, address }, index) =>
        instanceOf({ name: 'a', hostId, host: name, address, port: ports[index] ?? 0 }),
      ),
    ),
  ];
  const children = await Promise.all(
    others.map(async (place, index) => {
      const child = fork(fileURLToPath(new URL('local-plane.child.js', import.meta.url)));
      t.teardown(() => child.kill('SIGKILL'));
      const credentials = await authority.issue(place.hostId);
      child.send({ self: place, all, services, credentials, instancePort: ports[index] });
      await once(child, 'message');
      return child;
    }),
  );
  const { plane } = planeOf({ self, all, services, credentials: await authority.issue(self.hostId) });
  t.teardown(() => plane.close());
  await plane.start();
  await ready(plane, 2);
  const port = plane.listenerOf('db')?.port ?? 0;
  const ask = async (): Promise<string> => {
    const socket = dial(t, port);
    socket.write('?');
    const { data, how } = await outcome(socket);
    socket.destroy();
    return how === 'end' ? data.toString() : how;
  };
  const answers: { readonly answer: string; readonly startedMs: number }[] = [];
  let running = true;
  const loops = Array.from({ length: 16 }, async () => {
    while (running) {
      const startedMs = performance.now();
      answers.push({ answer: await ask(), startedMs });
      await sleep(1);
    }
  });
  await waitFor('both answer', () => new Set(answers.map(({ answer }) => answer)).size === 2);
  children[0]?.kill('SIGKILL');
  const killedMs = performance.now();
  await waitFor('it goes on', () => answers.filter(({ startedMs }) => startedMs > killedMs + 500).length > 100);
  running = false;
  await Promise.all(loops);
  const failed = answers.filter(({ answer }) => !answer.startsWith('host-'));
  t.ok(failed.length <= 16, `${failed.length} of ${answers.length} failed`);
  t.same(
    failed.filter(({ startedMs }) => startedMs > killedMs + 500),
    [],
  );
});

t.test('both hosts log each connection at its end, with the same trace id', async (t) => {
  const answering = await startBackend(t, (socket) => {
    socket.on('data', (chunk: Buffer) => {
      const word = chunk.toString();
      if (word === 'close') socket.end('bye');
      else if (word === 'reset') socket.resetAndDestroy();
      else socket.write('hello');
    });
    socket.on('end', () => socket.end());
  });
  const all = await places(2);
  const [near, far] = all as [Place, Place];
  const at = { hostId: far.hostId, host: far.name, port: answering.port };
  const services: Service[] = [serviceOf([instanceOf({ name: 'a', ...at })])];
  const start = async (self: Place) => {
    const policy = new Latest<Policy | undefined>(undefined);
    const { log, lines } = recordingLog('connection');
    const credentials = await authority.issue(self.hostId);
    const made = planeOf({ self, all, services, credentials, policy, log, accessLog: 1 });
    t.teardown(() => made.plane.close());
    await made.plane.start();
    return { ...made, policy, lines };
  };
  const [here, there] = await Promise.all([start(near), start(far)]);
  await ready(here.plane, 1);
  const port = here.plane.listenerOf('db')?.port ?? 0;
  /** What both sides have logged of the connection that `use` makes. */
  const logged = async (use: (socket: Socket) => unknown, sides = 2) => {
    here.lines.length = 0;
    there.lines.length = 0;
    const socket = dial(t, port);
    socket.on('error', () => undefined);
    await use(socket);
    socket.resume();
    await waitFor('the lines', () => here.lines.length + there.lines.length === sides);
    if (sides === 2) t.equal(here.lines[0]?.['trace.id'], there.lines[0]?.['trace.id']);
    return { mine: here.lines[0] ?? {}, theirs: there.lines[0] ?? {} };
  };

  const closed = await logged((socket) => {
    socket.write('hi');
    socket.once('data', () => socket.end());
  });
  t.match(closed.mine, {
    'trace.id': /^[0-9a-f]{32}$/,
    'link.side': 'consumer',
    'link.service': 'db',
    'link.instance': `${far.name}/a`,
    'link.consumer': 'host',
    'client.address': /^127\.0\.0\.1:\d+$/,
    'peer.host': far.hostId,
    'peer.name': far.name,
    'link.via': 'tunnel',
    'link.received_bytes': 2,
    'link.sent_bytes': 5,
    'link.duration_ms': Number,
    'link.retries': 0,
    'link.end': 'client closed',
    'link.reason': undefined,
  });
  t.match(closed.theirs, {
    ...closed.mine,
    'link.side': 'instance',
    'peer.host': near.hostId,
    'peer.name': near.name,
    'link.duration_ms': Number,
  });

  const cases: readonly [word: string, use: (socket: Socket) => unknown, end: string][] = [
    [
      'the instance ends',
      (socket) => socket.write('close') && socket.once('end', () => socket.end()),
      'instance closed',
    ],
    ['the instance resets', (socket) => socket.write('reset'), 'instance reset'],
    [
      'the client resets',
      (socket) => socket.write('hi') && socket.once('data', () => socket.resetAndDestroy()),
      'client reset',
    ],
  ];
  for (const [word, use, end] of cases) {
    const { mine, theirs } = await logged(use);
    t.same([mine['link.end'], theirs['link.end']], [end, end], word);
  }

  await new Promise((resolve) => answering.server.close(resolve));
  const refused = await logged(() => undefined, 5);
  t.match(refused.mine, { 'link.end': 'refused', 'link.retries': 3, 'link.reason': /ECONNREFUSED/ });
  t.match(refused.theirs, { 'link.end': 'refused', 'link.reason': /ECONNREFUSED/, 'link.instance': `${far.name}/a` });
  t.same(
    new Set(there.lines.map((line) => line['trace.id'])),
    new Set([refused.mine['trace.id']]),
    'one trace of all tries',
  );

  there.policy.set(policyOf({ intents: intents('deny host db') }));
  const denied = await logged(() => undefined);
  t.match(denied.mine, { 'link.end': 'denied', 'link.reason': /deny host db/, 'peer.name': far.name });
  t.match(denied.theirs, { 'link.end': 'denied', 'link.reason': /deny host db/, 'peer.name': near.name });
  const [link] = await here.plane.links();
  t.match(link?.denied, {
    total: 1,
    last: { by: 'host', host: far.name, consumer: 'host', message: /host-2 does not.*deny host db/ },
  });

  here.policy.set(policyOf({ intents: intents('deny host db') }));
  const early = await logged(() => undefined, 1);
  t.match(early.mine, { 'link.end': 'denied', 'link.instance': undefined, 'link.via': undefined });
});

t.test(
  'a running connection that the other host does not allow any more is cut, and its side is told why',
  async (t) => {
    const { port } = await startBackend(t, (socket) => void socket.pipe(socket));
    const all = await places(2);
    const [near, far] = all as [Place, Place];
    const services: Service[] = [serviceOf([instanceOf({ name: 'a', port, hostId: far.hostId, host: far.name })])];
    const policy = new Latest<Policy | undefined>(undefined);
    const here = planeOf({ self: near, all, services, credentials: await authority.issue(near.hostId) });
    const there = planeOf({ self: far, all, services, policy, credentials: await authority.issue(far.hostId) });
    for (const { plane } of [here, there]) {
      t.teardown(() => plane.close());
      await plane.start();
    }
    await ready(here.plane, 1);
    const socket = dial(t, here.plane.listenerOf('db')?.port ?? 0);
    socket.write('hi');
    await once(socket, 'data');
    policy.set(policyOf({ intents: intents('deny host db') }));
    t.equal((await outcome(socket)).how, 'ECONNRESET');
    const [link] = await here.plane.links();
    t.match(link, { denied: { total: 1, last: { by: 'host', host: far.name, message: /deny host db/ } } });
  },
);
