import { FieldFault, Fields } from '../base/fields.ts';
import { recordLimits } from '../catalog/codec.ts';
import type { StaticInstance } from '../config/config.ts';
import { type CheckSpec, checkKinds, initialStatuses } from '../model/check.ts';
import { protocols } from '../model/instance.ts';
import { instanceNameFault, nameFault } from '../model/names.ts';

const fileVersion = 1;
const maxEntries = 10_000;
const maxChecks = 16;
const maxDurationMs = 24 * 3_600_000;
const maxDeregisterMs = 20 * 24 * 3_600_000;

/**
 * Reads `instances.json`. Entries that are not as they should be are left out, each with its reason. Throws when the file
 * as a whole is not usable.
 */
export function parseStaticInstances(text: string): { instances: StaticInstance[]; skipped: string[] } {
  const fields = new Fields(JSON.parse(text));
  const version = fields.integer('v', 1, Number.MAX_SAFE_INTEGER);
  if (version > fileVersion) throw new FieldFault(`it is of a newer version (${version})`);
  const instances: StaticInstance[] = [];
  const skipped: string[] = [];
  for (const entry of fields.list('instances', maxEntries)) {
    try {
      instances.push(readStaticInstance(new Fields(entry)));
    } catch (error) {
      if (!(error instanceof FieldFault)) throw error;
      skipped.push(error.message);
    }
  }
  return { instances, skipped };
}

function readStaticInstance(fields: Fields): StaticInstance {
  return Object.freeze({
    name: fields.name('name', instanceNameFault),
    service: fields.name('service', nameFault),
    address: fields.address('address'),
    port: fields.integer('port', 1, 65535),
    protocol: fields.oneOf('protocol', protocols),
    reach: fields.oneOf('reach', ['host', 'mesh'] as const),
    tags: fields.texts('tags', recordLimits.tags, recordLimits.tagLength),
    meta: fields.textMap('meta', recordLimits.metaEntries, recordLimits.metaKeyLength, recordLimits.metaLength),
    weight: fields.integer('weight', 0, 65535),
    checks: fields.list('checks', maxChecks).map((check) => readCheck(new Fields(check, 'checks'))),
  });
}

function readCheck(fields: Fields): CheckSpec {
  return Object.freeze({
    kind: fields.oneOf('kind', checkKinds),
    ...(fields.has('path') && { path: fields.text('path', 2048, 1) }),
    ...(fields.has('method') && { method: fields.text('method', 20, 1) }),
    ...(fields.has('port') && { port: fields.integer('port', 1, 65535) }),
    ...(fields.has('tls') && { tls: fields.oneOf('tls', ['verify', 'any-certificate'] as const) }),
    ...(fields.has('grpcService') && { grpcService: fields.text('grpcService', 512, 1) }),
    ...(fields.has('initialStatus') && { initialStatus: fields.oneOf('initialStatus', initialStatuses) }),
    ...(fields.has('deregisterAfterMs') && {
      deregisterAfterMs: fields.integer('deregisterAfterMs', 1, maxDeregisterMs),
    }),
    intervalMs: fields.integer('intervalMs', 1, maxDurationMs),
    timeoutMs: fields.integer('timeoutMs', 1, maxDurationMs),
    rise: fields.integer('rise', 1, 1000),
    fall: fields.integer('fall', 1, 1000),
  });
}
