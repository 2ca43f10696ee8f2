import type { Protocol } from './instance.ts';
import type { Weights } from './routes.ts';
import {
  type FurtherField,
  type FurtherSettings,
  furtherFields,
  furtherKinds,
  furtherText,
} from './service-settings.ts';
import type { TakenBack } from './taken-back.ts';

export const balances = ['round-robin', 'least-connections', 'p2c-latency', 'random', 'hash'] as const;
export type Balance = (typeof balances)[number];

export const defaultBalance: Balance = 'round-robin';

/** What users set for a service, for the whole mesh. */
export interface ServiceSettings extends FurtherSettings {
  readonly port?: number;
  readonly protocol?: Protocol;
  readonly balance?: Balance;
}

/** The settings that every service has, chosen or derived. */
export const derivedFields = ['port', 'protocol', 'balance'] as const;
export type DerivedField = (typeof derivedFields)[number];
export type ServiceField = DerivedField | FurtherField;
/** The settings of a service by name. */
export const serviceFields: readonly ServiceField[] = [...derivedFields, ...furtherFields];

/** What users call a setting. */
export function settingWord(field: ServiceField): string {
  return isDerived(field) ? field : furtherKinds[field].word;
}

/** A setting's value as users write it. */
export function settingText(field: ServiceField, settings: ServiceSettings): string {
  return isDerived(field) ? String(settings[field]) : furtherText(field, settings[field]);
}

function isDerived(field: ServiceField): field is DerivedField {
  return derivedFields.some((each) => each === field);
}

/** What is stored at `services/<name>`: port and protocol are those configured, else of the first instance. */
export interface ServiceRecord extends FurtherSettings {
  readonly name: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly balance: Balance;
  /** The virtual address claimed for it, if any. */
  readonly vip?: string;
  /** The split before the present one, for the way back. */
  readonly formerSplit?: Weights;
  /** Set while the split is as a rollout guard left it; who sets one by hand ends it. */
  readonly takenBack?: TakenBack;
  /** The settings that nobody chose: taken from an instance, or the default. Where it is absent all were chosen. */
  readonly derived?: readonly DerivedField[];
  /**
   * The id of the host that made it for a declared link (`legate.links=cache=redis@6379`), while no instance has come. That
   * host takes it back when nobody there declares the link any more.
   */
  readonly awaitedBy?: string;
}
