export const checkKinds = ['docker', 'tcp', 'http', 'grpc', 'ttl', 'exec'] as const;
export type CheckKind = (typeof checkKinds)[number];

/** Statuses that a check may begin with before its first result, instead of `starting`. */
export const initialStatuses = ['passing', 'warning', 'critical'] as const;
export type InitialStatus = (typeof initialStatuses)[number];

/** One health check of one instance. All durations are in milliseconds. */
export interface CheckSpec {
  readonly kind: CheckKind;
  /** http: the path asked for, with a leading slash. */
  readonly path?: string;
  /** http: the request method; default GET. */
  readonly method?: string;
  /** tcp, http and grpc: the port to ask when it is not the instance's own. */
  readonly port?: number;
  /** http and grpc: over TLS, with the certificate verified (against the system's authorities) or taken as it comes. */
  readonly tls?: 'verify' | 'any-certificate';
  /** grpc: the service asked for (grpc.health.v1 HealthCheckRequest.service); absent: the server as a whole. */
  readonly grpcService?: string;
  /** exec: what `/bin/sh -c` runs inside the container. */
  readonly command?: string;
  /** exec: the exit status that warns instead of failing; absent: none does. 0 always passes. */
  readonly warningExit?: number;
  /** Before the first result; absent: `starting`, which takes no traffic. */
  readonly initialStatus?: InitialStatus;
  /** How long the instance may be critical before it leaves the registry; it comes back when it passes again. */
  readonly deregisterAfterMs?: number;
  /** Between two questions; for ttl how long one refresh holds. */
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** How many passes in a row bring a critical instance back. */
  readonly rise: number;
  /** How many failures in a row make an instance critical. */
  readonly fall: number;
}

export const checkDefaults = { intervalMs: 2000, timeoutMs: 1000, rise: 2, fall: 3 } as const;
