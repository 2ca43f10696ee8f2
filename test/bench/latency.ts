import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { queryPacket } from '../../dns/test-support.ts';
import type { Endpoint } from '../../src/model/address.ts';

/** An attempt without an answer by then counts as one that took as long. */
const timeoutMs = 1000;

/** Begins attempts at even times, whatever becomes of them, and keeps how long each took. */
async function paced(
  durationMs: number,
  everyMs: number,
  attempt: (index: number) => Promise<number>,
): Promise<number[]> {
  const taken: Promise<number>[] = [];
  const startedMs = performance.now();
  await new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      const due = Math.min(performance.now() - startedMs, durationMs) / everyMs;
      while (taken.length < due) taken.push(attempt(taken.length));
      if (performance.now() - startedMs < durationMs) return;
      clearInterval(timer);
      resolve();
    }, 1);
  });
  return Promise.all(taken);
}

/** Asks for these names in turn; milliseconds from each question to its answer. */
export async function nameLatencies(
  server: Endpoint,
  names: readonly string[],
  { durationMs, everyMs }: { readonly durationMs: number; readonly everyMs: number },
): Promise<number[]> {
  const socket = createSocket('udp4');
  socket.on('error', () => undefined);
  const packets = names.map((name) => queryPacket(name, 'A'));
  const waiting = new Map<number, () => void>();
  socket.on('message', (packet) => waiting.get(packet.readUInt16BE(0))?.());
  const ask = (index: number): Promise<number> =>
    new Promise((resolve) => {
      const id = index & 0xffff;
      const packet = Buffer.from(packets[index % packets.length] ?? Buffer.alloc(12));
      packet.writeUInt16BE(id, 0);
      const beganMs = performance.now();
      const done = (): void => {
        clearTimeout(timer);
        waiting.delete(id);
        resolve(performance.now() - beganMs);
      };
      const timer = setTimeout(done, timeoutMs);
      waiting.set(id, done);
      socket.send(packet, server.port, server.address);
    });
  const latencies = await paced(durationMs, everyMs, ask);
  socket.close();
  return latencies;
}

/** Connects, sends a request and waits for the first byte; milliseconds each. */
export function linkLatencies(
  endpoint: Endpoint,
  { durationMs, everyMs }: { readonly durationMs: number; readonly everyMs: number },
): Promise<number[]> {
  const attempt = (): Promise<number> =>
    new Promise((resolve) => {
      const beganMs = performance.now();
      const socket = connect(endpoint.port, endpoint.address);
      const done = (elapsedMs: number): void => {
        socket.destroy();
        resolve(elapsedMs);
      };
      socket.setTimeout(timeoutMs, () => done(timeoutMs));
      socket.on('error', () => done(timeoutMs));
      socket.once('connect', () => socket.write('GET / HTTP/1.0\r\n\r\n'));
      socket.once('data', () => done(performance.now() - beganMs));
    });
  return paced(durationMs, everyMs, attempt);
}
