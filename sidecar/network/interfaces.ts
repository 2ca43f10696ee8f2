import { isIPv4 } from 'node:net';
import { networkInterfaces } from 'node:os';
import { runCommand } from '../../proxy/kernel/command.ts';
import type { Ipv4Range } from '../../src/model/address.ts';
import { ipv4ToNumber, numberToIpv4, parseIpv4Range } from '../../src/model/address.ts';

/** An interface of this host with the addresses it has. */
export interface HostInterface {
  readonly name: string;
  readonly bridge: boolean;
  readonly addresses: readonly { readonly address: string; readonly prefixLength: number }[];
}

/**
 * All interfaces, also those without a carrier (a bridge with no container), which the runtime's own list leaves out.
 * Where iproute2 is missing or too old for JSON, the runtime's list it is: bridges then cannot be told from others.
 */
export async function readInterfaces(): Promise<readonly HostInterface[]> {
  try {
    return parseInterfaces(await runCommand('ip', ['-j', '-d', 'address', 'show']));
  } catch {
    return runtimeInterfaces();
  }
}

/** Parses the output of `ip -j -d address show`. Throws when it is not that. */
export function parseInterfaces(text: string): HostInterface[] {
  const document: unknown = JSON.parse(text);
  if (!Array.isArray(document)) throw new Error('ip printed something else than a list');
  return document.flatMap((entry: unknown) => {
    const name = textOf(field(entry, 'ifname'));
    if (name === undefined) return [];
    const list = field(entry, 'addr_info');
    const addresses = (Array.isArray(list) ? list : []).flatMap((info: unknown) => {
      const address = textOf(field(info, 'local'));
      const prefixLength = field(info, 'prefixlen');
      return address === undefined || typeof prefixLength !== 'number' ? [] : [{ address, prefixLength }];
    });
    return [{ name, bridge: field(field(entry, 'linkinfo'), 'info_kind') === 'bridge', addresses }];
  });
}

function runtimeInterfaces(): HostInterface[] {
  return Object.entries(networkInterfaces()).map(([name, list = []]) => ({
    name,
    bridge: false,
    addresses: list.map(({ address, cidr }) => ({ address, prefixLength: Number(cidr?.split('/')[1] ?? 32) })),
  }));
}

/** The IPv4 range that an interface's address lies in: `172.17.0.1` with 16 gives `172.17.0.0/16`. */
export function rangeAround(address: string, prefixLength: number): Ipv4Range | undefined {
  if (!isIPv4(address) || prefixLength < 0 || prefixLength > 32) return undefined;
  const size = 2 ** (32 - prefixLength);
  const number = ipv4ToNumber(address);
  return parseIpv4Range(`${numberToIpv4(number - (number % size))}/${prefixLength}`);
}

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined;
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}
