import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import type { Account } from '../tcp/carried.ts';
import type { Route } from '../tcp/route.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpUpstream, type UpstreamUser } from './upstream.ts';

/** For whom instances are asked. */
export interface Asker {
  readonly account: Account;
  readonly peer: Endpoint | undefined;
  readonly environment: Omit<HttpEnvironment, 'mirrors'>;
}

/** A kept connection that was used since then (monotonic), which is the user's from now on. */
export function takeKept(
  asker: Asker,
  route: Route,
  backend: Backend,
  usedSinceMs: number,
  user: UpstreamUser,
): HttpUpstream | undefined {
  if (route.announcesClient) return undefined;
  const upstream = asker.environment.pool.take(backend, ownerOf(asker, route, backend), usedSinceMs);
  upstream?.use(user);
  return upstream;
}

/** Begins to connect; or says why there is no tunnel. */
export function dialFor(asker: Asker, route: Route, backend: Backend, user: UpstreamUser): HttpUpstream | string {
  const { environment, account, peer } = asker;
  const { tunnels, buffers, writes, pool, traceIds } = environment;
  const { service, name } = backend.instance;
  const { consumer } = account;
  const declared = service === account.service ? account.declared : account.declares(service);
  const client = peer ?? { address: '0.0.0.0', port: 0 };
  const way =
    tunnels === undefined
      ? undefined
      : { tunnels, head: { consumer, declared, service, instance: name, client, traceId: traceIds.next() } };
  const lost = (upstream: HttpUpstream): void => pool.lost(upstream);
  return HttpUpstream.dial({ backend, owner: ownerOf(asker, route, backend), buffers, writes, user, lost }, way);
}

function ownerOf({ account }: Asker, route: Route, backend: Backend): string {
  return backend.dial.via === 'direct' && !route.announcesClient ? '' : account.consumer;
}
