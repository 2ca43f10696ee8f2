import type { Endpoint } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import { type Protocol, protocols, type Reach } from '../model/instance.ts';
import type { CertificateFiles } from '../model/link.ts';
import { instanceNameFault } from '../model/names.ts';
import { externalTargetFault, policyLimits } from '../model/policy-document.ts';
import { type Balance, balances, serviceFields, settingWord } from '../model/service.ts';
import type { FurtherSettings } from '../model/service-settings.ts';
import { checkType } from './check-type.ts';
import { type Faults, joinPath, type Place } from './fault.ts';
import { anyKey, FieldReader, mapFields, textMapType } from './fields.ts';
import { furtherOf } from './further.ts';
import type { Tree } from './tree.ts';
import {
  addressType,
  choiceType,
  endpointType,
  integerType,
  kindText,
  type Located,
  listType,
  nameType,
  pathType,
  portType,
  textOption,
  type ValueType,
} from './value-types.ts';

/** Entries a list or map of the configuration may have. */
export const maxEntries = 10_000;
const maxTags = 64;
const maxMetaKeys = 64;
const maxChecks = 16;
/** Certificates of one listener. */
const maxCertificates = 100;

/** An entry of `instances:` as it was written; defaults that depend on other entries are not yet filled in. */
export interface InstanceDraft {
  readonly at: Place;
  readonly path: string;
  readonly name: Located<string> | undefined;
  readonly service: Located<string>;
  readonly address: string;
  readonly port: number;
  readonly protocol: Located<Protocol> | undefined;
  readonly reach: Reach | undefined;
  readonly tags: readonly string[];
  readonly meta: Readonly<Record<string, string>>;
  readonly weight: number;
  readonly checks: readonly CheckSpec[];
}

export interface ServiceDraft {
  readonly name: string;
  readonly path: string;
  readonly port: number | undefined;
  readonly protocol: Located<Protocol> | undefined;
  readonly balance: Balance | undefined;
  readonly further: FurtherSettings;
  /** Targets outside of the mesh. */
  readonly external: readonly string[] | undefined;
}

export interface LinkDraft {
  readonly path: string;
  readonly service: Located<string>;
  readonly listen: Located<Endpoint>;
  readonly consumer: string | undefined;
  readonly tls: Located<readonly CertificateFiles[]> | undefined;
}

const protocolType = choiceType(protocols);
const externalTargetType: ValueType<string> = {
  label: 'host:port',
  form: 'text',
  parse(tree, path, faults) {
    const text = textOption.parse(tree, path, faults);
    const fault = text === undefined ? undefined : externalTargetFault(text);
    if (fault !== undefined) faults.add(tree.at, path, `${kindText(tree)} ${fault}, e.g. smtp.example.com:25`);
    return fault === undefined ? text : undefined;
  },
};
const instanceNameType: ValueType<string> = {
  label: 'name',
  form: 'text',
  parse(tree, path, faults) {
    const text = textOption.parse(tree, path, faults);
    const fault = text === undefined ? undefined : instanceNameFault(text);
    if (fault !== undefined) faults.add(tree.at, path, `${kindText(tree)} ${fault}`);
    return fault === undefined ? text : undefined;
  },
};

const instanceKeys = [
  'service',
  'address',
  'port',
  'name',
  'protocol',
  'reach',
  'tags',
  'meta',
  'weight',
  'checks',
] as const;

const tagType: ValueType<string> = {
  label: 'text',
  form: 'text',
  parse(tree, path, faults) {
    const text = textOption.parse(tree, path, faults);
    if (text !== '' && (text === undefined || text.length <= 128)) return text;
    faults.add(tree.at, path, `${kindText(tree)} is not a tag (1 to 128 characters)`);
    return undefined;
  },
};
const tagsType = listType(tagType, maxTags);
const metaType = textMapType(textOption, maxMetaKeys);
const checksType = listType(checkType, maxChecks);
const weightType = integerType('weight', 0, 65535);
const reachType = choiceType<Reach>(['host', 'mesh']);

/** One entry of `instances:`. */
export const instanceType: ValueType<InstanceDraft> = {
  label: 'instance',
  form: 'yaml',
  parse(tree, path, faults) {
    const fields = new FieldReader(tree, path, faults, instanceKeys);
    const service = fields.required('service', nameType);
    const address = fields.required('address', addressType);
    const port = fields.required('port', portType);
    const draft = {
      at: tree.at,
      path,
      name: fields.optional('name', instanceNameType),
      protocol: fields.optional('protocol', protocolType),
      reach: fields.optional('reach', reachType)?.value,
      tags: fields.optional('tags', tagsType)?.value.map((tag) => tag.value) ?? [],
      meta: fields.optional('meta', metaType)?.value ?? {},
      weight: fields.optional('weight', weightType)?.value ?? 1,
      checks: fields.optional('checks', checksType)?.value.map((check) => check.value) ?? [],
    };
    // Other faults of the entry are known; it is kept, so that those between entries are found in the same run.
    if (!service || !address || !port) return undefined;
    return { ...draft, service, address: address.value, port: port.value };
  },
};

const certificateType: ValueType<CertificateFiles> = {
  label: 'map of cert and key',
  form: 'yaml',
  parse(tree, path, faults) {
    const fields = new FieldReader(tree, path, faults, ['cert', 'key']);
    const cert = fields.required('cert', pathType(false))?.value;
    const key = fields.required('key', pathType(false))?.value;
    return cert === undefined || key === undefined ? undefined : { cert, key };
  },
};

/** One pair of files, or a list of them for several names. */
const certificatesType: ValueType<readonly CertificateFiles[]> = {
  label: 'cert and key, or a list of such maps',
  form: 'yaml',
  parse(tree, path, faults) {
    if (tree.kind !== 'list') {
      const one = certificateType.parse(tree, path, faults);
      return one && [one];
    }
    if (tree.items.length === 0) faults.add(tree.at, path, 'an empty list has no certificate');
    return listType(certificateType, maxCertificates)
      .parse(tree, path, faults)
      ?.map(({ value }) => value);
  },
};

const linkType: ValueType<LinkDraft> = {
  label: 'link',
  form: 'yaml',
  parse(tree, path, faults) {
    const fields = new FieldReader(tree, path, faults, ['service', 'listen', 'consumer', 'tls']);
    const service = fields.required('service', nameType);
    const listen = fields.required('listen', endpointType({ zero: true }));
    const consumer = fields.optional('consumer', nameType)?.value;
    const tls = fields.optional('tls', certificatesType);
    return service && listen ? { path, service, listen, consumer, tls } : undefined;
  },
};

/** A list that is YAML also as a flag or variable. */
function entriesType<T>(item: ValueType<T>): ValueType<readonly T[]> {
  return {
    label: `list of ${item.label}s`,
    form: 'yaml',
    parse(tree, path, faults) {
      if (tree.kind === 'null') return [];
      if (tree.kind !== 'list') {
        faults.add(tree.at, path, `${kindText(tree)} is not a list of ${item.label}s`);
        return undefined;
      }
      if (tree.items.length > maxEntries) {
        faults.add(tree.at, path, `${tree.items.length} entries are more than the ${maxEntries} allowed`);
        return undefined;
      }
      const values = tree.items.map((part, index) => item.parse(part, `${path}[${index}]`, faults));
      return values.filter((value) => value !== undefined);
    },
  };
}

export const instancesType = entriesType(instanceType);
export const linksType = entriesType(linkType);

/** `services:`, a map of names to settings. */
export const servicesType: ValueType<readonly ServiceDraft[]> = {
  label: 'map of services',
  form: 'yaml',
  parse(tree, path, faults) {
    const fields = mapFields(emptyValuesKept(tree), path, faults, anyKey);
    if (fields === undefined) return undefined;
    if (fields.size > maxEntries) {
      faults.add(tree.at, path, `${fields.size} entries are more than the ${maxEntries} allowed`);
      return undefined;
    }
    const drafts: ServiceDraft[] = [];
    for (const [name, entry] of fields) {
      nameType.parse({ kind: 'scalar', text: name, at: entry.keyAt }, joinPath(path, name), faults);
      drafts.push(serviceDraft(name, entry.value, joinPath(path, name), faults));
    }
    return drafts;
  },
};

/** `db:` with nothing behind it is a service without settings of its own, not an absent one. */
function emptyValuesKept(tree: Tree): Tree {
  if (tree.kind !== 'map') return tree;
  const entries = tree.entries.map((entry) =>
    entry.value.kind === 'null' ? { ...entry, value: { kind: 'map', entries: [], at: entry.keyAt } as const } : entry,
  );
  return { ...tree, entries };
}

/** One entry of `services:`. */
export function serviceDraft(name: string, tree: Tree, path: string, faults: Faults): ServiceDraft {
  const fields = new FieldReader(tree, path, faults, [...serviceFields.map(settingWord), 'external']);
  const external = fields.optional('external', listType(externalTargetType, policyLimits.externalTargets));
  const protocol = fields.optional('protocol', protocolType);
  if (external !== undefined && protocol?.value === 'udp') {
    faults.add(external.at, fields.pathOf('external'), 'targets outside the mesh are reached over TCP only');
  }
  return {
    name,
    path,
    port: fields.optional('port', portType)?.value,
    protocol,
    balance: fields.optional('balance', choiceType(balances))?.value,
    further: furtherOf(fields),
    external: external?.value.map((target) => target.value),
  };
}
