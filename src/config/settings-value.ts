import { type ServiceField, type ServiceSettings, serviceFields, settingWord } from '../model/service.ts';
import { settingsOf } from './assemble.ts';
import { serviceDraft } from './entries.ts';
import { type Fault, Faults } from './fault.ts';
import { treeOfValue } from './tree.ts';

export interface GivenSettings {
  readonly settings: ServiceSettings;
  /** Those that are to be as where nobody chose. */
  readonly unset: readonly ServiceField[];
}

export type SettingsResult = GivenSettings | { readonly faults: readonly Fault[] };

/**
 * Reads the settings of one service that came as JSON or as words of a command line, with the rules of an entry of
 * `services:`; null takes a setting back, and ends a split. Faults have no place, only paths such as `service.port`.
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
  if (faults.count > 0) return { faults: faults.list() };
  const nulls = unsetIn(value);
  // A split that ends is the one to go back to, as it is before any other.
  const ended = nulls.includes('split') ? { split: {} } : {};
  return { settings: { ...settingsOf(draft), ...ended }, unset: nulls.filter((field) => field !== 'split') };
}

function unsetIn(value: unknown): readonly ServiceField[] {
  if (typeof value !== 'object' || value === null) return [];
  const entries = new Map(Object.entries(value));
  return serviceFields.filter((field) => entries.get(settingWord(field)) === null);
}
