import type { LogLevel } from '../base/log.ts';
import type { Endpoint, Ipv4Range } from '../model/address.ts';
import type { CheckSpec } from '../model/check.ts';
import type { Protocol, Reach } from '../model/instance.ts';
import type { LinkListener } from '../model/link.ts';
import type { ServiceSettings } from '../model/service.ts';

/**
 * A complete, checked configuration: every default filled in, every text parsed. Durations are milliseconds. Parts get
 * only the slice they need. The table in `options.ts` is the one place that knows keys, types, defaults and words.
 */
export interface Config {
  readonly mesh: string;
  readonly host: string;
  readonly advertise: string;
  readonly dataDir: string;
  readonly domain: string;
  readonly store: StoreConfig;
  /** Whether the store is named; else a host that joined a mesh uses that one's. */
  readonly storeNamed: boolean;
  readonly docker: DockerConfig;
  readonly dns: DnsConfig;
  readonly admin: AdminConfig;
  readonly tunnel: { readonly listen: Endpoint };
  /** Where this host stands; undefined where it does not say. */
  readonly zone: string | undefined;
  /** Certificates from outside of the mesh's authority: PEM files, read again when they change; undefined: none. */
  readonly tls: { readonly ca: string; readonly cert: string; readonly key: string } | undefined;
  /** Of the authority's host: what opens its keys, where they are encrypted. */
  readonly authority: { readonly passphraseFile: string | undefined };
  /** Data-plane processes; 0: links are carried in the sidecar's own process. */
  readonly workers: number;
  readonly network: { readonly underlay: 'untrusted' | 'trusted' | 'encrypted'; readonly mode: 'off' };
  readonly vip: { readonly mode: 'auto' | 'off'; readonly range: Ipv4Range; readonly localRange: Ipv4Range };
  /** How long a stopping sidecar waits for running connections. */
  readonly drainTimeoutMs: number;
  readonly instances: readonly StaticInstance[];
  readonly services: ReadonlyMap<string, ServiceSettings>;
  /** Targets outside of the mesh by service, `host:port`; none where the file takes them back. */
  readonly external: ReadonlyMap<string, readonly string[]>;
  readonly links: readonly LinkListener[];
  readonly log: {
    readonly level: LogLevel;
    /** Whether each connection is logged at its end. */
    readonly access: boolean;
    /** One of so many of those that did not fail. */
    readonly sample: number;
    readonly pretty: 'auto' | 'on' | 'off';
  };
}

/** Which store holds the mesh, and how it is reached. */
export type StoreConfig = EmbeddedStoreConfig | EtcdStoreConfig | ConsulStoreConfig;

export interface EmbeddedStoreConfig {
  readonly kind: 'embedded';
  readonly leaseTtlMs: number;
  /** Where it is offered to other hosts, with etcd's API; undefined: to nobody. */
  readonly listen: Endpoint | undefined;
}

/** What the stores outside of the sidecar have in common. */
export interface RemoteStoreConfig {
  readonly leaseTtlMs: number;
  /** At least one; all of them members of one cluster. */
  readonly endpoints: readonly StoreUrl[];
  /** In front of all keys, without a slash at its end; the mesh's name follows. */
  readonly prefix: string;
  /** Files, read anew for each connection. Without `ca` the machine's own authorities are trusted. */
  readonly tls: { readonly ca?: string; readonly cert?: string; readonly key?: string };
  /** etcd: a line `user:password`; Consul: the token. */
  readonly credentialsFile: string | undefined;
}

export interface EtcdStoreConfig extends RemoteStoreConfig {
  readonly kind: 'etcd';
}

export interface ConsulStoreConfig extends RemoteStoreConfig {
  readonly kind: 'consul';
  /** Whether instances of reach `mesh` are registered in Consul's own catalog, too. */
  readonly mirror: boolean;
}

export interface StoreUrl {
  /** Whether it is https. */
  readonly secure: boolean;
  /** A name or an address, IPv6 without brackets. */
  readonly host: string;
  readonly port: number;
  /** As it was written. */
  readonly text: string;
}

export interface DockerConfig {
  readonly socket: string;
  readonly expose: 'labelled' | 'published' | 'off';
  /** Whether identity may come from labels and environment baked into the image. */
  readonly imageLabels: boolean;
}

export interface DnsConfig {
  readonly listen: readonly Endpoint[];
  readonly bridges: 'auto' | 'off';
  /** `auto`: the machine's resolv.conf; `off`: other zones are refused; else these, in order. */
  readonly upstream: 'auto' | 'off' | readonly Endpoint[];
  readonly ttlMs: number;
  /** Further zones in which the same names answer, e.g. `consul`. */
  readonly zones: readonly string[];
}

export interface AdminConfig {
  readonly listen: readonly AdminListen[];
  /** Always set: the default is `admin.token` in the data directory. */
  readonly tokenFile: string;
}

export type AdminListen = { readonly kind: 'unix'; readonly path: string } | ({ readonly kind: 'tcp' } & Endpoint);

/** An instance of the configuration file or of `legate register`. */
export interface StaticInstance {
  readonly name: string;
  readonly service: string;
  readonly address: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly reach: Reach;
  readonly tags: readonly string[];
  readonly meta: Readonly<Record<string, string>>;
  readonly weight: number;
  readonly checks: readonly CheckSpec[];
}
