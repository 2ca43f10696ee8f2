import { isLoopback } from '../model/address.ts';
import type { StoreConfig } from './config.ts';
import type { Faults } from './fault.ts';
import type { Values } from './load.ts';
import { type OptionKey, type OptionValue, options } from './options.ts';

type Need = <K extends OptionKey>(key: K) => OptionValue<K>;

/** Options that mean something for some kinds only; written for another kind they are a fault. */
const onlyFor: readonly (readonly [key: OptionKey, kinds: readonly StoreConfig['kind'][]])[] = [
  ['store.listen', ['embedded']],
  ['store.endpoints', ['etcd', 'consul']],
  ['store.prefix', ['etcd', 'consul']],
  ['store.tls.ca', ['etcd', 'consul']],
  ['store.tls.cert', ['etcd', 'consul']],
  ['store.tls.key', ['etcd', 'consul']],
  ['store.credentials_file', ['etcd', 'consul']],
  ['store.mirror', ['consul']],
];

/** Of a session (Consul, `session/create`: TTL between 10s and 86400s). */
const consulMinTtlMs = 10_000;

/** The store's part of the configuration, and what its options contradict of each other. */
export function assembleStore(values: Values, need: Need, faults: Faults): StoreConfig {
  const kind = need('store.kind');
  const leaseTtlMs = need('store.lease_ttl');
  const listen = need('store.listen');
  const endpoints = need('store.endpoints');
  const prefix = need('store.prefix');
  const [ca, cert, key] = [need('store.tls.ca'), need('store.tls.cert'), need('store.tls.key')];
  const credentialsFile = need('store.credentials_file') || undefined;
  const mirror = need('store.mirror');
  for (const [option, kinds] of onlyFor) {
    if (kind === undefined || kinds.includes(kind) || isDefault(option, values.get(option))) continue;
    faults.add(
      values.placeOf(option),
      option,
      `means nothing with store.kind ${kind}: it is for ${kinds.join(' and ')}`,
    );
  }
  if (kind === 'embedded' || kind === undefined) {
    return { kind: 'embedded', leaseTtlMs, listen: listen || undefined };
  }
  checkRemote(values, kind, faults);
  if (kind === 'consul' && leaseTtlMs < consulMinTtlMs) {
    faults.add(values.placeOf('store.lease_ttl'), 'store.lease_ttl', `is below 10s, the shortest that Consul has`);
  }
  const remote = {
    leaseTtlMs,
    endpoints: endpoints?.map(({ value }) => value) ?? [],
    prefix,
    tls: { ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) },
    credentialsFile,
  };
  return kind === 'etcd' ? { kind, ...remote } : { kind, ...remote, mirror };
}

/** Whether the option says what it would say unwritten. */
function isDefault(option: OptionKey, value: unknown): boolean {
  const empty = Array.isArray(value) && value.length === 0;
  return value === undefined || empty || String(value) === options[option].default;
}

function checkRemote(values: Values, kind: string, faults: Faults): void {
  const endpoints = values.get('store.endpoints') ?? [];
  if (endpoints.length === 0 && values.get('store.endpoints') !== undefined) {
    faults.add(values.placeOf('store.kind'), 'store.endpoints', `is needed with store.kind ${kind}`);
  }
  const [first] = endpoints;
  for (const { value, at } of endpoints) {
    if (first === undefined || value.secure === first.value.secure) continue;
    faults.add(at, 'store.endpoints', 'http and https are mixed; all members are reached the same way');
    break;
  }
  const secure = first?.value.secure === true;
  for (const key of ['store.tls.ca', 'store.tls.cert', 'store.tls.key'] as const) {
    if (values.get(key) && first !== undefined && !secure) {
      faults.add(values.placeOf(key), key, 'is for https endpoints, and these are http');
    }
  }
  if (Boolean(values.get('store.tls.cert')) !== Boolean(values.get('store.tls.key'))) {
    const [has, lacks] = values.get('store.tls.cert') ? ['cert', 'key'] : ['key', 'cert'];
    faults.add(values.placeOf(`store.tls.${has}` as OptionKey), `store.tls.${has}`, `needs store.tls.${lacks}, too`);
  }
  const open = endpoints.find(({ value }) => !value.secure && !isLoopback(value.host));
  if (open === undefined || !values.get('store.credentials_file')) return;
  if (values.get('network.underlay') !== 'untrusted') return;
  faults.add(
    open.at,
    'store.endpoints',
    `credentials would go to ${open.value.text} in the clear: use https, or declare network.underlay trusted or encrypted`,
  );
}
