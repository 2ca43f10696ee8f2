import { formatDuration } from '../base/duration.ts';
import { type CheckKind, type CheckSpec, checkDefaults, initialStatuses } from '../model/check.ts';
import type { Faults } from './fault.ts';
import { FieldReader } from './fields.ts';
import {
  booleanType,
  choiceType,
  durationType,
  integerType,
  type Located,
  portType,
  textOption,
  type ValueType,
} from './value-types.ts';

/** Kinds whose checks go out and ask, and can be given to what is no container. */
const asking: readonly CheckKind[] = ['tcp', 'http', 'grpc'];
const overTls: readonly CheckKind[] = ['http', 'grpc'];

/** The keys of an entry of `checks:`, and the kinds that each belongs to; without a list to all. */
const kindsOf: Readonly<Record<string, readonly CheckKind[] | undefined>> = {
  kind: undefined,
  path: ['http'],
  method: ['http'],
  port: asking,
  tls: overTls,
  tls_skip_verify: overTls,
  service: ['grpc'],
  command: ['exec'],
  ttl: ['ttl'],
  interval: asking,
  timeout: asking,
  rise: asking,
  fall: asking,
  initial_status: undefined,
  deregister_after: undefined,
};
const checkKeys = Object.keys(kindsOf);

/** The others are for containers: their labels say them. */
const kindType = choiceType(['tcp', 'http', 'grpc', 'ttl']);
const timeType = durationType(100, 24 * 3_600_000);
const deregisterType = durationType(1000, 20 * 24 * 3_600_000);
const countType = integerType('count', 1, 100);
const methodType = choiceType(['GET', 'HEAD', 'OPTIONS', 'POST', 'PUT']);
const initialType = choiceType(initialStatuses);
/** How long a refresh holds when the entry does not say. */
const defaultTtlMs = 30_000;

/** One entry of `checks:`. */
export const checkType: ValueType<CheckSpec> = {
  label: 'check',
  form: 'yaml',
  parse(tree, path, faults) {
    const before = faults.count;
    const fields = new FieldReader(tree, path, faults, checkKeys);
    const kind = readKind(fields, faults);
    const httpPath = fields.optional('path', textOption);
    if (httpPath !== undefined && !/^\/[^\s]*$/.test(httpPath.value)) {
      faults.add(httpPath.at, fields.pathOf('path'), 'does not begin with a slash, or has spaces');
    }
    const method = fields.optional('method', methodType)?.value;
    const port = fields.optional('port', portType)?.value;
    const tls = readTls(fields, kind, faults);
    const service = fields.optional('service', textOption)?.value;
    const ttlMs = fields.optional('ttl', timeType)?.value;
    const initialStatus = fields.optional('initial_status', initialType)?.value;
    const deregisterAfterMs = fields.optional('deregister_after', deregisterType)?.value;
    const intervalMs = fields.optional('interval', timeType)?.value ?? checkDefaults.intervalMs;
    const spec = {
      timeoutMs: fields.optional('timeout', timeType)?.value ?? checkDefaults.timeoutMs,
      rise: fields.optional('rise', countType)?.value ?? checkDefaults.rise,
      fall: fields.optional('fall', countType)?.value ?? checkDefaults.fall,
    };
    if (faults.count > before || kind === undefined) return undefined;
    return {
      kind,
      ...(kind === 'http' && { path: httpPath?.value ?? '/' }),
      ...(method !== undefined && { method }),
      ...(port !== undefined && { port }),
      ...(tls && { tls }),
      ...(service !== undefined && service !== '' && { grpcService: service }),
      ...(initialStatus && { initialStatus }),
      ...(deregisterAfterMs !== undefined && { deregisterAfterMs }),
      intervalMs: kind === 'ttl' ? (ttlMs ?? defaultTtlMs) : intervalMs,
      ...spec,
    };
  },
};

/** The kind, after the fault of every key that does not belong to it. */
function readKind(fields: FieldReader, faults: Faults): CheckKind | undefined {
  const written = fields.tree('kind');
  if (written?.kind === 'scalar' && written.text === 'https') {
    faults.add(written.at, fields.pathOf('kind'), '"https" is kind http with `tls: true`');
    return undefined;
  }
  if (written?.kind === 'scalar' && (written.text === 'docker' || written.text === 'exec')) {
    faults.add(written.at, fields.pathOf('kind'), `"${written.text}" is for containers only`);
    return undefined;
  }
  const kind = fields.required('kind', kindType);
  if (kind === undefined) return undefined;
  for (const [key, kinds] of Object.entries(kindsOf)) {
    const tree = fields.tree(key);
    if (tree === undefined || kinds === undefined || kinds.includes(kind.value)) continue;
    const instead = kind.value === 'ttl' && key === 'interval' ? '; how long a refresh holds is `ttl`' : '';
    faults.add(
      tree.at,
      fields.pathOf(key),
      `belongs to checks of kind ${kinds.join(', ')}, not ${kind.value}${instead}`,
    );
  }
  return kind.value;
}

function readTls(fields: FieldReader, kind: CheckKind | undefined, faults: Faults): CheckSpec['tls'] {
  const tls = fields.optional('tls', booleanType);
  const skip: Located<boolean> | undefined = fields.optional('tls_skip_verify', booleanType);
  if (tls?.value === true) return skip?.value === true ? 'any-certificate' : 'verify';
  if (skip?.value === true && kind !== undefined && overTls.includes(kind)) {
    faults.add(
      skip.at,
      fields.pathOf('tls_skip_verify'),
      'says how to take certificates, and `tls: true` is not there',
    );
  }
  return undefined;
}

/** A check as an entry of `checks:` that is read as the same check again; for what is no container. */
export function checkEntry(check: CheckSpec): Readonly<Record<string, unknown>> {
  const { kind, path, method, port, tls, grpcService, initialStatus, deregisterAfterMs } = check;
  return {
    kind,
    ...(path !== undefined && { path }),
    ...(method !== undefined && { method }),
    ...(port !== undefined && { port }),
    ...(tls !== undefined && { tls: true, tls_skip_verify: tls === 'any-certificate' }),
    ...(grpcService !== undefined && { service: grpcService }),
    ...(initialStatus !== undefined && { initial_status: initialStatus }),
    ...(deregisterAfterMs !== undefined && { deregister_after: formatDuration(deregisterAfterMs) }),
    ...(kind === 'ttl'
      ? { ttl: formatDuration(check.intervalMs) }
      : {
          interval: formatDuration(check.intervalMs),
          timeout: formatDuration(check.timeoutMs),
          rise: check.rise,
          fall: check.fall,
        }),
  };
}
