import { readFileSync } from 'node:fs';
import { type NetworkInterfaceInfo, networkInterfaces } from 'node:os';
import { LegateError } from '../../src/base/errors.ts';

/** Interfaces that containers and virtual machines bring: never where other hosts reach this one. */
const virtualInterface = /^(docker|br-|veth|virbr|cni|tun|tap)/;

/**
 * The IPv4 address of the interface that the default route leaves by; without such a route that of the first real
 * interface. E_CONFIG when there is none.
 */
export function defaultAddress(
  routes: string = readRoutes(),
  interfaces: NodeJS.Dict<NetworkInterfaceInfo[]> = networkInterfaces(),
): string {
  const addressOf = (name: string): string | undefined =>
    interfaces[name]?.find((info) => info.family === 'IPv4' && !info.internal)?.address;
  const names = Object.keys(interfaces).filter((name) => !virtualInterface.test(name));
  for (const name of [...defaultRouteInterfaces(routes), ...names]) {
    const address = addressOf(name);
    if (address !== undefined) return address;
  }
  throw new LegateError('E_CONFIG', 'this machine has no default route and no address that others could reach');
}

/** From /proc/net/route (fields: interface, destination, gateway, flags, …, metric, mask), lowest metric first. */
function defaultRouteInterfaces(routes: string): string[] {
  return routes
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[1] === '00000000' && fields[7] === '00000000')
    .sort((a, b) => Number(a[6]) - Number(b[6]))
    .map((fields) => fields[0] ?? '');
}

function readRoutes(): string {
  try {
    return readFileSync('/proc/net/route', 'utf8');
  } catch {
    return '';
  }
}
