import { create } from '@bufbuild/protobuf';
import type { EtcdStoreConfig, StoreUrl } from '../../config/config.ts';
import { AuthenticateRequestSchema, RangeRequestSchema, StatusRequestSchema } from '../etcd-api/gen/etcd_pb.ts';
import type { StoreTrust } from '../trust.ts';
import { type CallOptions, Connection } from './connection.ts';
import { closedAtOnce, EtcdFailure } from './failure.ts';
import { type Login, readSecrets } from './files.ts';
import { api, type Head, headOf, rangeOf } from './messages.ts';

/** A connection that can be used, and what its member said of itself. */
export interface Attempted {
  readonly connection: Connection;
  /** `fresh`: the revision is that of the cluster now, not what one member has heard so far. */
  readonly head: Head & { readonly fresh: boolean };
  /** Its alarms, in etcd's words. */
  readonly alarms: readonly string[];
}

/** How long a member may take for each of the steps. */
const stepLimitMs = 3000;

/**
 * Connects to a member and finds out whether it can be used: it is etcd, takes our credentials, and agrees with the
 * others. Rejects with EtcdFailure, LegateError for files that cannot be used, or the signal's reason.
 */
export async function attempt(
  endpoint: StoreUrl,
  config: EtcdStoreConfig,
  signal: AbortSignal,
  trust?: StoreTrust,
): Promise<Attempted> {
  const { context, identity, credentials } = readSecrets(config, trust);
  const connection = new Connection(endpoint, context, identity);
  const options = { timeoutMs: stepLimitMs, signal };
  try {
    const status = await connection.call(api.status, create(StatusRequestSchema), options);
    const head = headOf(status.header);
    if (status.leader === 0n) throw new EtcdFailure('no-leader', 'the member has no leader');
    if (credentials !== undefined) await introduce(connection, credentials, options);
    return {
      connection,
      head: (await agreed(connection, config, options)) ?? { ...head, fresh: false },
      alarms: status.errors,
    };
  } catch (error) {
    connection.end(new EtcdFailure('unreachable', 'the connection was given up'));
    if (!(error instanceof EtcdFailure)) throw error;
    if (error.message.includes(closedAtOnce))
      throw new EtcdFailure(error.kind, error.message, hintWhenClosed(connection));
    if (error.kind !== 'response-too-large') throw error;
    // Nothing that is asked here has a large answer: the bytes are of another protocol.
    throw new EtcdFailure('not-etcd', 'what answers does not speak gRPC');
  }
}

/** A store that demands certificates says nothing to those whom it refuses. */
function hintWhenClosed({ endpoint, identity }: Connection): string | undefined {
  if (identity !== undefined) {
    return 'legate status on the host of the store says why it refuses this one: revoked, expired or of another mesh';
  }
  if (endpoint.secure) return undefined;
  return `if that is the store of another sidecar, it may demand certificates: write https://${endpoint.host}:${endpoint.port} in store.endpoints, after legate join here`;
}

/** Fetches a token with what the credentials file says now. Rejects as `attempt` does. */
export async function authenticate(
  connection: Connection,
  config: EtcdStoreConfig,
  options: CallOptions,
): Promise<void> {
  const { credentials } = readSecrets(config);
  if (credentials !== undefined) await introduce(connection, credentials, options);
}

async function introduce(connection: Connection, { user, password }: Login, options: CallOptions): Promise<void> {
  try {
    const request = create(AuthenticateRequestSchema, { name: user, password });
    const { token } = await connection.call(api.authenticate, request, { ...options, anonymous: true });
    connection.token = token;
  } catch (error) {
    // A cluster that asks nobody for a password takes everybody.
    if (error instanceof EtcdFailure && error.message.includes('authentication is not enabled')) return;
    throw error;
  }
}

/**
 * A read that needs more than half of the members: one that is cut off does not answer it. Undefined when this user may
 * not read all of the prefix, which etcd says only after the others agreed.
 */
async function agreed(
  connection: Connection,
  { prefix }: EtcdStoreConfig,
  options: CallOptions,
): Promise<(Head & { fresh: boolean }) | undefined> {
  try {
    const request = create(RangeRequestSchema, { ...rangeOf(`${prefix}/`), limit: 1n, keysOnly: true });
    const { header } = await connection.call(api.range, request, options);
    return { ...headOf(header), fresh: true };
  } catch (error) {
    if (error instanceof EtcdFailure && error.kind === 'denied') return undefined;
    throw error;
  }
}
