import type { Service } from '../src/catalog/snapshot.ts';
import { isExternal } from '../src/model/instance.ts';
import { grantBook, type Policy } from '../src/model/policy.ts';

/** A host that has instances of a service. */
export interface Offer {
  readonly hostId: string;
  /** Its name. */
  readonly host: string;
  readonly service: string;
}

/** The hosts that have instances of it, each once. */
export function offersOf({ name, instances }: Service): readonly Offer[] {
  const hosts = new Map<string, Offer>();
  for (const instance of instances) {
    const { hostId, host } = instance;
    if (!isExternal(instance)) hosts.set(hostId, { hostId, host, service: name });
  }
  return [...hosts.values()];
}

/** So many commands are still read one by one. */
const maxCommands = 4;

/**
 * What has to be granted together so that `wanted` may be offered and all in `stay` still may: the first grant of a service
 * takes it from all hosts without one, and the first grant to a host takes all its other services from it. Undefined when
 * these are too many to be told.
 */
export function grantsTogether(
  policy: Policy | undefined,
  wanted: readonly Offer[],
  stay: readonly Offer[],
): readonly Offer[] | undefined {
  if (policy === undefined) return wanted;
  const together = [...wanted];
  while (together.length <= maxCommands) {
    const given = together.map(({ hostId, service }) => ({ hostId, service, setAtMs: 0 }));
    const can = grantBook({ ...policy, grants: [...policy.grants, ...given] });
    const lost = stay.filter(({ hostId, service }) => !can(hostId, service));
    if (lost.length === 0) return together;
    together.push(...lost);
  }
  return undefined;
}

/** The line that gives `wanted` its grant and takes nothing from anybody. */
export function grantAdvice(policy: Policy | undefined, wanted: Offer, stay: readonly Offer[]): string {
  const together = grantsTogether(policy, [wanted], stay);
  // A grant for any service names none, so that nobody needs another one because of it.
  const line =
    together === undefined ? allowCommand({ ...wanted, service: '*' }) : together.map(allowCommand).join(' && ');
  const why = together === undefined || together.length > 1 ? ', which leaves nobody else out' : '';
  return `on the authority's host: ${line}${why}`;
}

export function allowCommand({ host, service }: Pick<Offer, 'host' | 'service'>): string {
  return `legate host allow ${host} ${service === '*' ? "'*'" : service}`;
}
