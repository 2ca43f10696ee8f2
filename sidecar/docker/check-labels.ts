import { nearest } from '../../src/base/text.ts';
import { type CheckSpec, checkDefaults } from '../../src/model/check.ts';
import {
  type CheckTimes,
  type CheckWish,
  commandValue,
  deregisterValue,
  durationValue,
  grpcServiceValue,
  type IdleModifier,
  initialStatusValue,
  methodValue,
  ownCheck,
  pathValue,
  promptDefaults,
  streakValue,
  switchValue,
} from './check-values.ts';
import { labelFault, portValue, quoted } from './label-values.ts';

/** What may follow `legate.check.`. */
export const checkModifiers = [
  'interval',
  'timeout',
  'rise',
  'fall',
  'method',
  'tls_skip_verify',
  'initial_status',
  'deregister_after',
] as const;
type Modifier = (typeof checkModifiers)[number];

/** A label: its key as it was written, and its text. */
interface Label {
  readonly key: string;
  readonly text: string;
  /** Whether it speaks of one port; otherwise of the whole container. */
  readonly ofPort: boolean;
}

/** Gives the label of a field (`check`, `check.interval`), a port's own before the container's. */
export type FindLabel = (field: string) => Label | undefined;

const words = ['http', 'https', 'tcp', 'grpc', 'grpcs', 'ttl', 'exec', 'docker', 'none'] as const;
type Word = (typeof words)[number];
const forms = 'http:/path, https:/path, tcp, grpc, grpcs, ttl:30s, exec:COMMAND, docker or none';

/** What each kind of check has no use for. */
const useless: Readonly<Record<Word, readonly Modifier[]>> = {
  http: ['tls_skip_verify'],
  https: [],
  tcp: ['method', 'tls_skip_verify'],
  grpc: ['method', 'tls_skip_verify'],
  grpcs: ['method'],
  ttl: ['interval', 'timeout', 'method', 'tls_skip_verify'],
  exec: ['method', 'tls_skip_verify'],
  docker: ['interval', 'timeout', 'method', 'tls_skip_verify', 'initial_status'],
  none: checkModifiers,
};

/** Hints for modifiers that do nothing; for the others there is no better one than to leave them out. */
const reasons: Readonly<Partial<Record<`${Word} ${Modifier}`, string>>> = {
  'docker interval': 'A HEALTHCHECK has its own: docker run --health-interval.',
  'docker timeout': 'A HEALTHCHECK has its own: docker run --health-timeout.',
  'docker initial_status': 'Docker itself says starting until its first result.',
};

/**
 * Reads `legate.check` and what modifies it. What is malformed, or leaves in doubt what is meant, throws; a modifier that
 * merely does nothing becomes an idle one, unless it was said for the whole container and a port has a check of its own.
 * `checkedElsewhere`: whether some port has, so that the container's modifiers are for that one.
 */
export function checkLabels(find: FindLabel, checkedElsewhere: boolean): CheckWish {
  const check = find('check');
  const word = check === undefined ? 'docker' : wordOf(check);
  const forOthers = check === undefined ? checkedElsewhere : check.ofPort;
  const used: Modifier[] = [];
  const idle: IdleModifier[] = [];
  for (const modifier of checkModifiers) {
    const label = find(`check.${modifier}`);
    if (label === undefined) continue;
    if (!useless[word].includes(modifier)) used.push(modifier);
    else if (label.ofPort || !forOthers) {
      refuseDoubt(word, modifier, label);
      idle.push({ key: label.key, hint: reasons[`${word} ${modifier}`] ?? `Leave ${label.key} out.` });
    }
  }
  if (word === 'none') return { kind: 'none', idle };
  const modified = modifiersOf(used, find);
  if (check !== undefined) {
    return { kind: 'spec', key: check.key, spec: { ...targetOf(word, check), ...modified }, idle };
  }
  const [modifier] = checkModifiers
    .map((field) => find(`check.${field}`))
    .filter((label) => label !== undefined && (label.ofPort || !checkedElsewhere));
  return { kind: 'own', spec: { ...ownCheck, ...modified }, modifier: modifier?.key, idle };
}

function wordOf({ key, text }: Label): Word {
  const [written = ''] = /^[a-z0-9]*/i.exec(text.trim()) ?? [];
  const word = words.find((candidate) => candidate === written.toLowerCase());
  if (word === 'none' && text.trim().length > word.length) throw notThis(word, key, text);
  if (word !== undefined) return word;
  const near = nearest(written, words);
  const hint = near === undefined ? '' : ` Did you mean ${near}?`;
  throw labelFault(`${key}: ${quoted(text)} is not a check`, `Use ${forms}.${hint}`);
}

/** Modifiers that contradict the check, so that one cannot know which of the two is meant. */
function refuseDoubt(word: Word, modifier: Modifier, { key, text }: Label): void {
  if (word === 'ttl' && modifier === 'interval') {
    throw labelFault(`${key}: a check of kind ttl has its duration already`, `Leave it out, and write ttl:DURATION.`);
  }
  if (modifier === 'tls_skip_verify' && (word === 'http' || word === 'grpc') && switchValue(key, text)) {
    throw labelFault(`${key}: a check of kind ${word} speaks no TLS`, `Use ${word}s, or leave it out.`);
  }
}

type Target = Omit<CheckSpec, keyof CheckTimes>;

/** What a check asks, of `https:8443/health`, `grpc:9000/package.Service`, `ttl:30s`, `exec:pg_isready`. */
function targetOf(word: Exclude<Word, 'none'>, { key, text }: Label): CheckSpec {
  const rest = text.trim().slice(word.length);
  const [, argument] = /^:(.*)$/s.exec(rest) ?? [];
  switch (word) {
    case 'docker':
      if (rest !== '') break;
      return ownCheck;
    case 'ttl':
      if (argument === undefined) break;
      return { kind: 'ttl', ...promptDefaults, intervalMs: durationValue(key, argument) };
    case 'exec':
      if (argument === undefined) break;
      return { kind: 'exec', ...checkDefaults, command: commandValue(key, argument) };
    default:
      return { ...askedOf(word, key, text, rest), ...checkDefaults };
  }
  throw notThis(word, key, text);
}

/** The kinds that ask a port: `[:PORT][/path]`, where `:/path` is good for `/path`. */
function askedOf(word: 'http' | 'https' | 'tcp' | 'grpc' | 'grpcs', key: string, text: string, rest: string): Target {
  const [whole, portText, path = ''] = /^(?::(\d*))?(\/.*)?$/s.exec(rest) ?? [];
  if (whole === undefined || rest === ':' || (portText === '' && path === '') || (word === 'tcp' && path !== '')) {
    throw notThis(word, key, text);
  }
  const port = portText === undefined || portText === '' ? {} : { port: portValue(key, portText) };
  if (word === 'tcp') return { kind: 'tcp', ...port };
  const tls = word.endsWith('s') ? ({ tls: 'verify' } as const) : {};
  if (word === 'http' || word === 'https') return { kind: 'http', ...port, ...tls, path: pathValue(key, path || '/') };
  const name = path.slice(1);
  return { kind: 'grpc', ...port, ...tls, ...(name !== '' && { grpcService: grpcServiceValue(key, name) }) };
}

function notThis(word: Word, key: string, text: string): Error {
  const form = {
    http: 'http, http:/path or http:PORT/path',
    https: 'https, https:/path or https:PORT/path',
    tcp: 'tcp or tcp:PORT',
    grpc: 'grpc, grpc:PORT or grpc:PORT/package.Service',
    grpcs: 'grpcs, grpcs:PORT or grpcs:PORT/package.Service',
    ttl: 'ttl:DURATION, as in ttl:30s',
    exec: 'exec:COMMAND, as in exec:pg_isready',
    docker: 'docker, without more',
    none: 'none, without more',
  }[word];
  return labelFault(`${key}: ${quoted(text)} is not a check`, `Use ${form}.`);
}

/** What the modifiers that are there make of a check. */
function modifiersOf(used: readonly Modifier[], find: FindLabel): Partial<CheckSpec> {
  const value = <T>(modifier: Modifier, read: (key: string, text: string) => T): T | undefined => {
    const label = used.includes(modifier) ? find(`check.${modifier}`) : undefined;
    return label === undefined || label.text.trim() === '' ? undefined : read(label.key, label.text);
  };
  const read = {
    intervalMs: value('interval', durationValue),
    timeoutMs: value('timeout', durationValue),
    rise: value('rise', streakValue),
    fall: value('fall', streakValue),
    method: value('method', methodValue),
    tls: value('tls_skip_verify', switchValue) === true ? ('any-certificate' as const) : undefined,
    initialStatus: value('initial_status', initialStatusValue),
    deregisterAfterMs: value('deregister_after', deregisterValue),
  };
  return Object.fromEntries(Object.entries(read).filter(([, setting]) => setting !== undefined));
}
