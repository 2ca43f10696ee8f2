import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { TcpListener } from './listener.ts';

t.test('whoever has connected when a listener closes is still accepted', async (t) => {
  const accepted: Socket[] = [];
  const never = (error: Error): never => {
    throw error;
  };
  const listener = new TcpListener({
    endpoint: { address: '127.0.0.1', port: 0 },
    clock: new ManualClock(),
    random: Math.random,
    onConnection: (socket) => accepted.push(socket),
    onChange: () => undefined,
    onBindError: never,
    onAcceptError: never,
  });
  await listener.start();
  const port = listener.bound?.port ?? 0;
  const clients = Array.from({ length: 40 }, () => connect(port, '127.0.0.1').on('error', () => undefined));
  t.teardown(() => {
    for (const socket of [...clients, ...accepted]) socket.destroy();
  });
  // The kernel has connected them all before this process has looked for the first one.
  await new Promise<void>((resolve) => process.nextTick(resolve));
  t.equal(accepted.length, 0);
  await listener.close();
  t.equal(accepted.length, clients.length);
  const late = connect(port, '127.0.0.1');
  const [error] = (await once(late, 'error')) as [NodeJS.ErrnoException];
  t.equal(error.code, 'ECONNREFUSED', 'and nobody else');
});
