import { logLevels } from '../base/log.ts';
import type { AdminListen } from './config.ts';
import { instancesType, linksType, servicesType } from './entries.ts';
import {
  addressType,
  booleanType,
  choiceType,
  domainType,
  durationType,
  endpointType,
  integerType,
  keyPrefixType,
  listType,
  nameType,
  optionalEndpointType,
  optionalNameType,
  pathType,
  rangeType,
  storeUrlType,
  textOption,
  type ValueType,
  wordOrListType,
  workersType,
} from './value-types.ts';

/** One option: the file's key, flag and variable derive from its key in the table. */
export interface Option<T> {
  readonly type: ValueType<T>;
  /** Written as a flag would be; of `computed` options it says how the value is found. */
  readonly default: string;
  readonly computed?: true;
  /** It is in the table, but only its default is in this version. */
  readonly notYet?: true;
  /** One sentence without its full stop. */
  readonly doc: string;
}

function option<T>(type: ValueType<T>, defaultText: string, doc: string): Option<T> {
  return { type, default: defaultText, doc };
}
function computed<T>(type: ValueType<T>, how: string, doc: string): Option<T> {
  return { type, default: how, computed: true, doc };
}
function notYet<T>(type: ValueType<T>, defaultText: string, doc: string): Option<T> {
  return { type, default: defaultText, notYet: true, doc };
}

const unixPathBytes = 107;

const adminListenType: ValueType<AdminListen> = {
  label: 'unix:/path or address:port',
  form: 'text',
  parse(tree, path, faults) {
    if (tree.kind !== 'scalar' || !tree.text.startsWith('unix:')) {
      const endpoint = endpointType({ zero: true }).parse(tree, path, faults);
      return endpoint === undefined ? undefined : { kind: 'tcp', ...endpoint };
    }
    const socket = pathType(false).parse({ ...tree, text: tree.text.slice('unix:'.length) }, path, faults);
    if (socket === undefined) return undefined;
    if (Buffer.byteLength(socket) <= unixPathBytes) return { kind: 'unix', path: socket };
    faults.add(
      tree.at,
      path,
      `a socket's path may have ${unixPathBytes} bytes, this one has ${Buffer.byteLength(socket)}`,
    );
    return undefined;
  },
};

const nameListenType = endpointType({
  zero: true,
  noWildcard:
    'an answer must come from the address that was asked; name concrete ones (containers are served by dns.bridges and the virtual address anyway)',
});
const upstreamType = wordOrListType(['auto', 'off'], listType(endpointType({ zero: false, defaultPort: 53 }), 16));

/**
 * The one table of options. Flags (`--dns-listen`), variables (`LEGATE_DNS_LISTEN`), the file's keys (`dns.listen`) and
 * README's table derive from it.
 */
export const options = {
  mesh: option(nameType, 'legate', 'the name of the mesh: its trust domain and its prefix in the store'),
  host: computed(nameType, 'the hostname', 'the name of this host'),
  advertise: computed(addressType, 'address of the default route', 'where other hosts reach this one'),
  data_dir: option(pathType(false), '/var/lib/legate', 'where the sidecar keeps its identity, store and last snapshot'),
  domain: option(domainType, 'mesh.internal', 'the DNS zone of the mesh'),
  'store.kind': option(choiceType(['embedded', 'etcd', 'consul']), 'embedded', 'which key-value store holds the mesh'),
  'store.lease_ttl': option(
    durationType(200, 600_000),
    '10s',
    'how long after its last sign of life a host counts as lost',
  ),
  'store.listen': option(
    optionalEndpointType,
    '',
    "where the embedded store is offered to other hosts, with etcd's API, e.g. 10.77.0.1:7712",
  ),
  'store.endpoints': option(
    listType(storeUrlType, 16),
    '',
    'the etcd or Consul servers, e.g. https://10.77.0.1:2379; all of one cluster',
  ),
  'store.prefix': option(
    keyPrefixType,
    '/legate',
    'in front of all keys in etcd and Consul; the name of the mesh follows',
  ),
  'store.tls.ca': option(pathType(true), '', "authority of the etcd or Consul servers; empty: the machine's own ones"),
  'store.tls.cert': option(pathType(true), '', 'client certificate for etcd or Consul'),
  'store.tls.key': option(pathType(true), '', 'private key of that certificate'),
  'store.credentials_file': option(
    pathType(true),
    '',
    'file with `user:password` for etcd, or the token for Consul; readable by its owner only',
  ),
  'store.mirror': option(
    booleanType,
    'false',
    "whether instances of reach mesh are registered in Consul's own catalog, too",
  ),
  'docker.socket': option(pathType(false), '/var/run/docker.sock', "the Docker Engine's socket"),
  'docker.expose': option(
    choiceType(['labelled', 'published', 'off']),
    'labelled',
    'which containers are registered: those with labels, those that publish ports, or none',
  ),
  'docker.image_labels': option(
    booleanType,
    'false',
    "whether a service's identity may come from labels and environment of the image",
  ),
  'dns.listen': option(listType(nameListenType, 64), '127.0.0.1:7753', 'where the name server listens, UDP and TCP'),
  'dns.bridges': option(
    choiceType(['auto', 'off']),
    'auto',
    "whether it also listens at each container bridge's gateway",
  ),
  'dns.upstream': option(
    upstreamType,
    'auto',
    "who answers for other zones: the machine's resolv.conf, nobody, or these",
  ),
  'dns.ttl': option(durationType(0, 86_400_000), '5s', 'how long others may keep an answer'),
  'dns.zones': option(listType(domainType, 16), '', 'further zones in which the same names answer, such as consul'),
  'admin.listen': option(
    listType(adminListenType, 16),
    'unix:/run/legate/admin.sock',
    "where the admin API listens; add 127.0.0.1:7710 for browsers; beyond loopback it is TLS with the host's certificate",
  ),
  'admin.token_file': option(
    pathType(true),
    '',
    'the token for the admin API over TCP; empty: admin.token in data_dir, made with mode 0600',
  ),
  'tunnel.listen': option(
    endpointType({ zero: false }),
    '0.0.0.0:7711',
    'where other sidecars and new hosts reach this one, once it has a certificate',
  ),
  'tls.ca': option(pathType(true), '', "roots from outside instead of the mesh's own authority: certificates in PEM"),
  'tls.cert': option(pathType(true), '', "this host's certificate and those between it and a root, in PEM"),
  'tls.key': option(pathType(true), '', 'private key of that certificate, readable by its owner only'),
  'authority.passphrase_file': option(
    pathType(true),
    '',
    "file with the passphrase of the authority's and the policy's keys; empty: they are not encrypted",
  ),
  zone: option(optionalNameType, '', 'where this host stands; links prefer instances of their own zone'),
  workers: option(
    workersType,
    'auto',
    'how many processes carry links; auto: one for each core; 0: the sidecar carries them itself',
  ),
  'network.underlay': option(
    choiceType(['untrusted', 'trusted', 'encrypted']),
    'untrusted',
    'whether links to other hosts may go in the clear: only on a trusted or encrypted one',
  ),
  'network.mode': notYet(textOption, 'off', 'how containers of several hosts are joined in one network'),
  'vip.mode': option(choiceType(['auto', 'off']), 'auto', 'whether services have virtual addresses on this host'),
  'vip.range': option(rangeType, '240.77.0.0/16', 'the range of virtual addresses, the same on every host'),
  'vip.local_range': option(rangeType, '240.78.0.0/16', "the range of this host's own instance addresses"),
  'drain.timeout': option(
    durationType(0, 3_600_000),
    '5s',
    'how long a stopping sidecar waits for running connections',
  ),
  instances: option(instancesType, '[]', 'instances on this host that are not containers'),
  services: option(servicesType, '{}', 'settings of services, for the whole mesh'),
  links: option(linksType, '[]', 'listeners on this host for consumers of a service'),
  'log.level': option(choiceType(logLevels), 'info', 'how much is logged'),
  'log.access': option(
    choiceType(['off', 'on']),
    'off',
    'whether each connection, or request of an HTTP service, is logged when it ends, with the same trace id on both hosts; at level info',
  ),
  'log.sample': option(
    integerType('number', 1, 1_000_000),
    '1',
    'one of so many connections or requests is logged, with all that failed; lines that stand for several say `sampled`',
  ),
  'log.pretty': option(
    choiceType(['auto', 'on', 'off']),
    'auto',
    'lines for people instead of JSON; auto: on a terminal',
  ),
} as const;

export type OptionKey = keyof typeof options;

/** What an option's value is, parsed. */
export type OptionValue<K extends OptionKey> = (typeof options)[K] extends Option<infer T> ? T : never;

export const optionKeys: readonly OptionKey[] = Object.keys(options).filter(isOptionKey);

export function isOptionKey(key: string): key is OptionKey {
  return Object.hasOwn(options, key);
}

/** `dns.image_labels` → `dns-image-labels`, without the two hyphens before it. */
export function flagOf(key: OptionKey): string {
  return key.replace(/[._]/g, '-');
}

/** `dns.listen` → `LEGATE_DNS_LISTEN`. */
export function variableOf(key: OptionKey): string {
  return `LEGATE_${key.replaceAll('.', '_').toUpperCase()}`;
}
