import { isIPv4 } from 'node:net';
import { LegateError } from '../../src/base/errors.ts';
import { type Ipv4Range, inRange, isPort } from '../../src/model/address.ts';
import type { PortMapping, Slot } from './port-map.ts';
import { portKey } from './vip-rules.ts';

/** Holds what was mapped before; each of its mappings goes to whoever wants that port. */
export const passingOwner = 'former control';

/** Who wants which mapping. Each owner's mappings are replaced as a whole; a change is taken completely or not at all. */
export class VipMappings {
  readonly #ranges: readonly Ipv4Range[];
  readonly #slots: number;
  readonly #owners = new Map<string, ReadonlyMap<string, number>>();
  readonly #ownerOf = new Map<string, string>();
  readonly #ports = new Map<string, number>();

  /** The ranges may grow. `slots`: how many processes may map the same ports. */
  constructor(ranges: readonly Ipv4Range[], slots = 0) {
    this.#ranges = ranges;
    this.#slots = slots;
  }

  /** Private ports by port key, of all owners. */
  get ports(): ReadonlyMap<string, number> {
    return this.#ports;
  }

  /**
   * Replaces the mappings of `owner` and gives the keys whose private port differs now. Throws E_INVALID for a mapping
   * that cannot be, E_CONFLICT for one that another owner has; nothing has changed then.
   */
  replace(owner: string, mappings: readonly PortMapping[], slot?: Slot): string[] {
    const next = new Map<string, number>();
    for (const mapping of mappings) {
      const key = this.#checkedKey(owner, mapping, slot);
      if (next.has(key)) throw new LegateError('E_INVALID', `${describe(mapping)} is mapped twice`);
      next.set(key, mapping.privatePort);
    }
    const changed: string[] = [];
    for (const key of this.#owners.get(owner)?.keys() ?? []) {
      if (next.has(key) || this.#ownerOf.get(key) !== owner) continue;
      this.#ports.delete(key);
      this.#ownerOf.delete(key);
      changed.push(key);
    }
    for (const [key, privatePort] of next) {
      this.#ownerOf.set(key, owner);
      if (this.#ports.get(key) === privatePort) continue;
      this.#ports.set(key, privatePort);
      changed.push(key);
    }
    if (next.size === 0) this.#owners.delete(owner);
    else this.#owners.set(owner, next);
    return changed;
  }

  #checkedKey(owner: string, mapping: PortMapping, slot: Slot | undefined): string {
    const { transport, address, port, privatePort } = mapping;
    if (!isIPv4(address) || !this.#ranges.some((range) => inRange(range, address))) {
      throw new LegateError(
        'E_INVALID',
        `${describe(mapping)} is not in ${this.#ranges.map(({ text }) => text).join(' or ')}`,
      );
    }
    if (!isPort(port) || !isPort(privatePort)) {
      throw new LegateError('E_INVALID', `${describe(mapping)} to ${privatePort}: a port is 1 to 65535`);
    }
    // The kernel tells what came through the map by its changed destination; the same port would change nothing.
    if (port === privatePort) {
      throw new LegateError('E_INVALID', `${describe(mapping)} needs a private port of another number`, {
        hint: 'listen on another free port',
      });
    }
    if (slot !== undefined && (transport !== 'tcp' || (slot !== 'former' && slot >= this.#slots))) {
      throw new LegateError('E_INVALID', `${describe(mapping)} cannot be in slot ${slot} of ${this.#slots}`);
    }
    const key = portKey(transport, address, port, slot);
    const holder = this.#ownerOf.get(key);
    if (holder !== undefined && holder !== owner && holder !== passingOwner) {
      throw new LegateError('E_CONFLICT', `${describe(mapping)} is mapped by ${holder} already, ${owner} wants it too`);
    }
    return key;
  }
}

function describe({ transport, address, port }: PortMapping): string {
  return `${address}:${port}/${transport}`;
}
