import type { Instance } from '../model/instance.ts';

/** So many changes are put into place one by one; more are merged in one pass. */
const fewChanges = 8;

/** What an instance is found by in a list of a service's. */
export type InstanceKey = Pick<Instance, 'id' | 'hostId'>;

/** The order of a service's instances: by id, and by host where two hosts carry one name. */
export function compareInstances(a: InstanceKey, b: InstanceKey): number {
  if (a.id !== b.id) return a.id < b.id ? -1 : 1;
  return a.hostId < b.hostId ? -1 : a.hostId > b.hostId ? 1 : 0;
}

/**
 * `before`, which is in order, without those of `removed` that it has and with all that were added; `before` itself when
 * that changes nothing. A few changes cost a copy of the references and a search each.
 */
export function changedList(
  before: readonly Instance[],
  removed: ReadonlySet<Instance>,
  added: readonly Instance[],
): readonly Instance[] {
  if (removed.size + added.length > fewChanges) return mergedList(before, removed, added);
  let list: Instance[] | undefined;
  for (const instance of removed) {
    const at = positionOf(list ?? before, instance);
    if ((list ?? before)[at] !== instance) continue;
    list ??= [...before];
    list.splice(at, 1);
  }
  for (const instance of added) {
    list ??= [...before];
    list.splice(positionOf(list, instance), 0, instance);
  }
  return list ?? before;
}

function mergedList(
  before: readonly Instance[],
  removed: ReadonlySet<Instance>,
  added: readonly Instance[],
): readonly Instance[] {
  const fresh = [...added].sort(compareInstances);
  const merged: Instance[] = [];
  let next = 0;
  for (const instance of before) {
    if (removed.has(instance)) continue;
    for (let other = fresh[next]; other !== undefined && compareInstances(other, instance) < 0; other = fresh[next]) {
      merged.push(other);
      next += 1;
    }
    merged.push(instance);
  }
  if (fresh.length === 0 && merged.length === before.length) return before;
  for (; next < fresh.length; next += 1) merged.push(fresh[next] as Instance);
  return merged;
}

/** The instance of this key in a list that is in order, from position `from` on. */
export function instanceAt(sorted: readonly Instance[], key: InstanceKey, from = 0): Instance | undefined {
  const found = sorted[positionOf(sorted, key, from)];
  return found !== undefined && compareInstances(found, key) === 0 ? found : undefined;
}

function positionOf(sorted: readonly Instance[], instance: InstanceKey, from = 0): number {
  let low = from;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const other = sorted[middle];
    if (other !== undefined && compareInstances(other, instance) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}
