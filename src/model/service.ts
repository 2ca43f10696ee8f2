import { formatDuration } from '../base/duration.ts';
import type { Protocol } from './instance.ts';

export const balances = ['round-robin', 'least-connections', 'p2c-latency', 'random', 'hash'] as const;
export type Balance = (typeof balances)[number];

/** The balances that this version can do; the others are a fault that says so. */
export const supportedBalances: readonly Balance[] = ['round-robin', 'least-connections', 'p2c-latency', 'random'];

export const defaultBalance: Balance = 'round-robin';

/** `near`: instances of the same host, then of the same zone, then others; `any`: wherever they are. */
export const preferences = ['near', 'any'] as const;
export type Preference = (typeof preferences)[number];
export const defaultPreference: Preference = 'near';

/** Whether applications are told the client's address before the first byte, and how (HAProxy's PROXY protocol). */
export const proxyProtocols = ['off', 'v2'] as const;
export type ProxyProtocol = (typeof proxyProtocols)[number];

/** How long new connections may be held at most while nothing answers. */
export const maxParkMs = 30_000;

/** What one may choose and need not: absent means the default, which nobody chose. */
export interface FurtherSettings {
  readonly prefer?: Preference;
  /** How long new connections wait for an instance instead of being refused; default 0. */
  readonly parkMs?: number;
  readonly proxyProtocol?: ProxyProtocol;
}

/** What users set for a service, for the whole mesh. */
export interface ServiceSettings extends FurtherSettings {
  readonly port?: number;
  readonly protocol?: Protocol;
  readonly balance?: Balance;
}

/** The settings that every service has, chosen or derived. */
export const derivedFields = ['port', 'protocol', 'balance'] as const;
export type DerivedField = (typeof derivedFields)[number];
/** The settings of a service by name. */
export const serviceFields = [...derivedFields, 'prefer', 'parkMs', 'proxyProtocol'] as const;
export type ServiceField = (typeof serviceFields)[number];

/** What users call a setting. */
export function settingWord(field: ServiceField): string {
  return field === 'parkMs' ? 'park' : field === 'proxyProtocol' ? 'proxy_protocol' : field;
}

/** A setting's value as users write it. */
export function settingText(field: ServiceField, settings: ServiceSettings): string {
  const value = settings[field];
  return field === 'parkMs' && typeof value === 'number' ? formatDuration(value) : String(value);
}

/** Those of the further settings that somebody chose. */
export function furtherSettings({ prefer, parkMs, proxyProtocol }: FurtherSettings): FurtherSettings {
  return {
    ...(prefer !== undefined && { prefer }),
    ...(parkMs !== undefined && { parkMs }),
    ...(proxyProtocol !== undefined && { proxyProtocol }),
  };
}

/** What is stored at `services/<name>`: port and protocol are those configured, else of the first instance. */
export interface ServiceRecord extends FurtherSettings {
  readonly name: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly balance: Balance;
  /** The virtual address claimed for it, if any. */
  readonly vip?: string;
  /** The settings that nobody chose: taken from an instance, or the default. Where it is absent all were chosen. */
  readonly derived?: readonly DerivedField[];
  /**
   * The id of the host that made it for a declared link (`legate.links=cache=redis@6379`), while no instance has come. That
   * host takes it back when nobody there declares the link any more.
   */
  readonly awaitedBy?: string;
}
