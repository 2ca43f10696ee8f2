import { fork } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { Service } from '../src/catalog/snapshot.ts';
import { makeTestAuthority } from '../test/support/certificates.ts';
import { freePort } from '../test/support/faults.ts';
import { waitFor } from '../test/support/wait.ts';
import { dial, instanceOf, outcome, serviceOf, startBackend } from './link-plane.fixture.ts';
import { type Place, planeOf } from './local-plane.fixture.ts';

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
