/**
 * The processes of the TCP and HTTP benchmarks other than their peers, started with `fork`: our relay, a bulk source and a bulk sink.
 * They end with their parent.
 */
import { createHash, type Hash } from 'node:crypto';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import process from 'node:process';
import { LinkPlane } from '../../proxy/link-plane.ts';
import { systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { Latest } from '../../src/base/feed.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Service } from '../../src/catalog/snapshot.ts';
import type { Protocol } from '../../src/model/instance.ts';
import { shownInstance } from '../support/records.ts';

export interface Transfer {
  readonly bytes: number;
  readonly seconds: number;
  /** Of the content, where that was asked for. */
  readonly sha256: string;
  /** Bytes that were not where they belong, of those sampled. */
  readonly wrong: number;
}

export const blockBytes = 1_048_576;

/** The content of a bulk transfer is this block, repeated. */
export function block(): Buffer {
  const bytes = Buffer.alloc(blockBytes);
  let state = 0x2545f491;
  for (let index = 0; index < blockBytes; index += 4) {
    state = Math.imul(state ^ (state >>> 15), 0x85ebca6b) + 0x9e3779b9;
    bytes.writeInt32LE(state | 0, index);
  }
  return bytes;
}

function serviceAt(name: string, port: number, protocol: Protocol = 'tcp'): Service {
  const instance = shownInstance({ name, service: name, address: '127.0.0.1', port, protocol });
  const services = { instances: [instance], usable: [instance], faults: [], vip: undefined };
  return { name, port, protocol, balance: 'round-robin', ...services };
}

/** Our relay before these services; says on which ports it listens. */
async function relay(...services: readonly Service[]): Promise<number[]> {
  const metrics = new Metrics();
  const plane = new LinkPlane({
    snapshots: new Latest({
      ...emptySnapshot,
      version: 1,
      services: PersistentMap.from(services.map((service) => [service.name, service] as const)),
    }),
    self: { hostId: '0000000000000001' },
    clearUnderlay: false,
    links: services.map(({ name }) => ({ service: name, listen: { address: '127.0.0.1', port: 0 } })),
    portMap: undefined,
    clock: systemClock,
    log: silentLog,
    metrics,
    conditions: new Conditions(silentLog, systemClock, metrics),
  });
  await plane.start();
  return services.map(({ name }) => plane.listenerOf(name)?.port ?? 0);
}

/** Reads a number of bytes as 8 octets, sends as many, and ends. */
async function source(): Promise<number[]> {
  const content = block();
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', (request) => send(socket, content, Number(request.readBigUInt64LE())));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return [(server.address() as AddressInfo).port];
}

function send(socket: Socket, content: Buffer, bytes: number): void {
  let left = bytes;
  const more = (): void => {
    while (left > 0) {
      const chunk = left >= blockBytes ? content : content.subarray(0, left);
      left -= chunk.length;
      if (!socket.write(chunk)) {
        socket.once('drain', more);
        return;
      }
    }
    socket.end();
  };
  more();
}

/** Asks for `bytes` at `port` and checks them: all by hash when told so, else by samples. */
function fetchBulk(port: number, bytes: number, hashed: boolean): Promise<Transfer> {
  const content = block();
  const hash: Hash | undefined = hashed ? createHash('sha256') : undefined;
  let received = 0;
  let wrong = 0;
  const check = (length: number, chunk: Uint8Array): boolean => {
    hash?.update(chunk.subarray(0, length));
    for (let index = 0; index < length; index += 997) {
      if (chunk[index] !== content[(received + index) % blockBytes]) wrong += 1;
    }
    received += length;
    return true;
  };
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const socket = connect({ host: '127.0.0.1', port, onread: { buffer: Buffer.alloc(blockBytes), callback: check } });
    const request = Buffer.alloc(8);
    request.writeBigUInt64LE(BigInt(bytes));
    socket.write(request);
    socket.on('error', reject);
    socket.on('close', () => {
      const seconds = (performance.now() - started) / 1000;
      resolve({ bytes: received, seconds, sha256: hash?.digest('hex') ?? '', wrong });
    });
  });
}

const [, , role, ...numbers] = process.argv;
if (process.send !== undefined && role !== undefined) {
  process.on('disconnect', () => process.exit(0));
  const [first = 0, second = 0] = numbers.map(Number);
  if (role === 'relay') process.send(await relay(serviceAt('http', first), serviceAt('bulk', second)));
  if (role === 'http-relay') {
    // Started with --expose-gc, it collects garbage when told so.
    process.on('message', () => {
      globalThis.gc?.();
      process.send?.([]);
    });
    process.send(await relay(serviceAt('http', first, 'http'), serviceAt('http2', second, 'http2')));
  }
  if (role === 'source') process.send(await source());
  if (role === 'sink') {
    process.on('message', (ask) => {
      const { port, bytes, hashed } = ask as { port: number; bytes: number; hashed: boolean };
      fetchBulk(port, bytes, hashed).then(
        (transfer) => process.send?.(transfer),
        (error: unknown) => process.send?.({ bytes: 0, seconds: 0, sha256: String(error), wrong: 1 }),
      );
    });
    process.send([]);
  }
}
