import { nearest } from '../../src/base/text.ts';
import { type CheckSpec, checkDefaults } from '../../src/model/check.ts';
import {
  type CheckWish,
  commandValue,
  deregisterValue,
  durationValue,
  initialStatusValue,
  methodValue,
  ownCheck,
  pathValue,
  promptDefaults,
} from './check-values.ts';
import { quoted } from './label-values.ts';

/** registrator asks every 10 s unless told otherwise; Consul then waits up to 10 s for an answer, 30 s for a command. */
const askedTimes = { ...checkDefaults, intervalMs: 10_000, timeoutMs: 10_000 };
const commandTimes = { ...askedTimes, timeoutMs: 30_000 };
/** Consul's meaning of exit status 1. */
const warningExit = 1;

/** In registrator's order: the first that is there is the check. */
const checkKeys = [
  'check_http',
  'check_https',
  'check_cmd',
  'check_script',
  'check_ttl',
  'check_tcp',
  'check_grpc',
] as const;
type CheckKey = (typeof checkKeys)[number];

const always = ['check_initial_status', 'check_deregister_after'];
const timed = [...always, 'check_interval', 'check_timeout'];
/** What each check has a use for. */
const modifiers: Readonly<Record<CheckKey, readonly string[]>> = {
  check_http: [...timed, 'check_http_method'],
  check_https: [...timed, 'check_https_method'],
  check_cmd: timed,
  check_script: timed,
  check_ttl: always,
  check_tcp: timed,
  check_grpc: [...timed, 'check_grpc_use_tls', 'check_tls_skip_verify'],
};
const modifierKeys = new Set(Object.values(modifiers).flat());

/** `SERVICE_*` as it applies to one port. */
export interface PortKeys {
  /** Lower-cased, without prefix and port. */
  readonly values: ReadonlyMap<string, string>;
  /** How a key was written: `SERVICE_80_CHECK_TCP`. */
  readonly written: (key: string) => string;
  /** Whether it was said of this port, not of all. */
  readonly ofPort: (key: string) => boolean;
  /** A TCP port of the same number, where this one is UDP. */
  readonly twin: number | undefined;
  /** Whether a check is named for any port. */
  readonly checksAnywhere: boolean;
}

type Note = (reason: string, hint: string) => void;

export function isCheckKey(key: string): boolean {
  return (checkKeys as readonly string[]).includes(key);
}

/** The check that `SERVICE_CHECK_*` ask for. What is malformed throws; what does nothing is told to `note`. */
export function registratorCheck(keys: PortKeys, note: Note): CheckWish {
  const { values, written } = keys;
  const first = checkKeys.find((key) => (values.get(key) ?? '') !== '');
  noteIdle(keys, first, note);
  if (first === undefined) return { kind: 'own', spec: ownCheck, modifier: undefined, idle: [] };
  const key = written(first);
  const target = targetOf(first, key, keys, note);
  const substitute = target.kind === 'exec';
  return { kind: 'spec', key, spec: { ...target, ...modified(first, keys, note) }, substitute, idle: [] };
}

function targetOf(check: CheckKey, key: string, { values, twin }: PortKeys, note: Note): CheckSpec {
  const value = values.get(check) ?? '';
  const port = twin === undefined ? {} : { port: twin };
  switch (check) {
    case 'check_http':
    case 'check_https': {
      const path = pathValue(key, value.startsWith('/') ? value : `/${value}`);
      return { kind: 'http', ...askedTimes, ...port, path, ...(check === 'check_https' && { tls: 'verify' }) };
    }
    case 'check_cmd':
    case 'check_script':
      return { kind: 'exec', ...commandTimes, command: commandValue(key, value), warningExit };
    case 'check_ttl':
      return { kind: 'ttl', ...promptDefaults, intervalMs: durationValue(key, value) };
    case 'check_tcp':
      noteNo(key, value, note);
      return { kind: 'tcp', ...askedTimes, ...port };
    case 'check_grpc':
      noteNo(key, value, note);
      return { kind: 'grpc', ...askedTimes, ...port };
  }
}

function modified(check: CheckKey, { values, written }: PortKeys, note: Note): Partial<CheckSpec> {
  const value = <T>(key: string, read: (key: string, text: string) => T): T | undefined => {
    const text = values.get(key) ?? '';
    return text !== '' && modifiers[check].includes(key) ? read(written(key), text) : undefined;
  };
  /** Any value is a yes. */
  const yes = (key: string): true | undefined =>
    value(key, (name, text) => {
      noteNo(name, text, note);
      return true;
    });
  const read = {
    intervalMs: value('check_interval', durationValue),
    timeoutMs: value('check_timeout', durationValue),
    method: value('check_http_method', methodValue) ?? value('check_https_method', methodValue),
    initialStatus: value('check_initial_status', initialStatusValue),
    deregisterAfterMs: value('check_deregister_after', deregisterValue),
    tls: !yes('check_grpc_use_tls') ? undefined : yes('check_tls_skip_verify') ? 'any-certificate' : 'verify',
  };
  return Object.fromEntries(Object.entries(read).filter(([, setting]) => setting !== undefined));
}

/** Says of every other `CHECK_` key that it does nothing. */
function noteIdle(
  { values, written, ofPort, checksAnywhere }: PortKeys,
  first: CheckKey | undefined,
  note: Note,
): void {
  for (const [key, value] of values) {
    if (!key.startsWith('check_') || value === '' || key === first) continue;
    const name = written(key);
    if (isCheckKey(key) && first !== undefined) {
      note(`${name} does nothing: ${written(first)} is the check`, `Leave out one of the two.`);
    } else if (!modifierKeys.has(key)) {
      const near = nearest(key, [...checkKeys, ...modifierKeys]);
      const hint = near === undefined ? 'Leave it out.' : `Did you mean SERVICE_${near.toUpperCase()}?`;
      note(`${quoted(name).slice(1, -1)} is not known`, hint);
    } else if (first === undefined) {
      if (ofPort(key) || !checksAnywhere)
        note(`${name} does nothing without a check`, 'Name one: SERVICE_CHECK_HTTP=/path.');
    } else if (!isUsed(key, first, values) && (ofPort(key) || !ofPort(first))) {
      note(`${name} does nothing with ${written(first)}`, idleHints.get(key) ?? 'Leave it out.');
    }
  }
}

const idleHints: ReadonlyMap<string, string> = new Map([
  ['check_tls_skip_verify', 'It is for SERVICE_CHECK_GRPC with SERVICE_CHECK_GRPC_USE_TLS.'],
  ['check_http_method', 'It is for SERVICE_CHECK_HTTP.'],
  ['check_https_method', 'It is for SERVICE_CHECK_HTTPS.'],
  ['check_grpc_use_tls', 'It is for SERVICE_CHECK_GRPC.'],
  ['check_interval', 'SERVICE_CHECK_TTL itself says how long a refresh holds.'],
]);

function isUsed(key: string, check: CheckKey, values: ReadonlyMap<string, string>): boolean {
  if (key === 'check_tls_skip_verify' && (values.get('check_grpc_use_tls') ?? '') === '') return false;
  return modifiers[check].includes(key);
}

/** As in registrator any value is a yes, which who wrote no might not know. */
export function noteNo(key: string, value: string, note: Note): void {
  if (/^(?:0|false|no|off)$/i.test(value.trim())) {
    note(`${key}=${quoted(value).slice(1, -1)} means yes, as any value does`, `Leave ${key} out, or empty.`);
  }
}
