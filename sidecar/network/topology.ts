import { isIPv4 } from 'node:net';
import { LineWatcher } from '../../proxy/kernel/line-watcher.ts';
import type { Clock } from '../../src/base/clock.ts';
import { describeError } from '../../src/base/errors.ts';
import { Latest, type Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import { inRange, parseIpv4Range } from '../../src/model/address.ts';
import { type Bridge, emptyTopology, type Topology } from '../../src/model/topology.ts';
import type { DockerNetwork } from '../docker/network.ts';
import { type HostInterface, rangeAround, readInterfaces } from './interfaces.ts';

const everyMs = 5000;
/** Docker makes a bridge in several steps; they are read together. */
const settleMs = 50;

/** Only what Docker itself names so: another bridge (`br-lan`) may have the outside world behind it. */
const dockerBridgeName = /^(docker0|br-[0-9a-f]{12})$/;

export interface TopologyWatcherOptions {
  /** Docker's networks; empty while the engine has not been reached. Without it, bridges are found by their names. */
  readonly dockerNetworks?: Observable<readonly DockerNetwork[]>;
  readonly clock: Clock;
  readonly log: Log;
  /** Reads the interfaces; for tests. */
  readonly interfaces?: () => Promise<readonly HostInterface[]>;
}

/** Keeps the picture of this host's addresses and container bridges: read at each change that the kernel reports. */
export class TopologyWatcher {
  readonly #dockerNetworks: Observable<readonly DockerNetwork[]> | undefined;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #interfaces: () => Promise<readonly HostInterface[]>;
  readonly #topology = new Latest<Topology>(emptyTopology);
  #reading: Promise<Topology> | undefined;
  #again = false;

  constructor(options: TopologyWatcherOptions) {
    this.#dockerNetworks = options.dockerNetworks;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#interfaces = options.interfaces ?? readInterfaces;
  }

  get topology(): Observable<Topology> {
    return this.#topology;
  }

  /** Reads everything now; resolves with what `topology` then holds. Calls during a read share the next one. */
  refresh(): Promise<Topology> {
    if (this.#reading !== undefined) {
      this.#again = true;
      return this.#reading;
    }
    this.#reading = this.#read().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }

  /** Follows changes until `signal` is aborted; then resolves. */
  async run(signal: AbortSignal): Promise<void> {
    let wake: () => void = () => undefined;
    let cancelSettle: (() => void) | undefined;
    const changed = (): void => {
      cancelSettle ??= this.#clock.after(settleMs, () => {
        cancelSettle = undefined;
        wake();
      });
    };
    const watcher = new LineWatcher({
      command: ['ip', '-o', 'monitor', 'link', 'address'],
      clock: this.#clock,
      onLine: changed,
      onGap: changed,
    });
    const unsubscribe = this.#dockerNetworks?.subscribe(changed);
    const onAbort = (): void => wake();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      while (!signal.aborted) {
        const woken = new Promise<void>((resolve) => {
          wake = resolve;
        });
        await this.refresh();
        if (signal.aborted) break;
        const cancelTick = this.#clock.after(everyMs, wake);
        await woken;
        cancelTick();
      }
    } finally {
      cancelSettle?.();
      unsubscribe?.();
      watcher.close();
      signal.removeEventListener('abort', onAbort);
    }
  }

  async #read(): Promise<Topology> {
    do {
      this.#again = false;
      try {
        const next = topologyOf(await this.#interfaces(), this.#dockerNetworks?.value ?? []);
        if (!sameTopology(next, this.#topology.value)) {
          this.#topology.set(next);
          this.#log.debug('the host changed', {
            'network.addresses': next.addresses.size,
            'network.bridges': next.bridges.map((bridge) => bridge.interface).join(' '),
          });
        }
      } catch (error) {
        this.#log.warn('interfaces could not be read', { reason: describeError(error) });
      }
    } while (this.#again);
    return this.#topology.value;
  }
}

/** The picture that interfaces and Docker's networks make together. Pure. */
export function topologyOf(interfaces: readonly HostInterface[], networks: readonly DockerNetwork[]): Topology {
  const byName = new Map(interfaces.map((entry) => [entry.name, entry]));
  const addresses = new Set(interfaces.flatMap((entry) => entry.addresses.map(({ address }) => address)));
  const bridges =
    networks.length > 0
      ? networks.flatMap((network) => dockerBridge(network, byName.get(network.interface ?? '')))
      : interfaces.flatMap((entry) => (entry.bridge && dockerBridgeName.test(entry.name) ? namedBridge(entry) : []));
  return { addresses, bridges: bridges.sort((a, b) => (a.interface < b.interface ? -1 : 1)) };
}

function dockerBridge(network: DockerNetwork, found: HostInterface | undefined): Bridge[] {
  if (network.driver !== 'bridge' || found === undefined) return [];
  for (const text of network.subnets) {
    const subnet = parseIpv4Range(text);
    if (subnet === undefined) continue;
    const own = found.addresses.map(({ address }) => address).filter((address) => inRange(subnet, address));
    const gateway = own.find((address) => address === network.gateway) ?? own[0];
    return [{ interface: found.name, network: network.name, subnet, gateway, internal: network.internal }];
  }
  return [];
}

function namedBridge(found: HostInterface): Bridge[] {
  const own = found.addresses.find(({ address }) => isIPv4(address));
  const subnet = own === undefined ? undefined : rangeAround(own.address, own.prefixLength);
  if (own === undefined || subnet === undefined) return [];
  const network = found.name === 'docker0' ? 'bridge' : found.name;
  return [{ interface: found.name, network, subnet, gateway: own.address, internal: false }];
}

function sameTopology(a: Topology, b: Topology): boolean {
  if (a.addresses.size !== b.addresses.size || a.bridges.length !== b.bridges.length) return false;
  for (const address of a.addresses) if (!b.addresses.has(address)) return false;
  return a.bridges.every((bridge, index) => {
    const other = b.bridges[index];
    return (
      other !== undefined &&
      bridge.interface === other.interface &&
      bridge.network === other.network &&
      bridge.subnet.text === other.subnet.text &&
      bridge.gateway === other.gateway &&
      bridge.internal === other.internal
    );
  });
}
