import {
  encodeAlive,
  encodeHost,
  encodeInstance,
  encodeMeta,
  encodeService,
  encodeVipClaim,
  formatVersion,
} from '../../src/catalog/codec.ts';
import type { HostRecord } from '../../src/model/host.ts';
import type { InstanceRecord } from '../../src/model/instance.ts';
import { batches } from '../../src/store/batches.ts';
import { keysOf } from '../../src/store/keys.ts';
import type { Store, Write } from '../../src/store/store.ts';
import { hostId, hostRecord, instanceRecord } from '../support/records.ts';

/** The mesh of this benchmark; `LEGATE_BENCH_HOSTS` plays fewer of them where the machine cannot do 200. */
export const hosts = Number(process.env.LEGATE_BENCH_HOSTS || 200);
export const perHost = 50;
export const services = 1000;
export const meshName = 'bench';
export const leaseTtlMs = 10_000;
const keys = keysOf(meshName);

export function idOf(host: number): string {
  return hostId(0x1000 + host);
}

export function hostOf(host: number): HostRecord {
  return hostRecord(idOf(host), `host-${host}`);
}

export function serviceOf(host: number, index: number): string {
  return `service-${(host * perHost + index) % services}`;
}

/** An instance as its host registers it; `round` is what changes. */
export function recordOf(host: number, index: number, round: number): InstanceRecord {
  return instanceRecord({
    name: `${hostId(host * perHost + index).slice(-12)}-8080`,
    service: serviceOf(host, index),
    address: `10.${80 + (host >> 8)}.${host & 255}.${index}`,
    port: 8080,
    reach: 'mesh',
    tags: ['bench', index % 2 === 0 ? 'blue' : 'green'],
    meta: { zone: `zone-${host % 3}`, version: '1.4.2' },
    weight: round,
    source: `docker:stack-${host}-web-${index}`,
    incarnation: '2026-11-21T08:00:00.123456789Z 0123456789ab',
  });
}

/** Writes all that these hosts would have written before. */
export async function fillStore(store: Store): Promise<void> {
  const writes: Write[] = [
    { kind: 'put', key: keys.meta, value: encodeMeta({ meshId: 'b'.repeat(32), format: formatVersion }) },
  ];
  for (let index = 0; index < services; index += 1) {
    const name = `service-${index}`;
    const vip = `240.118.${1 + (index >> 8)}.${index & 255}`;
    const record = { name, port: 8080, protocol: 'tcp', balance: 'round-robin', vip } as const;
    writes.push({ kind: 'put', key: keys.service(name), value: encodeService(record) });
    writes.push({ kind: 'put', key: keys.vip(vip), value: encodeVipClaim({ service: name, claimedAtMs: 1 }) });
  }
  for (let host = 0; host < hosts; host += 1) {
    writes.push({ kind: 'put', key: keys.host(idOf(host)), value: encodeHost(hostOf(host)) });
    // Without a lease, until the host takes it over: else every host would see each of the others come to life.
    writes.push({ kind: 'put', key: keys.aliveOf(idOf(host)), value: encodeAlive({ sinceMs: 1 }) });
    for (let index = 0; index < perHost; index += 1) {
      const record = recordOf(host, index, 1);
      writes.push({ kind: 'put', key: keys.instance(idOf(host), record.name), value: encodeInstance(record) });
    }
  }
  for (const batch of batches(writes, store.limits)) await store.txn([], batch);
}
