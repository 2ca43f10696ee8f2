import type { Conditions } from '../../src/base/conditions.ts';
import { type Container, shortId } from './container.ts';
import type { DockerNetwork } from './network.ts';

const maxNamed = 3;

/**
 * Notices containers that cannot reach virtual addresses: all their networks are internal ones to which the engine gives
 * no gateway (engines up to 26 give one, 28 does not). Said once for each such network, while there are such containers.
 */
export class InternalRoutes {
  readonly #conditions: Conditions;
  readonly #networks: () => ReadonlyMap<string, DockerNetwork>;
  /** Names of containers without a way out, by network and container id. */
  readonly #cut = new Map<string, Map<string, string>>();

  constructor(conditions: Conditions, networks: () => ReadonlyMap<string, DockerNetwork>) {
    this.#conditions = conditions;
    this.#networks = networks;
  }

  inspected({ id, name, attachments }: Container): void {
    this.forget(id);
    const withAddress = attachments.filter(({ ipv4 }) => ipv4 !== undefined);
    if (withAddress.length === 0 || withAddress.some(({ gateway }) => gateway !== undefined)) return;
    for (const { network, networkId } of withAddress) {
      if (this.#networks().get(networkId)?.internal !== true) continue;
      const containers = this.#cut.get(network) ?? new Map<string, string>();
      this.#cut.set(network, containers.set(id, name || shortId(id)));
      this.#report(network, containers);
    }
  }

  forget(id: string): void {
    for (const [network, containers] of this.#cut) if (containers.delete(id)) this.#report(network, containers);
  }

  #report(network: string, containers: ReadonlyMap<string, string>): void {
    const condition = `docker.internal.${network}`;
    if (containers.size === 0) {
      this.#cut.delete(network);
      this.#conditions.clear(condition);
      return;
    }
    const names = [...containers.values()].slice(0, maxNamed).join(', ') + (containers.size > maxNamed ? ', …' : '');
    this.#conditions.raise(
      condition,
      'note',
      `containers on internal network ${network} cannot reach virtual addresses (${names}): this engine gives them no route out`,
      'attach them to an ordinary bridge network too, or let them use NAME.service names of instances on that network',
    );
  }
}
