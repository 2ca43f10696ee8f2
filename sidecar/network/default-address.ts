import { readFile } from 'node:fs/promises';
import { isIPv4 } from 'node:net';
import { runCommand } from '../../proxy/kernel/command.ts';
import { isLoopback } from '../../src/model/address.ts';
import { type HostInterface, readInterfaces } from './interfaces.ts';

/** An address that no route but the default one leads to; nothing is sent there. It is kept for documentation (RFC 5737). */
const somewhere = '192.0.2.1';
/** Where the one above is on a network of this host itself; nothing is sent there either (RFC 5737). */
const elsewhere = '203.0.113.1';

/**
 * The IPv4 address from which this host speaks to the world: its own on the default route. Without a default route the
 * first address that is neither loopback nor a bridge's; undefined when there is none at all.
 */
export async function defaultAddress(): Promise<string | undefined> {
  const interfaces = await readInterfaces();
  const local = interfaces.some(({ addresses }) => addresses.some(({ address }) => address.startsWith('192.0.2.')));
  const asked = await runCommand('ip', ['-4', 'route', 'get', local ? elsewhere : somewhere]).catch(() => '');
  const route = await readFile('/proc/net/route', 'utf8').catch(() => '');
  return sourceOfRoute(asked) ?? addressOn(interfaces, defaultInterface(route)) ?? addressOn(interfaces, undefined);
}

/** The source that `ip route get` prints: `… dev eth0 src 10.0.0.2 uid 0`. */
export function sourceOfRoute(text: string): string | undefined {
  const source = / src ([0-9.]+)/.exec(text)?.[1];
  return source !== undefined && isIPv4(source) && !isLoopback(source) ? source : undefined;
}

/** The interface of the default route with the lowest metric, by the table of /proc/net/route. */
export function defaultInterface(text: string): string | undefined {
  let best: { name: string; metric: number } | undefined;
  for (const line of text.split('\n').slice(1)) {
    const [name = '', destination, , flags = '0', , , metric = '0', mask] = line.trim().split(/\s+/);
    const up = (Number.parseInt(flags, 16) & 1) === 1;
    if (destination !== '00000000' || mask !== '00000000' || !up) continue;
    if (best === undefined || Number(metric) < best.metric) best = { name, metric: Number(metric) };
  }
  return best?.name;
}

/** The first IPv4 address of that interface; of any but bridges, when no name is given. */
function addressOn(interfaces: readonly HostInterface[], name: string | undefined): string | undefined {
  for (const entry of interfaces) {
    if (name === undefined ? entry.bridge : entry.name !== name) continue;
    const own = entry.addresses.find(({ address }) => isIPv4(address) && !isLoopback(address));
    if (own !== undefined) return own.address;
  }
  return undefined;
}
