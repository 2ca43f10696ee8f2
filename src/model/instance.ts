import type { Endpoint } from './address.ts';
import type { CheckSpec } from './check.ts';

export const protocols = ['tcp', 'udp', 'http', 'http2', 'grpc'] as const;
export type Protocol = (typeof protocols)[number];

/** What carries a protocol: `udp` for udp, `tcp` for all others. */
export function transportOf(protocol: Protocol): 'tcp' | 'udp' {
  return protocol === 'udp' ? 'udp' : 'tcp';
}

/** From where an instance's address can be dialled: only from its own host, or from every host. */
export type Reach = 'host' | 'mesh';

/** `lost`: its host's lease has lapsed. It is derived by readers and never stored. */
export const statuses = ['starting', 'passing', 'warning', 'critical', 'lost'] as const;
export type Status = (typeof statuses)[number];
export type StoredStatus = Exclude<Status, 'lost'>;

/**
 * One endpoint of a service as its host stores it at `instances/<host id>/<name>`: one record per service and container
 * or static entry.
 */
export interface InstanceRecord {
  /** Unique on its host: `<container id, 12>-<port>[-udp]`, `<service>-<port>[-udp]`, or chosen. */
  readonly name: string;
  readonly service: string;
  /** What its own host dials. */
  readonly address: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly reach: Reach;
  /** What other hosts may dial, if anything else than `address:port`; makes the reach `mesh`. */
  readonly published?: Endpoint;
  readonly tags: readonly string[];
  readonly meta: Readonly<Record<string, string>>;
  /** 0 to 65535; 0 takes no traffic while others exist. */
  readonly weight: number;
  readonly status: StoredStatus;
  readonly draining: boolean;
  /** The last check's output, printable, at most 500 characters; empty when it has no check. */
  readonly output: string;
  /** Where it comes from: `docker:<container name>`, `file`, `api`, or `external:<target>`. */
  readonly source: string;
  /**
   * Changes when the thing behind the name was replaced or restarted (a container's start time, for one): its health is
   * then unknown again. A sidecar that restarts takes the stored status over when this is the same.
   */
  readonly incarnation: string;
}

/** An instance as the catalog shows it: the record with its host's identity and what the catalog derives. */
export interface Instance extends Omit<InstanceRecord, 'status'> {
  /** `<host name>/<name>`. */
  readonly id: string;
  readonly host: string;
  readonly hostId: string;
  readonly status: Status;
  readonly revision: string;
}

/**
 * What a source on this host (Docker, the file, the API) wants registered, before health is known. A pure function of
 * labels and inspect data, or of a file's entry.
 */
export interface DesiredInstance extends Omit<InstanceRecord, 'status' | 'output'> {
  /** Empty: passing from the start. */
  readonly checks: readonly CheckSpec[];
  /** What Docker's own HEALTHCHECK says, for checks of kind `docker`. */
  readonly reported?: { readonly status: StoredStatus; readonly output: string };
  /** The container's id, for checks of kind `exec`. */
  readonly container?: string;
  /** Why nothing can answer at present (a paused container): critical with this text, and nobody asks. */
  readonly suspended?: string;
}

/** Something that asked to be registered and cannot be: shown in `legate services` and logged once. */
export interface Refusal {
  /** What asked: `docker:<container name>`, `file`, `api`. */
  readonly source: string;
  /** The service it was for, where that is known. */
  readonly service?: string;
  /** Why, with the value at fault, one line. */
  readonly reason: string;
  readonly hint: string;
}

/** The first word of the source of what is outside of the mesh. */
export const externalSource = 'external';

/** Whether it is a target outside of the mesh: each host finds and dials it by itself, and tells no other of it. */
export function isExternal({ source }: Pick<InstanceRecord, 'source'>): boolean {
  return source.startsWith(`${externalSource}:`);
}

/** `warning` is usable: the instance says that it is troubled, not that it refuses. */
export function isUsableStatus(status: Status): boolean {
  return status === 'passing' || status === 'warning';
}

/** The default name of a static instance. */
export function defaultInstanceName(service: string, port: number, protocol: Protocol): string {
  return `${service}-${port}${protocol === 'udp' ? '-udp' : ''}`;
}
