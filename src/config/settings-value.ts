import { derivedFields, type ServiceSettings } from '../model/service.ts';
import { type FurtherField, furtherFields, furtherKinds } from '../model/service-settings.ts';
import { settingsOf } from './assemble.ts';
import { serviceDraft } from './entries.ts';
import { type Fault, Faults } from './fault.ts';
import { treeOfValue } from './tree.ts';

export interface GivenSettings {
  readonly settings: ServiceSettings;
  /** Those that are to be as where nobody chose. */
  readonly unset: readonly FurtherField[];
}

export type SettingsResult = GivenSettings | { readonly faults: readonly Fault[] };

/**
 * Reads the settings of one service that came as JSON or as words of a command line, with the rules of an entry of
 * `services:`; null takes a setting back. Faults have no place, only paths such as `service.port`.
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
  const unset = unsetIn(value);
  for (const field of derivedFields) {
    if (Reflect.get(Object(value), field) === null) {
      faults.add({ text: '', order: 0 }, `service.${field}`, 'it is always something: give another one instead');
    }
  }
  if (unset.includes('split')) {
    faults.add({ text: '', order: 0 }, 'service.split', 'it is ended by an empty map (`legate split NAME --off`)');
  }
  return faults.count > 0 ? { faults: faults.list() } : { settings: settingsOf(draft), unset };
}

function unsetIn(value: unknown): readonly FurtherField[] {
  if (typeof value !== 'object' || value === null) return [];
  const entries = new Map(Object.entries(value));
  return furtherFields.filter((field) => entries.get(furtherKinds[field].word) === null);
}
