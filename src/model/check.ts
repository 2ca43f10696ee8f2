export const checkKinds = ['docker', 'tcp', 'http', 'grpc', 'ttl', 'exec'] as const;
export type CheckKind = (typeof checkKinds)[number];

/** One health check of one instance. All durations are in milliseconds. */
export interface CheckSpec {
  readonly kind: CheckKind;
  /** http: the path asked for, with a leading slash. */
  readonly path?: string;
  /** http: the request method; default GET. */
  readonly method?: string;
  /** tcp and http: the port to ask when it is not the instance's own. */
  readonly port?: number;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** How many passes in a row bring a critical instance back. */
  readonly rise: number;
  /** How many failures in a row make an instance critical. */
  readonly fall: number;
}

export const checkDefaults = { intervalMs: 2000, timeoutMs: 1000, rise: 2, fall: 3 } as const;

/** The kinds that this version can run; the others are a fault that says so. */
export const supportedCheckKinds: readonly CheckKind[] = ['docker', 'tcp', 'http'];
