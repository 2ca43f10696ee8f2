import { nameFault } from '../src/model/names.ts';
import { type Name, stripSuffix } from './wire/name.ts';

/** A zone in which our names answer. */
export interface Zone {
  readonly apex: Name;
  /** What stands first in `_a._b`: the tag (ours) or the service (Consul's). */
  readonly serviceLabels: 'tag-first' | 'service-first';
}

/** What a name within a zone means by its form alone; whether the thing exists is for the catalog to say. */
export type NameForm =
  | { readonly kind: 'apex' }
  | { readonly kind: 'name-server' }
  /** Exists because names below it do (an empty non-terminal, RFC 8020); when `service` is set, only if that exists. */
  | { readonly kind: 'branch'; readonly service?: string }
  | { readonly kind: 'link'; readonly service: string }
  | { readonly kind: 'instances'; readonly service: string; readonly tag: string | undefined }
  | {
      readonly kind: 'endpoints';
      readonly service: string;
      readonly tag: string | undefined;
      readonly transport: 'tcp' | 'udp' | undefined;
    }
  | { readonly kind: 'host'; readonly host: string }
  | { readonly kind: 'address'; readonly label: string }
  | { readonly kind: 'unknown' };

const unknown: NameForm = { kind: 'unknown' };
const branch: NameForm = { kind: 'branch' };

/** The zone that the name lies in, the most specific one, and the labels before it. */
export function zoneOf(zones: readonly Zone[], name: Name): { readonly zone: Zone; readonly inner: Name } | undefined {
  let best: { zone: Zone; inner: Name } | undefined;
  for (const zone of zones) {
    const inner = stripSuffix(name, zone.apex);
    if (inner !== undefined && (best === undefined || inner.length < best.inner.length)) best = { zone, inner };
  }
  return best;
}

/** The form of a name by its labels before the zone. */
export function formInZone(zone: Zone, inner: Name): NameForm {
  const last = inner.at(-1);
  if (last === undefined) return { kind: 'apex' };
  const before = inner.slice(0, -1);
  switch (last) {
    case 'service':
      return serviceForm(zone, before);
    case 'host':
    case 'node':
      return before.length === 0 ? branch : hostForm(before);
    case 'addr':
      if (before.length === 0) return branch;
      return before.length === 1 ? { kind: 'address', label: before[0] ?? '' } : unknown;
    case 'ns':
      return before.length === 0 ? { kind: 'name-server' } : unknown;
  }
  if (last.startsWith('_')) return endpointsForm(zone, inner);
  return before.length === 0 && nameFault(last) === undefined ? { kind: 'link', service: last } : unknown;
}

/** The form of a name without any zone: a single label is a link name, and never leaves this host. */
export function formOfSingleLabel(label: string): NameForm {
  return nameFault(label) === undefined ? { kind: 'link', service: label } : unknown;
}

function hostForm(before: Name): NameForm {
  const host = before[0] ?? '';
  return before.length === 1 && nameFault(host) === undefined ? { kind: 'host', host } : unknown;
}

/** `db.service`, `tag.db.service` (a tag may have dots), and the `_` forms below `service`. */
function serviceForm(zone: Zone, labels: Name): NameForm {
  const service = labels.at(-1);
  if (service === undefined) return branch;
  if (service.startsWith('_')) return endpointsForm(zone, labels);
  if (nameFault(service) !== undefined) return unknown;
  return { kind: 'instances', service, tag: labels.length === 1 ? undefined : labels.slice(0, -1).join('.') };
}

/** `_db._tcp`, `_primary._db._tcp` and `_primary._db` (RFC 2782), or with the service first. */
function endpointsForm(zone: Zone, labels: Name): NameForm {
  const last = labels.at(-1) ?? '';
  const transport = last === '_tcp' ? 'tcp' : last === '_udp' ? 'udp' : undefined;
  const rest = transport === undefined ? labels : labels.slice(0, -1);
  if (rest.length === 0) return branch;
  const serviceFirst = zone.serviceLabels === 'service-first';
  const serviceLabel = (serviceFirst ? rest[0] : rest.at(-1)) ?? '';
  const tagLabels = serviceFirst ? rest.slice(1) : rest.slice(0, -1);
  const service = serviceLabel.slice(1);
  if (!serviceLabel.startsWith('_') || nameFault(service) !== undefined) return unknown;
  if (tagLabels.length === 0) {
    return transport === undefined
      ? { kind: 'branch', service }
      : { kind: 'endpoints', service, tag: undefined, transport };
  }
  const tag = tagLabels.join('.');
  return tag.startsWith('_') && tag.length > 1 ? { kind: 'endpoints', service, tag: tag.slice(1), transport } : unknown;
}
