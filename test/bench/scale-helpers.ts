/**
 * The processes beside the sidecar of the scale benchmark, started with `fork`: what stands behind the real instances, and
 * a stand-in for a data-plane process. They end with their parent.
 */
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server } from 'node:net';
import process from 'node:process';
import { NameServer } from '../../dns/server.ts';
import { LinkPlane } from '../../proxy/link-plane.ts';
import { Latest } from '../../src/base/feed.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import { parseIpv4Range } from '../../src/model/address.ts';
import { parts, shownInstance } from '../support/records.ts';
import { otherHostOf, otherInstance, perService, serviceName, services } from './scale-mesh.ts';
import { loopback } from './tools.ts';

const listeners = 100;

/** Sent to the backends: from now on checks under /flap alternate between good and bad, or are good again. */
export interface Flapping {
  readonly flapping: boolean;
}

/** Listeners that answer whatever is asked as a small HTTP server would; a connection alone is good, too. */
async function backends(): Promise<number[]> {
  let flapping = false;
  const bad = new Set<string>();
  process.on('message', (message: Flapping) => {
    flapping = message.flapping;
  });
  const server = (): Server =>
    createServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', (request) => {
        const path = request.toString('latin1').split(' ')[1] ?? '/';
        const wasBad = bad.delete(path);
        if (flapping && !wasBad && path.startsWith('/flap')) bad.add(path);
        const status = bad.has(path) ? '503 Service Unavailable' : '200 OK';
        socket.end(`HTTP/1.1 ${status}\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n`);
      });
    });
  const ports: number[] = [];
  for (let index = 0; index < listeners; index += 1) {
    const opened = server().listen(0, loopback);
    await once(opened, 'listening');
    ports.push((opened.address() as AddressInfo).port);
  }
  return ports;
}

/** Snapshot, name server and link plane with all instances and nothing else, as a worker process would hold them. */
async function dataPlane(): Promise<number[]> {
  // Of loopback, where every address can be listened on without a route.
  const range = parseIpv4Range('127.114.0.0/16');
  if (range === undefined) throw new Error('no range');
  const snapshots = new Latest<Snapshot>(snapshotOfAll());
  const common = { ...parts(), snapshots };
  const names = new NameServer({
    ...common,
    confirmedAtMs: () => undefined,
    topology: new Latest({ addresses: new Set<string>(), bridges: [] }),
    self: { hostId: otherHostOf(0), hostName: 'web-2' },
    domain: 'mesh.internal',
    ttlMs: 5000,
    upstream: 'off',
    vipsOn: true,
    vipRange: range,
    clearUnderlay: true,
    listenerOf: () => undefined,
  });
  const links = new LinkPlane({
    ...common,
    self: { hostId: otherHostOf(0) },
    clearUnderlay: true,
    links: [],
    portMap: { set: () => Promise.resolve() },
  });
  await links.start();
  const listener = await names.listen({ address: loopback, port: 0 }, 'bench');
  return [listener.endpoint.port];
}

function snapshotOfAll(): Snapshot {
  const all: [string, Service][] = [];
  for (let index = 0; index < services; index += 1) {
    const name = serviceName(index);
    const instances = Array.from({ length: perService }, (_, one) => {
      const number = index * perService + one;
      const host = `web-${otherHostOf(number)}`;
      return shownInstance({ ...otherInstance(number), host, hostId: otherHostOf(number), revision: `r.${number}` });
    });
    const vip = `127.114.${1 + (index >> 8)}.${index & 255}`;
    const record = { name, port: 8080, protocol: 'tcp', balance: 'round-robin', vip } as const;
    all.push([name, { ...record, instances, usable: instances, faults: [] }]);
  }
  return { ...emptySnapshot, version: 1, origin: 'store', services: PersistentMap.from(all) };
}

const [, , role] = process.argv;
if (process.send !== undefined && role !== undefined) {
  process.on('disconnect', () => process.exit(0));
  if (role === 'backends') process.send(await backends());
  if (role === 'data-plane') process.send(await dataPlane());
}
