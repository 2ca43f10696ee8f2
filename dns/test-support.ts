import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import dnsPacket, { type DecodedPacket } from 'dns-packet';
import { type Clock, ManualClock, systemClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { Latest } from '../src/base/feed.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { emptySnapshot, type Service, type Snapshot } from '../src/catalog/snapshot.ts';
import { type Endpoint, parseIpv4Range } from '../src/model/address.ts';
import type { Caller, CallerTable } from '../src/model/caller.ts';
import type { Host } from '../src/model/host.ts';
import { type Instance, isUsableStatus } from '../src/model/instance.ts';
import type { Bridge, Topology } from '../src/model/topology.ts';
import { shownInstance } from '../test/support/records.ts';
import { CatalogStage } from './catalog-stage.ts';
import { PacketHandler } from './handler.ts';
import { NameServer, type NameServerOptions } from './server.ts';

/** A small mesh for tests and the benchmark: this host is `web-1`, another one `web-2`. */
export const ownHost = '00000000000000a1';
export const otherHost = '00000000000000b2';

export function range(text: string): NonNullable<ReturnType<typeof parseIpv4Range>> {
  const parsed = parseIpv4Range(text);
  if (parsed === undefined) throw new Error(`${text} is no range`);
  return parsed;
}

export const vipRange = range('240.77.0.0/16');

export function bridge(name: string, subnet: string, gateway: string): Bridge {
  return { interface: name, network: name, subnet: range(subnet), gateway, internal: false };
}

export const topology: Topology = {
  addresses: new Set(['10.77.0.1', '172.17.0.1', '172.18.0.1']),
  bridges: [bridge('docker0', '172.17.0.0/16', '172.17.0.1'), bridge('br-shop', '172.18.0.0/16', '172.18.0.1')],
};

export function instance(service: string, address: string, parts: Partial<Instance> = {}): Instance {
  const name = parts.name ?? `${address.replaceAll(/[.:]/g, '-')}-5432`;
  return shownInstance({ hostId: ownHost, service, address, ...parts, name });
}

export function service(name: string, instances: readonly Instance[], parts: Partial<Service> = {}): Service {
  const usable = instances.filter((candidate) => isUsableStatus(candidate.status) && !candidate.draining);
  return {
    name,
    port: 5432,
    protocol: 'tcp',
    balance: 'round-robin',
    vip: undefined,
    instances,
    usable,
    faults: [],
    ...parts,
  };
}

export function host(name: string, id: string, address: string): Host {
  return { id, name, address, version: '0.1.0', alive: true, revision: '1' };
}

export function snapshotOf(services: readonly Service[], parts: Partial<Snapshot> = {}): Snapshot {
  const addresses = new Map<string, string[]>();
  for (const { name, instances } of services) {
    for (const { address } of instances)
      addresses.set(address, [...new Set([...(addresses.get(address) ?? []), name])]);
  }
  return {
    ...emptySnapshot,
    version: 1,
    origin: 'store',
    hosts: PersistentMap.from(
      [host('web-1', ownHost, '10.77.0.1'), host('web-2', otherHost, '10.77.0.2')].map((h) => [h.id, h]),
    ),
    services: PersistentMap.from(services.map((entry) => [entry.name, entry])),
    vips: PersistentMap.from(services.flatMap(({ vip, name }) => (vip === undefined ? [] : [[vip, name] as const]))),
    addresses: PersistentMap.from(addresses),
    ...parts,
  };
}

export interface World {
  readonly server: NameServer;
  readonly snapshots: Latest<Snapshot>;
  readonly topology: Latest<Topology>;
  readonly conditions: Conditions;
  readonly metrics: Metrics;
  readonly listeners: Map<string, Endpoint>;
}

/** A name server over a hand-made snapshot. The caller closes it. */
export function world(snapshot: Snapshot, parts: Partial<NameServerOptions> = {}, clock: Clock = systemClock): World {
  const snapshots = new Latest(snapshot);
  const topologies = new Latest(topology);
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, clock, metrics);
  const listeners = new Map<string, Endpoint>();
  const server = new NameServer({
    snapshots,
    topology: topologies,
    self: { hostId: ownHost, hostName: 'web-1' },
    domain: 'mesh.internal',
    ttlMs: 5000,
    upstream: 'off',
    vipsOn: true,
    vipRange,
    clearUnderlay: false,
    listenerOf: (name) => listeners.get(name),
    clock,
    log: silentLog,
    metrics,
    conditions,
    ...parts,
  });
  return { server, snapshots, topology: topologies, conditions, metrics, listeners };
}

export interface Inside {
  readonly handler: PacketHandler;
  readonly snapshots: Latest<Snapshot>;
  readonly topology: Latest<Topology>;
  readonly vipsOn: Latest<boolean>;
  readonly callers: Latest<CallerTable>;
  readonly clock: ManualClock;
  readonly metrics: Metrics;
  readonly listeners: Map<string, Endpoint>;
}

/** Who has which address, told apart. */
export function callersAt(callers: Readonly<Record<string, Caller>>): CallerTable {
  return { off: undefined, bound: PersistentMap.from(Object.entries(callers)) };
}

/** The handler alone, without sockets and upstream. */
export function inside(
  snapshot: Snapshot,
  parts: {
    readonly clearUnderlay?: boolean;
    readonly vipsOn?: boolean;
    readonly callers?: CallerTable;
    readonly instanceAddressOf?: (id: string) => string | undefined;
  } = {},
): Inside {
  const snapshots = new Latest(snapshot);
  const topologies = new Latest(topology);
  const vipsOn = new Latest(parts.vipsOn ?? true);
  const callers = new Latest<CallerTable>(parts.callers ?? { off: 'a test', bound: PersistentMap.empty() });
  const clock = new ManualClock();
  const metrics = new Metrics();
  const listeners = new Map<string, Endpoint>();
  const listenerOf = (name: string): Endpoint | undefined => listeners.get(name);
  const catalog = new CatalogStage({
    snapshots,
    topology: topologies,
    hostId: ownHost,
    zones: [{ apex: ['mesh', 'internal'], serviceLabels: 'tag-first' }],
    ttlMs: 5000,
    vipsOn,
    vipRange,
    clearUnderlay: parts.clearUnderlay ?? false,
    instanceAddressOf: parts.instanceAddressOf,
    listenerOf,
  });
  const common = { snapshots, topology: topologies, callers, vipsOn, vipRange, listenerOf, clock, metrics };
  const handler = new PacketHandler({ stages: [catalog], recursion: false, apex: ['mesh', 'internal'], ...common });
  return { handler, snapshots, topology: topologies, vipsOn, callers, clock, metrics, listeners };
}

/** Sends one packet over UDP and resolves with the answer; rejects when none comes within two seconds. */
export function askUdp(server: Endpoint, packet: Uint8Array, fromPort?: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = createSocket('udp4');
    const timer = setTimeout(() => finish(new Error('no answer over UDP')), 2000);
    const finish = (result: Buffer | Error): void => {
      clearTimeout(timer);
      socket.close();
      if (result instanceof Error) reject(result);
      else resolve(result);
    };
    socket.once('message', finish);
    socket.once('error', finish);
    const send = (): void => socket.send(packet, server.port, server.address);
    if (fromPort === undefined) send();
    else socket.bind(fromPort, send);
  });
}

/** Sends packets over one TCP connection at once and resolves with as many answers. */
export function askTcp(server: Endpoint, packets: readonly Uint8Array[]): Promise<Buffer[]> {
  return new Promise((resolve, reject) => {
    const socket = connect(server.port, server.address);
    let received = Buffer.alloc(0);
    const answers: Buffer[] = [];
    socket.setTimeout(3000, () => socket.destroy(new Error('no answer over TCP')));
    socket.on('error', reject);
    socket.on('close', () => reject(new Error('closed without all answers')));
    socket.on('connect', () => {
      for (const packet of packets) {
        const length = Buffer.alloc(2);
        length.writeUInt16BE(packet.length);
        socket.write(Buffer.concat([length, packet]));
      }
    });
    socket.on('data', (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      while (received.length >= 2 && received.length >= 2 + received.readUInt16BE(0)) {
        answers.push(received.subarray(2, 2 + received.readUInt16BE(0)));
        received = received.subarray(2 + received.readUInt16BE(0));
      }
      if (answers.length < packets.length) return;
      resolve(answers);
      socket.destroy();
    });
  });
}

export interface Asked {
  readonly id?: number;
  readonly edns?: number;
  readonly rd?: boolean;
}

/** A query packet as dns-packet makes it. */
export function queryPacket(name: string, type: string, { id = 4711, edns, rd = true }: Asked = {}): Buffer {
  return dnsPacket.encode({
    type: 'query',
    id,
    flags: rd ? dnsPacket.RECURSION_DESIRED : 0,
    questions: [{ name, type: type as 'A' }],
    ...(edns === undefined
      ? {}
      : {
          additionals: [
            {
              type: 'OPT',
              name: '.',
              udpPayloadSize: edns,
              extendedRcode: 0,
              ednsVersion: 0,
              flags: 0,
              flag_do: false,
              options: [],
            },
          ],
        }),
  });
}

export function decode(packet: Buffer): DecodedPacket & { readonly rcode: string } {
  return dnsPacket.decode(packet) as DecodedPacket & { readonly rcode: string };
}
