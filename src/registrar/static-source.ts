import type { Change } from '../base/feed.ts';
import type { StaticInstance } from '../config/config.ts';
import { formatEndpoint } from '../model/address.ts';
import type { DesiredInstance } from '../model/instance.ts';

/** An entry of the file or of the API as something to register. Its incarnation is where it is. */
export function desiredOf(instance: StaticInstance, source: 'file' | 'api'): DesiredInstance {
  return { ...instance, draining: false, source, incarnation: formatEndpoint(instance) };
}

/** The whole of a source that is a list. */
export function staticReset(instances: Iterable<StaticInstance>, source: 'file' | 'api'): Change<DesiredInstance> {
  return { kind: 'reset', items: [...instances].map((instance) => desiredOf(instance, source)), revision: '' };
}
