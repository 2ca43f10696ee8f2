import { encodeAlive, encodeHost, encodeInstance, encodeService, encodeVipClaim } from '../../src/catalog/codec.ts';
import type { InstanceRecord } from '../../src/model/instance.ts';
import { openStore } from '../../src/store/backends.ts';
import { keysOf } from '../../src/store/keys.ts';
import type { Store, Write } from '../../src/store/store.ts';
import { hostId, hostRecord, instanceRecord, parts } from '../support/records.ts';

/** The mesh of the benchmark: 10,000 instances in 1,000 services. Those of the first 50 services are real. */
export const services = 1000;
export const perService = 10;
export const realServices = 50;
export const realInstances = realServices * perService;
export const allInstances = services * perService;
/** Hosts that have the others. */
const otherHosts = 19;
const batchSize = 100;

export function serviceName(index: number): string {
  return `service-${String(index).padStart(4, '0')}`;
}

/** One that no process stands behind: another host's. */
export function otherInstance(index: number): InstanceRecord {
  return instanceRecord({
    name: `${(0x1_0000_0000 + index).toString(16)}${hostId(index).slice(-3)}-8080`,
    service: serviceName(Math.floor(index / perService)),
    address: `10.${80 + (index % otherHosts)}.${(index >> 8) & 255}.${index & 255}`,
    port: 8080,
    reach: 'mesh',
    tags: ['bench', index % 2 === 0 ? 'blue' : 'green'],
    meta: { zone: `zone-${index % 3}`, version: '1.4.2' },
    source: `docker:stack-${Math.floor(index / perService)}-web-${index % perService}`,
    incarnation: `2026-11-21T08:00:${String(index % 60).padStart(2, '0')}.123456789Z ${hostId(index).slice(-12)}`,
  });
}

/** The id of the host that has it; the sidecar's own id is random. */
export function otherHostOf(index: number): string {
  return hostId(0xb0 + (index % otherHosts));
}

/** All that other hosts would have written: themselves, their instances, and their services with virtual addresses. */
export function* otherWrites(mesh: string): Generator<Write> {
  const keys = keysOf(mesh);
  for (let index = 0; index < otherHosts; index += 1) {
    const id = otherHostOf(index);
    yield { kind: 'put', key: keys.host(id), value: encodeHost(hostRecord(id, `web-${index + 2}`)) };
    yield { kind: 'put', key: keys.aliveOf(id), value: encodeAlive({ sinceMs: 1 }) };
  }
  for (let index = realServices; index < services; index += 1) {
    const name = serviceName(index);
    const vip = `240.114.${1 + (index >> 8)}.${index & 255}`;
    const record = { name, port: 8080, protocol: 'tcp', balance: 'round-robin', vip } as const;
    yield { kind: 'put', key: keys.service(name), value: encodeService(record) };
    yield { kind: 'put', key: keys.vip(vip), value: encodeVipClaim({ service: name, claimedAtMs: 1 }) };
  }
  for (let index = realInstances; index < allInstances; index += 1) {
    const record = otherInstance(index);
    yield { kind: 'put', key: keys.instance(otherHostOf(index), record.name), value: encodeInstance(record) };
  }
}

/** Writes all that to a store. */
export async function writeOthers(store: Store, mesh: string): Promise<void> {
  let batch: Write[] = [];
  for (const write of otherWrites(mesh)) {
    batch.push(write);
    if (batch.length < batchSize) continue;
    await store.txn([], batch);
    batch = [];
  }
  if (batch.length > 0) await store.txn([], batch);
}

/** Writes it to the embedded store of a sidecar that does not run. */
export async function fillDataDir(dataDir: string, mesh: string): Promise<void> {
  const store = await openStore({ kind: 'embedded', leaseTtlMs: 30_000, listen: undefined }, { ...parts(), dataDir });
  try {
    await writeOthers(store, mesh);
  } finally {
    await store.close();
  }
}
