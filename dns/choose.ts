import { isIP, isIPv4 } from 'node:net';
import { printable, truncate } from '../src/base/text.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import { isLoopback } from '../src/model/address.ts';
import type { Instance } from '../src/model/instance.ts';
import { isUsableStatus } from '../src/model/instance.ts';
import { type Asker, type Topology, undialable } from '../src/model/topology.ts';
import type { LeftOut } from './answer.ts';

/** For whom and from where instances are chosen. */
export interface View {
  readonly asker: Asker;
  readonly topology: Topology;
  readonly hostId: string;
  readonly clearUnderlay: boolean;
  /** Where this host serves an instance of another one; undefined where it does not. */
  readonly instanceAddressOf: (id: string) => string | undefined;
}

/** A usable instance with the address and port at which the asker can dial it. */
export interface Pick {
  readonly instance: Instance;
  readonly address: string;
  readonly port: number;
}

export interface Choice {
  readonly picks: readonly Pick[];
  readonly leftOut: readonly LeftOut[];
  /** Instances with the tag, and how many of these are usable, whether or not the asker can dial them. */
  readonly registered: number;
  readonly usable: number;
}

/**
 * Chooses the instances of a service that the asker can dial. With `withPort`, an address that is right only together
 * with its own port will do too: the published one of an instance on this host.
 */
export function choose(service: Service, tag: string | undefined, view: View, withPort: boolean): Choice {
  const usable = new Set(service.usable);
  const picks: Pick[] = [];
  const leftOut: LeftOut[] = [];
  let registered = 0;
  let usableCount = 0;
  for (const instance of service.instances) {
    if (tag !== undefined && !hasTag(instance, tag)) {
      leftOut.push({ id: instance.id, reason: `has not the tag ${truncate(printable(tag), 63)}` });
      continue;
    }
    registered += 1;
    if (!usable.has(instance)) {
      leftOut.push({ id: instance.id, reason: whyNotUsable(instance) });
      continue;
    }
    usableCount += 1;
    const found = dialled(instance, view, withPort);
    if (typeof found === 'string') leftOut.push({ id: instance.id, reason: found });
    else picks.push(found);
  }
  return { picks, leftOut, registered, usable: usableCount };
}

/** The usable instances with the tag, wherever they are. */
export function usableWith(service: Service, tag: string | undefined): readonly Instance[] {
  return tag === undefined ? service.usable : service.usable.filter((instance) => hasTag(instance, tag));
}

/** Tags are compared without regard to case; `tag` comes from a label, one character an octet. */
export function hasTag(instance: Instance, tag: string): boolean {
  const wanted = Buffer.from(tag, 'latin1').toString('utf8').toLowerCase();
  return instance.tags.some((candidate) => candidate.toLowerCase() === wanted);
}

/** Where the asker dials the instance, or why he cannot. */
function dialled(instance: Instance, view: View, withPort: boolean): Pick | string {
  const { address, port, published } = instance;
  const own = instance.hostId === view.hostId;
  const { clearUnderlay } = view;
  const dial = own || published === undefined ? { address, port } : published;
  const fault =
    addressFault(dial.address, own) ??
    undialable(view.asker, view.topology, { address: dial.address, reach: instance.reach, own, clearUnderlay });
  if (fault === undefined) return { instance, address: dial.address, port: dial.port };
  if (!own) return served(instance, view) ?? fault;
  if (!withPort || published === undefined) return fault;
  const place = { address: published.address, reach: 'mesh', own, clearUnderlay } as const;
  const stillAtFault = addressFault(published.address, own) ?? undialable(view.asker, view.topology, place);
  return stillAtFault === undefined ? { instance, address: published.address, port: published.port } : fault;
}

/** At the address that this host hands out for it, which the host itself and its containers reach. */
function served(instance: Instance, { asker, instanceAddressOf }: View): Pick | undefined {
  const address = asker.kind === 'elsewhere' ? undefined : instanceAddressOf(instance.id);
  return address === undefined ? undefined : { instance, address, port: instance.port };
}

/** Why the address can be in no answer: another host's loopback address would be the asker's own. */
function addressFault(address: string, own: boolean): string | undefined {
  if (isIP(address) === 0 || address.includes('%')) return `${truncate(printable(address), 64)} is not a plain address`;
  if (isUnspecified(address)) return `${address} stands for no single address`;
  return !own && isLoopback(address) ? 'it listens on loopback of its own host' : undefined;
}

export function isUnspecified(address: string): boolean {
  return isIPv4(address) ? address === '0.0.0.0' : /^[0:]+$/.test(address);
}

function whyNotUsable(instance: Instance): string {
  if (instance.draining) return 'is draining';
  if (isUsableStatus(instance.status)) return `speaks ${instance.protocol}, unlike the service`;
  const output = instance.output === '' ? '' : `: ${truncate(printable(instance.output), 80)}`;
  return `is ${instance.status}${output}`;
}
