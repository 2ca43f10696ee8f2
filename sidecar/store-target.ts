import { LegateError } from '../src/base/errors.ts';
import { printable, truncate } from '../src/base/text.ts';
import type { Config, StoreConfig } from '../src/config/config.ts';
import { loadConfig } from '../src/config/load.ts';
import { formatEndpoint } from '../src/model/address.ts';
import type { MovedTo } from '../src/registrar/store-marker.ts';
import { type Keys, keysOf } from '../src/store/keys.ts';

/** Which store, and what it takes to reach it; all as text, as it came from outside. */
export interface StoreTarget {
  /** `https://h:2379[,https://h2:2379…]` for etcd, `consul+http://h:8500` for Consul, `embedded[://address:port]`. */
  readonly to: string;
  readonly prefix?: string | undefined;
  readonly ca?: string | undefined;
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  readonly credentialsFile?: string | undefined;
}

const defaultPrefix = '/legate';
const maxTargetLength = 4096;

/** Where a store has the mesh's keys. */
export function storeKeys(mesh: string, store: StoreConfig): Keys {
  return keysOf(mesh, prefixOf(store));
}

function prefixOf(store: StoreConfig): string {
  return store.kind === 'embedded' ? defaultPrefix : store.prefix;
}

/** `etcd at http://10.77.0.1:2379`, for people. */
export function storeText(store: StoreConfig): string {
  if (store.kind === 'embedded') return 'the embedded store';
  return `${store.kind} at ${store.endpoints.map(({ text }) => text).join(', ')}`;
}

/**
 * The configuration of a store that somebody names, checked as the file's would be; what it does not say is as `like`
 * has it. E_INVALID with every fault.
 */
export function storeConfigOf(target: StoreTarget, like: Config): StoreConfig {
  const { to, prefix, ca, cert, key, credentialsFile } = target;
  for (const text of [to, prefix, ca, cert, key, credentialsFile]) {
    if (text !== undefined && (typeof text !== 'string' || text.length > maxTargetLength)) {
      throw new LegateError('E_INVALID', 'the target is described by texts', {
        hint: 'legate store copy -h shows them',
      });
    }
  }
  const [, embedded, listen] = /^(embedded)(?::(?:\/\/(.+))?)?$/.exec(to) ?? [];
  const isConsul = to.startsWith('consul+');
  const kind = embedded ?? (isConsul ? 'consul' : 'etcd');
  const written: Record<string, string | undefined> = {
    'store.endpoints': embedded === undefined ? to.replaceAll('consul+', '') : undefined,
    'store.listen': listen,
    'store.prefix': prefix,
    'store.tls.ca': ca,
    'store.tls.cert': cert,
    'store.tls.key': key,
    'store.credentials_file': credentialsFile,
  };
  const result = loadConfig({
    env: {},
    flags: {
      mesh: like.mesh,
      host: like.host,
      advertise: like.advertise,
      'network.underlay': like.network.underlay,
      'store.kind': kind,
      'store.lease_ttl': `${like.store.leaseTtlMs}ms`,
      ...written,
    },
    defaults: { hostname: like.host, advertise: () => like.advertise },
  });
  if ('config' in result) return result.config.store;
  const faults = result.faults.map(({ text }) => text).join('; ');
  throw new LegateError('E_INVALID', `the target ${printable(truncate(to, 100))} is none: ${faults}`, {
    hint: 'write https://HOST:PORT for etcd, consul+http://HOST:PORT for Consul, embedded for the store in this sidecar',
  });
}

/** What may be said of a store to everybody. `secure`: this host has credentials, so that its own store speaks TLS. */
export function movedTo(store: StoreConfig, hostId: string, secure = false): MovedTo {
  if (store.kind === 'embedded') {
    const endpoints =
      store.listen === undefined ? [] : [`${secure ? 'https' : 'http'}://${formatEndpoint(store.listen)}`];
    return { kind: 'embedded', endpoints, prefix: defaultPrefix, hostId, tls: false, credentials: false };
  }
  const { kind, endpoints, prefix, tls, credentialsFile } = store;
  return {
    kind,
    endpoints: endpoints.map(({ text }) => text),
    prefix,
    tls: tls.ca !== undefined || tls.cert !== undefined,
    credentials: credentialsFile !== undefined,
  };
}

/** What to write into the file of this host for a store that the mesh has moved to, on one line of YAML. */
export function configLine(to: MovedTo, hostId: string): string {
  const { kind, endpoints, prefix, tls, credentials } = to;
  const quoted = endpoints.map((each) => `"${truncate(printable(each), 200)}"`).join(', ');
  if (kind === 'embedded' && to.hostId === hostId) {
    const listen = endpoints[0]?.replace(/^https?:\/\//, '');
    return `store: {kind: embedded${listen === undefined ? '' : `, listen: "${printable(listen)}"`}}`;
  }
  const parts = [`kind: ${kind === 'consul' ? 'consul' : 'etcd'}`, `endpoints: [${quoted}]`];
  if (prefix !== defaultPrefix) parts.push(`prefix: ${printable(prefix)}`);
  if (tls) parts.push('tls: {ca: FILE, cert: FILE, key: FILE}');
  if (credentials) parts.push('credentials_file: FILE');
  return `store: {${parts.join(', ')}}`;
}

/** The target as this host would open it; undefined when it is not to be reached without more than the marker says. */
export function followedConfig(to: MovedTo, like: Config, hostId: string): StoreConfig | undefined {
  if (to.credentials) return undefined;
  const own = like.store.kind === 'embedded' ? undefined : like.store.tls;
  if (to.tls && own?.ca === undefined && own?.cert === undefined) return undefined;
  const isHere = to.kind === 'embedded' && to.hostId === hostId;
  if (!isHere && to.endpoints.length === 0) return undefined;
  const [first = ''] = to.endpoints;
  const list = to.endpoints.join(',');
  const scheme = to.kind === 'consul' ? `consul+${list}` : list;
  const target: StoreTarget = isHere
    ? { to: first === '' ? 'embedded' : first.replace(/^https?:/, 'embedded:') }
    : { to: scheme, prefix: to.prefix, ...(first.startsWith('https:') && to.kind !== 'embedded' ? own : {}) };
  try {
    return storeConfigOf(target, like);
  } catch {
    return undefined;
  }
}
