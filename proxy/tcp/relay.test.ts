import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { waitFor } from '../../test/support/wait.ts';
import {
  ask,
  type Bed,
  blackHole,
  deadPort,
  dial,
  instanceOf,
  naming,
  outcome,
  serviceOf,
  startBackend,
  startBed,
} from '../link-plane.fixture.ts';
import { ReadBuffers } from './read-buffers.ts';

/** A bed before one backend. */
async function before(t: Test, serve: (socket: Socket) => void): Promise<Bed> {
  const { port } = await startBackend(t, serve);
  return startBed(t, { services: [serviceOf([instanceOf({ name: 'a', port })])] });
}

function quiet(bed: Bed): Promise<unknown> {
  return waitFor('no connection is left', () => bed.plane.activeConnections() === 0);
}

/** Writes `bytes` random bytes in random sizes, with back-pressure, and ends; resolves with their hash. */
async function pour(socket: Socket, bytes: number): Promise<string> {
  const hash = createHash('sha256');
  const pool = randomBytes(1_048_576);
  let left = bytes;
  while (left > 0) {
    const start = Math.floor(Math.random() * pool.length);
    const sizes = [1, 100, 5000, 70_000, 1_048_576];
    const size = Math.min(left, 1 + Math.floor(Math.random() * (sizes[left % sizes.length] ?? 1)));
    const chunk = Buffer.from(pool.subarray(start, start + size));
    left -= chunk.length;
    hash.update(chunk);
    if (!socket.write(chunk)) await new Promise((resolve) => socket.once('drain', resolve));
  }
  socket.end();
  return hash.digest('hex');
}

function drink(socket: Socket): Promise<{ hash: string; bytes: number }> {
  const hash = createHash('sha256');
  let bytes = 0;
  return new Promise((resolve, reject) => {
    socket.on('data', (chunk: Buffer) => {
      hash.update(chunk);
      bytes += chunk.length;
    });
    socket.on('end', () => resolve({ hash: hash.digest('hex'), bytes }));
    socket.on('error', reject);
  });
}

t.test('64 MiB both ways at once arrive unchanged', async (t) => {
  const bytes = 64 * 1_048_576;
  let poured: Promise<string> | undefined;
  let drunk: Promise<{ hash: string; bytes: number }> | undefined;
  const bed = await before(t, (socket) => {
    drunk = drink(socket);
    poured = pour(socket, bytes);
  });
  const client = dial(t, bed.port);
  const back = drink(client);
  const sent = await pour(client, bytes);
  t.strictSame(await back, { hash: await poured, bytes });
  t.strictSame(await drunk, { hash: sent, bytes });
  await quiet(bed);
  const [link] = bed.plane.links();
  t.strictSame(link?.bytes, { received: bytes, sent: bytes });
  t.equal(await bed.metric('legate_link_received_bytes_total{service="db"}'), bytes);
  t.equal(await bed.metric('legate_link_sent_bytes_total{service="db"}'), bytes);
});

t.test('each direction ends by itself', async (t) => {
  await t.test('the consumer first', async (t) => {
    const bed = await before(t, (socket) => {
      const chunks: Buffer[] = [];
      socket.on('data', (chunk: Buffer) => chunks.push(chunk));
      socket.on('end', () => socket.end(`got ${Buffer.concat(chunks)}`));
    });
    const client = dial(t, bed.port);
    client.end('question');
    const { data, how } = await outcome(client);
    t.equal(`${data} ${how}`, 'got question end');
    await quiet(bed);
  });
  await t.test('the instance first', async (t) => {
    let heard: Promise<{ data: Buffer }> | undefined;
    const bed = await before(t, (socket) => {
      heard = outcome(socket);
      socket.end('greeting');
    });
    const client = dial(t, bed.port);
    const { data } = await outcome(client);
    t.equal(data.toString(), 'greeting');
    client.end('said after the end');
    t.equal((await heard)?.data.toString(), 'said after the end');
    await quiet(bed);
  });
});

t.test('the kernel watches the ends of connections that last', { skip: process.platform !== 'linux' }, async (t) => {
  const clock = new ManualClock();
  const { port } = await startBackend(t, (socket) => socket.pipe(socket));
  const bed = await startBed(t, { clock, services: [serviceOf([instanceOf({ name: 'a', port })])] });
  const client = dial(t, bed.port);
  client.write('x');
  await once(client, 'data');
  // proc_net_tcp(5): local address, remote address, state (01 is established), queues, timer (02 is keep-alive).
  const hex = (value: number): string => value.toString(16).toUpperCase().padStart(4, '0');
  const watched = (): number =>
    readFileSync('/proc/net/tcp', 'utf8').match(
      new RegExp(`: \\w+:(${hex(bed.port)} \\w+:\\w+|\\w+ \\w+:${hex(port)}) 01 \\w+:\\w+ 02:`, 'g'),
    )?.length ?? 0;
  t.equal(watched(), 0, 'short ones are spared the calls');
  await clock.advance(10_000);
  await waitFor('both sockets', () => watched() === 2);
});

t.test('a reset stays a reset', async (t) => {
  await t.test("the consumer's", async (t) => {
    let heard: Promise<{ how: string }> | undefined;
    const bed = await before(t, (socket) => {
      heard = outcome(socket);
      socket.write('x');
    });
    const client = dial(t, bed.port);
    await new Promise((resolve) => client.once('data', resolve));
    client.resetAndDestroy();
    t.equal((await heard)?.how, 'ECONNRESET');
    await quiet(bed);
  });
  await t.test("the instance's", async (t) => {
    const bed = await before(t, (socket) => {
      socket.once('data', () => socket.resetAndDestroy());
    });
    const client = dial(t, bed.port);
    client.write('x');
    t.equal((await outcome(client)).how, 'ECONNRESET');
    await quiet(bed);
  });
});

t.test('an answer arrives whole although the instance then resets what is still sent to it', async (t) => {
  const answer = randomBytes(300_000);
  let instance: Socket | undefined;
  const bed = await before(t, (socket) => {
    instance = socket;
    socket.end(answer);
  });
  const client = dial(t, bed.port);
  client.write('x');
  const { data, how } = await outcome(client);
  t.ok(data.equals(answer), `${data.length} of ${answer.length} bytes`);
  t.equal(how, 'end');
  instance?.resetAndDestroy();
  await new Promise((resolve) => client.write(randomBytes(8_000_000), resolve));
  client.end();
  await once(client, 'close');
  await quiet(bed);
});

t.test('a cut answer never looks like a whole one, also while a write waits', async (t) => {
  for (let round = 0; round < 5; round += 1) {
    let instance: Socket | undefined;
    const bed = await before(t, (socket) => {
      instance = socket;
    });
    const received = (): number => bed.plane.links()[0]?.bytes.received ?? 0;
    const client = dial(t, bed.port);
    let written = 0;
    // Until the relay waits for the instance, which reads nothing.
    while (written - received() < 500_000) {
      await new Promise((resolve) => client.write(Buffer.alloc(65_536), resolve));
      written += 65_536;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    // Closing with unread input resets the connection, and throws away what had not left yet.
    instance?.end(randomBytes(30_000_000));
    instance?.destroy();
    const { data, how } = await outcome(client);
    t.equal(how, 'ECONNRESET', `after ${data.length} bytes`);
    await quiet(bed);
  }
});

t.test("a consumer's reset while it is being written to does not end its request cleanly", async (t) => {
  for (let round = 0; round < 5; round += 1) {
    let heard: Promise<{ how: string }> | undefined;
    const bed = await before(t, (socket) => {
      heard = outcome(socket);
      socket.write(randomBytes(30_000_000));
    });
    const client = dial(t, bed.port);
    client.write('begin');
    await once(client, 'data');
    client.pause();
    await waitFor('the relay waits for the consumer', () => (bed.plane.links()[0]?.bytes.sent ?? 0) > 1_000_000);
    client.resetAndDestroy();
    const { how } = (await heard) ?? {};
    t.match(how, /ECONNRESET|EPIPE/);
    await quiet(bed);
  }
});

t.test('a reader that stops stops the writer, and memory stays bounded', async (t) => {
  const bytes = 256 * 1_048_576;
  let poured: Promise<string> | undefined;
  const bed = await before(t, (socket) => {
    poured = pour(socket, bytes);
  });
  const client = dial(t, bed.port);
  client.pause();
  let seen = -1;
  await waitFor(
    'the relay has stopped reading',
    () => {
      const sent = bed.plane.links()[0]?.bytes.sent ?? 0;
      const still = sent > 0 && sent === seen;
      seen = sent;
      return still;
    },
    { everyMs: 200 },
  );
  t.ok(seen < 32 * 1_048_576, `${seen} bytes were taken, most of them by the kernel's buffers`);
  const back = drink(client);
  client.resume();
  t.strictSame(await back, { hash: await poured, bytes });
  client.end();
  await quiet(bed);
});

t.test('connecting fails over before the consumer notices', async (t) => {
  const good = await startBackend(t, naming('good'));
  const goodOne = instanceOf({ name: 'z-good', port: good.port });

  await t.test('from one that refuses', async (t) => {
    const bed = await startBed(t, {
      services: [serviceOf([instanceOf({ name: 'a', port: await deadPort() }), goodOne])],
    });
    for (let round = 0; round < 6; round += 1) t.equal(await ask(t, bed.port), 'good');
    const [link] = bed.plane.links();
    t.match(link?.lastError?.message, /here\/a at 127.0.0.1:\d+: .*ECONNREFUSED/);
    t.match(link?.connections, { total: 6, failed: 0, retried: 3 });
    t.equal(
      await bed.metric('legate_link_ejections_total{service="db",reason="failures"}'),
      1,
      'and it is then left out',
    );
  });

  await t.test('from one that does not answer, after a second', async (t) => {
    const clock = new ManualClock();
    const silent = await blackHole(t);
    const bed = await startBed(t, { clock, services: [serviceOf([instanceOf({ name: 'a', port: silent }), goodOne])] });
    const answer = ask(t, bed.port);
    await waitFor('it is being dialled', () => bed.plane.links()[0]?.backends[0]?.active === 1);
    await clock.advance(999);
    t.equal(bed.plane.links()[0]?.connections.retried, 0);
    await clock.advance(1);
    t.equal(await answer, 'good');
  });

  await t.test('from one that resets before the first byte', async (t) => {
    const rude = await startBackend(t, (socket) => socket.resetAndDestroy());
    const bed = await startBed(t, { services: [serviceOf([instanceOf({ name: 'a', port: rude.port }), goodOne])] });
    for (let round = 0; round < 4; round += 1) t.equal(await ask(t, bed.port), 'good');
  });

  await t.test('but not twice to the same, and not for ever', async (t) => {
    const clock = new ManualClock();
    const [first, second] = [await blackHole(t), await blackHole(t)];
    const instances = [instanceOf({ name: 'a', port: first }), instanceOf({ name: 'b', port: second })];
    const bed = await startBed(t, { clock, services: [serviceOf(instances)] });
    const answer = ask(t, bed.port);
    await waitFor('the first is being dialled', () => bed.plane.activeConnections({ instance: 'here/a' }) === 1);
    await clock.advance(1000);
    t.equal(bed.plane.activeConnections({ instance: 'here/b' }), 1);
    await clock.advance(3999);
    t.equal(bed.plane.activeConnections(), 1);
    await clock.advance(1);
    t.equal(await answer, 'ECONNRESET');
    t.match(bed.plane.links()[0]?.connections, { failed: 1, retried: 1 });
  });

  await t.test('a single one that refuses is asked again for a moment', async (t) => {
    const port = await deadPort();
    const bed = await startBed(t, { services: [serviceOf([instanceOf({ name: 'a', port })])] });
    const answer = ask(t, bed.port);
    await waitFor('it was refused', () => bed.plane.links()[0]?.connections.retried === 1, { everyMs: 5 });
    await startBackend(t, naming('restarted'), port);
    t.equal(await answer, 'restarted');
    t.equal(await ask(t, bed.port), 'restarted');
  });

  await t.test('and with nobody there the consumer is reset', async (t) => {
    const bed = await startBed(t, { services: [] });
    t.equal(await ask(t, bed.port), 'ECONNRESET');
    t.equal(bed.plane.links()[0]?.state, 'refusing');
  });
});

t.test('2,000 quick connections and resets leak no descriptor', async (t) => {
  const bed = await before(t, naming('hello'));
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  await ask(t, bed.port);
  await quiet(bed);
  const start = descriptors();
  for (let round = 0; round < 40; round += 1) {
    const answers = await Promise.all(Array.from({ length: 50 }, () => ask(t, bed.port)));
    if (answers.some((answer) => answer !== 'hello')) t.fail(`round ${round}: ${answers.join(' ')}`);
  }
  await quiet(bed);
  await waitFor('the descriptors are back', () => descriptors() <= start);
  t.equal(bed.plane.links()[0]?.connections.total, 2001);
});

t.test('both ends dying at random moments leave nothing behind', async (t) => {
  const deaths = [
    (socket: Socket) => socket.resetAndDestroy(),
    (socket: Socket) => socket.destroy(),
    (socket: Socket) => socket.end(),
    (socket: Socket) => socket.end(randomBytes(200_000)),
    (socket: Socket) => socket.pause(),
  ];
  const live = (socket: Socket): void => {
    socket.on('error', () => undefined);
    socket.on('end', () => socket.end());
    const act = (): void => {
      if (socket.destroyed) return;
      const dice = Math.random();
      if (dice < 0.3) deaths[Math.floor(Math.random() * deaths.length)]?.(socket);
      else if (!socket.writableEnded) socket.write(randomBytes(1 + Math.floor(dice * 100_000)));
      setTimeout(act, Math.random() * 10);
    };
    socket.resume();
    setTimeout(act, Math.random() * 10);
    setTimeout(() => socket.destroy(), 300);
  };
  const bed = await before(t, live);
  for (let round = 0; round < 6; round += 1) {
    const sockets = Array.from({ length: 50 }, () => dial(t, bed.port));
    for (const socket of sockets) live(socket);
    await Promise.all(sockets.map((socket) => new Promise((resolve) => socket.once('close', resolve))));
  }
  await quiet(bed);
  const [link] = bed.plane.links();
  t.equal(link?.connections.total, 300);
  t.equal(link?.backends[0]?.active, 0);
});

t.test('read buffers grow and shrink with the stream, within their bounds', async (t) => {
  const buffers = new ReadBuffers();
  const [small = 0, , , largest = 0] = ReadBuffers.sizes;
  let buffer = buffers.smallest();
  const seen: number[] = [];
  for (let read = 0; read < 4; read += 1) {
    seen.push(buffer.length);
    buffer = buffers.next(buffer, buffer.length);
  }
  t.strictSame(seen, ReadBuffers.sizes);
  t.equal(buffer.length, largest);
  buffer = buffers.next(buffer, 33);
  t.equal(buffer.length, small);
  const held = Array.from({ length: 200 }, () =>
    buffers.next(buffers.next(buffers.next(buffers.smallest(), 4096), 32_768), 262_144),
  );
  t.ok(held.some((one) => one.length === largest));
  t.ok(held.some((one) => one.length < largest));
  t.ok(buffers.largeBytes <= ReadBuffers.maxLargeBytes);
  for (const one of held) buffers.release(one);
  t.ok(buffers.largeBytes <= ReadBuffers.maxSpareLargeBytes);
});
