import type { ServiceSettings } from '../model/service.ts';
import { settingsOf } from './assemble.ts';
import { serviceDraft } from './entries.ts';
import { type Fault, Faults } from './fault.ts';
import { treeOfValue } from './tree.ts';

export type SettingsResult = { readonly settings: ServiceSettings } | { readonly faults: readonly Fault[] };

/**
 * Reads the settings of one service that came as JSON or as words of a command line, with the rules of an entry of
 * `services:`. Faults have no place, only paths such as `service.port`.
 */
export function parseSettingsValue(value: unknown): SettingsResult {
  const faults = new Faults();
  const tree = treeOfValue(value, { text: '', order: 0 }, faults);
  if (tree === undefined) return { faults: faults.list() };
  const draft = serviceDraft('service', tree, 'service', faults);
  if (draft.external !== undefined) {
    const place = { text: '', order: 0 };
    faults.add(place, 'service.external', 'is only taken from a configuration file: `services:` there');
  }
  return faults.count > 0 ? { faults: faults.list() } : { settings: settingsOf(draft) };
}
