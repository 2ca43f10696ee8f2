import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import t, { type Test } from 'tap';
import { waitFor } from '../../test/support/wait.ts';
import { DirectWrites } from './direct-writes.ts';
import { SocketWriter } from './socket-writer.ts';

const direct = new DirectWrites();

/** Both ends of a connection; `near` is written to. */
async function pairOf(t: Test): Promise<{ readonly near: Socket; readonly far: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const far = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true });
  const [near] = (await once(server, 'connection')) as [Socket];
  server.close();
  t.teardown(() => {
    near.destroy();
    far.destroy();
  });
  return { near, far: far.pause() };
}

/** All that comes until the end. */
async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(socket.resume(), 'end');
  return Buffer.concat(chunks);
}

t.test('small writes are done at once, and are there in their order', async (t) => {
  const { near, far } = await pairOf(t);
  // This runtime has what is needed; another one would do without, more slowly.
  t.ok(direct.takes(near));
  const writer = new SocketWriter(near, direct, () => t.fail('nothing waits'));
  for (let count = 0; count < 10; count += 1) {
    writer.write(Buffer.from(`<${count}>`));
    t.equal(writer.pending, 0);
  }
  writer.cork();
  writer.write(Buffer.from('head '));
  writer.write(Buffer.from('body'));
  t.equal(near.bytesWritten, 30, 'nothing leaves before the last of them');
  writer.uncork();
  t.equal(writer.pending, 0);
  near.end(' and the end');
  t.equal((await readAll(far)).toString(), '<0><1><2><3><4><5><6><7><8><9>head body and the end');
});

t.test('what the other side does not read waits, whoever wrote it, and comes whole', async (t) => {
  const { near, far } = await pairOf(t);
  let drained = 0;
  const writer = new SocketWriter(near, direct, () => {
    drained += 1;
  });
  const sent: Buffer[] = [];
  const next = (): Buffer => {
    const chunk = randomBytes(300_000);
    sent.push(chunk);
    return chunk;
  };
  for (let round = 0; round < 8; round += 1) {
    writer.write(next());
    writer.cork();
    writer.write(next());
    writer.write(next());
    writer.uncork();
    near.write(next());
  }
  t.ok(writer.pending > 0);
  t.equal(drained, 0);
  const reading = readAll(far);
  await waitFor('the socket to drain', () => drained > 0);
  t.equal(writer.pending, 0);
  near.end();
  t.ok((await reading).equals(Buffer.concat(sent)));
});

t.test('it drains each time that it was full', async (t) => {
  const { near, far } = await pairOf(t);
  let drained = 0;
  const writer = new SocketWriter(near, direct, () => {
    drained += 1;
  });
  const chunk = Buffer.alloc(16 * 1_048_576);
  far.resume();
  for (let round = 1; round <= 3; round += 1) {
    writer.write(chunk);
    await waitFor('the socket to drain', () => drained === round);
    t.equal(writer.pending, 0);
  }
});

t.test('a socket that fails is destroyed, whether a write waits or comes later', async (t) => {
  const { near, far } = await pairOf(t);
  const writer = new SocketWriter(near, direct, () => t.fail('nothing was written'));
  const failed = once(near, 'error');
  writer.write(Buffer.alloc(16 * 1_048_576));
  t.ok(writer.pending > 0);
  far.resetAndDestroy();
  t.match(await failed, [{ code: /ECONNRESET|EPIPE/, syscall: /write|read/ }]);
  t.ok(near.destroyed);
  writer.write(Buffer.from('nobody reads this'));

  const other = await pairOf(t);
  const late = new SocketWriter(other.near, direct, () => undefined);
  other.near.on('error', () => undefined);
  other.far.resetAndDestroy();
  await waitFor('the reset to be noticed', () => {
    late.write(Buffer.from('x'));
    return other.near.destroyed;
  });
  t.match(other.near.errored, { code: /ECONNRESET|EPIPE/, syscall: 'write' });
});

t.test('a socket that is closed while a write waits has no error of it', async (t) => {
  const { near } = await pairOf(t);
  const writer = new SocketWriter(near, direct, () => t.fail('nothing was written'));
  near.on('error', (error) => t.fail(error.message));
  writer.write(Buffer.alloc(16 * 1_048_576));
  near.destroy();
  await once(near, 'close');
  await waitFor('the write to end', () => writer.pending === 0);
});

t.test('sockets with something of their own on top are written to as streams', async (t) => {
  const { near } = await pairOf(t);
  t.notOk(direct.takes(new TLSSocket(near, { isServer: true })));
});
