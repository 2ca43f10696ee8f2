import { printable, truncate } from '../../src/base/text.ts';
import { rawField, rawList, rawRecord, rawText } from './raw.ts';

const maxNetworks = 4096;

/** A network of the engine. */
export interface DockerNetwork {
  readonly id: string;
  readonly name: string;
  /** `bridge`, `host`, `null`, `overlay`, `macvlan`, … */
  readonly driver: string;
  readonly internal: boolean;
  /** The bridge's interface on this host; undefined for other drivers. */
  readonly interface: string | undefined;
  /** `172.18.0.0/16`, also IPv6. */
  readonly subnets: readonly string[];
  /** The IPv4 gateway, which is the host's own address on a bridge; undefined when it has none. */
  readonly gateway: string | undefined;
  /** False for a bridge that was made without an address of the host. */
  readonly hostReachable: boolean;
}

/** Reads an answer to `GET /networks`. Entries without id or name are left out. Never throws. */
export function parseNetworks(document: unknown): readonly DockerNetwork[] {
  const networks: DockerNetwork[] = [];
  for (const entry of rawList(document)) {
    const network = parseNetwork(entry);
    if (network !== undefined) networks.push(network);
    if (networks.length >= maxNetworks) break;
  }
  return networks.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.id < b.id ? -1 : 1));
}

function parseNetwork(value: unknown): DockerNetwork | undefined {
  const raw = rawRecord(value);
  const id = rawText(rawField(raw, 'Id'));
  const name = printable(truncate(rawText(rawField(raw, 'Name')), 128));
  if (!/^[0-9a-z]{1,64}$/.test(id) || name === '') return undefined;
  const driver = printable(truncate(rawText(rawField(raw, 'Driver')), 64));
  const options = rawRecord(rawField(raw, 'Options'));
  const pools = rawList(rawField(rawRecord(rawField(raw, 'IPAM')), 'Config')).map(rawRecord);
  const subnets = pools
    .map((pool) => rawText(rawField(pool, 'Subnet')))
    .filter((text) => /^[0-9a-fA-F:./]+$/.test(text));
  const gateways = pools.map((pool) => rawText(rawField(pool, 'Gateway')));
  return {
    id,
    name,
    driver,
    internal: rawField(raw, 'Internal') === true,
    interface:
      driver === 'bridge'
        ? bridgeInterface(id, rawText(rawField(options, 'com.docker.network.bridge.name')))
        : undefined,
    subnets: subnets.slice(0, 16),
    gateway: gateways.find((text) => /^[0-9.]+$/.test(text)),
    hostReachable:
      rawField(options, 'com.docker.network.bridge.inhibit_ipv4') !== 'true' &&
      rawField(options, 'com.docker.network.bridge.gateway_mode_ipv4') !== 'isolated',
  };
}

function bridgeInterface(id: string, option: string): string {
  return /^[a-zA-Z0-9_.-]{1,15}$/.test(option) ? option : `br-${id.slice(0, 12)}`;
}
