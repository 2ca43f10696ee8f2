import { isDeepStrictEqual } from 'node:util';
import { formatDuration } from '../base/duration.ts';
import { formatSize } from '../base/size.ts';
import { hashOnFault } from './hash-on.ts';
import type { RouteRule, Weights } from './routes.ts';
import { stickyFault } from './routes.ts';

/** `near`: instances of the same host, then of the same zone, then others; `any`: wherever they are. */
export const preferences = ['near', 'any'] as const;
export type Preference = (typeof preferences)[number];
export const defaultPreference: Preference = 'near';

/** Whether applications are told the client's address before the first byte, and how (HAProxy's PROXY protocol). */
export const proxyProtocols = ['off', 'v2'] as const;
export type ProxyProtocol = (typeof proxyProtocols)[number];

/** What is done with what a client says about whom it speaks for (`Forwarded`, `X-Forwarded-…`). */
export const forwardings = ['append', 'set', 'leave'] as const;
export type Forwarding = (typeof forwardings)[number];

export const switches = ['on', 'off'] as const;
export type Switch = (typeof switches)[number];

/**
 * What one may choose for a service and need not: absent means the default, which nobody chose. Times are milliseconds;
 * those beginning with `timeoutMs` concern services of protocol http, http2 and grpc.
 */
export interface FurtherSettings {
  readonly prefer?: Preference;
  /** How long new connections wait for an instance instead of being refused; default 0. */
  readonly parkMs?: number;
  readonly proxyProtocol?: ProxyProtocol;
  /** What the balance `hash` looks at; see `parseHashOn`. */
  readonly hashOn?: string;
  /** From a request to the end of its answer; 0: as long as it takes. */
  readonly timeoutMs?: number;
  /** From a try's beginning to the head of its answer. */
  readonly tryTimeoutMs?: number;
  /** How often a request is asked again that an instance gave no answer to. */
  readonly retries?: number;
  /** After so long without an answer another instance is asked as well; 0: never. */
  readonly hedgeAfterMs?: number;
  /** Bytes that a request's body may have; 0: any number. */
  readonly maxBodyBytes?: number;
  /** Requests that this host has with the service's instances at a time; 0: any number. */
  readonly maxRequests?: number;
  /** Requests that wait for their turn when `maxRequests` are running. */
  readonly maxQueue?: number;
  /** How long one waits for its turn at most. */
  readonly queueTimeoutMs?: number;
  readonly forwarding?: Forwarding;
  /** Whether connections may become another protocol's (`Upgrade`: WebSocket). */
  readonly upgrade?: Switch;
  /** Whether `CONNECT` is passed on to instances. */
  readonly connect?: Switch;
  /** An instance that is so many times slower than the others is left out for a while; 0: never. */
  readonly ejectSlow?: number;
  /** How requests are divided among the instances that have these tags; none: over all. */
  readonly split?: Weights;
  /** What keeps a client on its side of a split; see `parseSticky`. */
  readonly sticky?: string;
  /** A side with so many times the errors of the heaviest side is taken back to 0; 0: never. */
  readonly splitGuard?: number;
  /** Where requests go that match; the first that does decides. */
  readonly routes?: readonly RouteRule[];
}

/** What holds where nobody chose. */
export const httpDefaults = {
  timeoutMs: 0,
  tryTimeoutMs: 60_000,
  retries: 2,
  hedgeAfterMs: 0,
  maxBodyBytes: 0,
  maxRequests: 0,
  maxQueue: 100,
  queueTimeoutMs: 1000,
  forwarding: 'append',
  upgrade: 'on',
  connect: 'off',
  ejectSlow: 0,
  sticky: 'off',
  splitGuard: 0,
} as const satisfies FurtherSettings;

/** The same, of all that need one. */
const defaults: FurtherSettings = {
  ...{ prefer: defaultPreference, parkMs: 0, proxyProtocol: 'off', hashOn: 'source' },
  ...httpDefaults,
};

/** How a setting is written, and what it may be. */
export type SettingForm =
  | { readonly kind: 'choice'; readonly words: readonly string[] }
  | { readonly kind: 'duration'; readonly minMs: number; readonly maxMs: number }
  /** `off`: the word for 0. */
  | { readonly kind: 'number'; readonly min: number; readonly max: number; readonly off?: boolean }
  /** Bytes. */
  | { readonly kind: 'size'; readonly max: number }
  | {
      readonly kind: 'text';
      readonly max: number;
      readonly fault: (text: string) => string | undefined;
      /** What it may be, for people. */
      readonly like: readonly string[];
    }
  | { readonly kind: 'weights' }
  | { readonly kind: 'routes' };

export interface SettingKind {
  /** What users call it. */
  readonly word: string;
  readonly form: SettingForm;
  /** What some value means that does not say it itself, for people. */
  readonly note?: string;
}

const dayMs = 86_400_000;
const choice = (words: readonly string[]): SettingForm => ({ kind: 'choice', words });
const duration = (minMs: number, maxMs: number): SettingForm => ({ kind: 'duration', minMs, maxMs });
const number = (min: number, max: number): SettingForm => ({ kind: 'number', min, max });
const factor = (max: number): SettingForm => ({ kind: 'number', min: 0, max, off: true });

/** Each of the further settings: the file, the command line, the API and the store read and write them by this table. */
export const furtherKinds = {
  prefer: { word: 'prefer', form: choice(preferences) },
  parkMs: { word: 'park', form: duration(0, 30_000), note: '0s: refused at once' },
  proxyProtocol: { word: 'proxy_protocol', form: choice(proxyProtocols) },
  hashOn: {
    word: 'hash_on',
    form: { kind: 'text', max: 80, fault: hashOnFault, like: ['source', 'header:NAME', 'cookie:NAME'] },
  },
  timeoutMs: { word: 'timeout', form: duration(0, dayMs), note: '0s: as long as it takes' },
  tryTimeoutMs: { word: 'try_timeout', form: duration(10, dayMs) },
  retries: { word: 'retries', form: number(0, 10) },
  hedgeAfterMs: { word: 'hedge_after', form: duration(0, 60_000), note: '0s: never' },
  maxBodyBytes: { word: 'max_body', form: { kind: 'size', max: 1024 ** 4 }, note: '0: any number of bytes' },
  maxRequests: { word: 'max_requests', form: number(0, 1_000_000), note: '0: any number' },
  maxQueue: { word: 'max_queue', form: number(0, 100_000) },
  queueTimeoutMs: { word: 'queue_timeout', form: duration(1, 60_000) },
  forwarding: { word: 'forwarding', form: choice(forwardings) },
  upgrade: { word: 'upgrade', form: choice(switches) },
  connect: { word: 'connect', form: choice(switches) },
  ejectSlow: { word: 'eject_slow', form: factor(100), note: 'so many times as slow as the others; 0 or off: never' },
  split: { word: 'split', form: { kind: 'weights' } },
  sticky: {
    word: 'sticky',
    form: { kind: 'text', max: 80, fault: stickyFault, like: ['off', 'cookie', 'cookie:NAME', 'header:NAME'] },
  },
  splitGuard: {
    word: 'split_guard',
    form: factor(100),
    note: 'so many times the error rate of the heaviest side; 1, the least: any rate that is clearly higher; 0 or off: no guard',
  },
  routes: { word: 'routes', form: { kind: 'routes' } },
} as const satisfies Readonly<Record<keyof FurtherSettings, SettingKind>>;

export type FurtherField = keyof FurtherSettings;
export const furtherFields = Object.keys(furtherKinds) as readonly FurtherField[];

/** Those of the further settings that somebody chose. */
export function furtherSettings(settings: FurtherSettings): FurtherSettings {
  return pickFurther((field) => settings[field]);
}

/** The further settings as `chosenFor` gives them; undefined for what nobody chose. */
export function pickFurther(chosenFor: (field: FurtherField) => unknown): FurtherSettings {
  const chosen: Partial<Record<FurtherField, unknown>> = {};
  for (const field of furtherFields) {
    const value = chosenFor(field);
    if (value !== undefined) chosen[field] = value;
  }
  // Each value has the form that the table says, which its reader has made sure of.
  return chosen as FurtherSettings;
}

/** Whether two values of a setting are the same, in whatever order maps were written. */
export function sameSetting(a: unknown, b: unknown): boolean {
  return a === b || isDeepStrictEqual(a, b);
}

/** A setting's value as users write it. */
export function furtherText(field: FurtherField, value: unknown): string {
  const { form }: SettingKind = furtherKinds[field];
  if (form.kind === 'duration' && typeof value === 'number') return formatDuration(value);
  if (form.kind === 'size' && typeof value === 'number') return formatSize(value);
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** What a setting holds where nobody chose; undefined: nothing. */
export function furtherDefault(field: FurtherField): unknown {
  return defaults[field];
}

/** What a setting may be, for people, in the units that users write. */
export function furtherValues(field: FurtherField): string {
  const { form, note }: SettingKind = furtherKinds[field];
  const values = valuesOf(form);
  return note === undefined ? values : `${values}; ${note}`;
}

function valuesOf(form: SettingForm): string {
  switch (form.kind) {
    case 'choice':
      return eitherOf(form.words);
    case 'text':
      return eitherOf(form.like);
    case 'duration':
      return `${formatDuration(form.minMs)} to ${formatDuration(form.maxMs)}`;
    case 'number':
      return `${form.min} to ${form.max}`;
    case 'size':
      return `0 to ${formatSize(form.max)}`;
    case 'weights':
      return 'YAML such as {stable: 95, canary: 5}, or @FILE';
    case 'routes':
      return 'YAML such as [{match: {path: /api}, service: api}], or @FILE';
  }
}

/** `a, b or c`. */
function eitherOf(words: readonly string[]): string {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} or ${words.at(-1)}`;
}
