import { finishInstances } from './assemble.ts';
import type { StaticInstance } from './config.ts';
import { instancesType, instanceType } from './entries.ts';
import { type Fault, Faults, type Place } from './fault.ts';
import { mapFields } from './fields.ts';
import { parseTree, type Tree, treeOfValue } from './tree.ts';

export type InstancesResult = { readonly instances: readonly StaticInstance[] } | { readonly faults: readonly Fault[] };

/** Reads the file of `legate register`: an `instances:` list as in the configuration, or that list alone. */
export function parseInstancesFile(text: string, path: string): InstancesResult {
  const faults = new Faults();
  const placeAt = (line: number, column: number, offset: number): Place => ({
    text: `${path}:${line}:${column}`,
    order: offset,
  });
  const tree = parseTree(text, path, placeAt, faults);
  const list = tree?.kind === 'map' ? listOf(tree, faults) : tree;
  const drafts = list === undefined ? undefined : instancesType.parse(list, 'instances', faults);
  const instances = finishInstances(drafts ?? [], [], faults);
  if (instances.length === 0 && faults.count === 0) {
    faults.add({ text: path, order: 0 }, 'instances', 'there is none in it');
  }
  return faults.count > 0 ? { faults: faults.list() } : { instances };
}

/**
 * Reads one entry that came as JSON, with the file's rules: a body of the admin API. Faults have no place, only paths
 * such as `instance.port`.
 */
export function parseInstanceValue(value: unknown): InstancesResult {
  const faults = new Faults();
  const tree = treeOfValue(value, { text: '', order: 0 }, faults);
  const draft = tree === undefined ? undefined : instanceType.parse(tree, 'instance', faults);
  if (draft === undefined || faults.count > 0) return { faults: faults.list() };
  return { instances: finishInstances([draft], [], faults) };
}

function listOf(tree: Tree, faults: Faults): Tree | undefined {
  const fields = mapFields(tree, '', faults, new Set(['instances']));
  return fields?.get('instances')?.value;
}
