/** A host with a data plane and an instance of its own, in a process that a test kills. */
import { createServer } from 'node:net';
import process from 'node:process';
import { type PlaneOptions, planeOf } from './local-plane.fixture.ts';

process.on('disconnect', () => process.exit(0));
process.once('message', (message) => void begin(message as PlaneOptions & { readonly instancePort: number }));

async function begin({ instancePort, ...options }: PlaneOptions & { readonly instancePort: number }): Promise<void> {
  const { name, address } = options.self;
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => socket.end(name));
  });
  await new Promise<void>((resolve) => server.listen(instancePort, address, resolve));
  await planeOf(options).plane.start();
  process.send?.('ready');
}
