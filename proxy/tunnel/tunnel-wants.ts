import type { Tunnels } from './tunnels.ts';

const none: ReadonlySet<string> = new Set();

/**
 * Keeps the tunnels warm that links of this host may need: those to the hosts of any service's instances. Also those to
 * lost hosts, so that what their door says is known, and they are reached as soon as they are back.
 */
export class TunnelWants {
  readonly #tunnels: Tunnels;
  readonly #byService = new Map<string, ReadonlySet<string>>();
  /** How many services want a host. */
  readonly #counts = new Map<string, number>();

  constructor(tunnels: Tunnels) {
    this.#tunnels = tunnels;
  }

  /** The hosts that one service's instances are reached at through tunnels, by now. */
  set(service: string, hosts: ReadonlySet<string>): void {
    const before = this.#byService.get(service) ?? none;
    if (before === hosts || (before.size === 0 && hosts.size === 0)) return;
    if (hosts.size === 0) this.#byService.delete(service);
    else this.#byService.set(service, hosts);
    for (const host of hosts) if (!before.has(host)) this.#count(host, 1);
    for (const host of before) if (!hosts.has(host)) this.#count(host, -1);
  }

  /** The services that have instances on the host. */
  *servicesOf(hostId: string): Iterable<string> {
    for (const [service, hosts] of this.#byService) if (hosts.has(hostId)) yield service;
  }

  #count(host: string, by: 1 | -1): void {
    const before = this.#counts.get(host) ?? 0;
    if (before + by === 0) this.#counts.delete(host);
    else this.#counts.set(host, before + by);
    if (before === 0 || before + by === 0) this.#tunnels.want(host, before === 0);
  }
}
