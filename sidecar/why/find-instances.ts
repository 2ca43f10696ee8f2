import type { LinkDocument } from '../../proxy/link-document.ts';
import type { Snapshot } from '../../src/catalog/snapshot.ts';
import { type Dialler, dialOf } from '../../src/model/dial.ts';
import type { Host } from '../../src/model/host.ts';
import type { Instance } from '../../src/model/instance.ts';
import type { InstanceFacts, InstancePath, TargetFacts } from './facts.ts';

export interface InstanceSources {
  readonly snapshot: Snapshot;
  readonly target: TargetFacts;
  readonly links: readonly LinkDocument[];
  readonly dialler: Dialler;
  readonly sinceOf: (instance: Instance) => number | undefined;
}

/** The service's instances, each with how it is reached and what speaks against it. */
export function findInstances(sources: InstanceSources): InstanceFacts[] {
  const { snapshot, target, links, dialler, sinceOf } = sources;
  const { view } = target;
  if (view === undefined) return [];
  const usable = new Set(view.usable);
  const backends = new Map(links.flatMap((link) => link.backends.map((backend) => [backend.id, backend] as const)));
  const self = snapshot.hosts.get(dialler.hostId);
  return view.instances.map((instance) => {
    const { id, hostId } = instance;
    const own = hostId === dialler.hostId;
    const backend = backends.get(id);
    const ejected = backend?.ejectedUntil;
    return {
      instance,
      own,
      usable: usable.has(instance),
      sinceMs: sinceOf(instance),
      path: pathOf(instance, sources),
      ejectedUntilMs: ejected === undefined || ejected === null ? undefined : Date.parse(ejected),
      ejectedFor: backend?.ejectedFor,
      suspect: backend?.suspect === true,
      distance: own ? 0 : isNear(self, snapshot.hosts.get(hostId)) ? 1 : 2,
    };
  });
}

function pathOf(instance: Instance, { dialler }: InstanceSources): InstancePath {
  const found = dialOf(instance, dialler);
  if (typeof found === 'string') return { kind: 'none', reason: found };
  return found.via === 'tunnel' ? { kind: 'tunnel' } : { kind: 'dial', ...found.endpoint };
}

function isNear(a: Host | undefined, b: Host | undefined): boolean {
  return a?.zone !== undefined && a.zone === b?.zone;
}
