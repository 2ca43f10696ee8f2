import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import type { Account } from '../tcp/carried.ts';
import type { Route } from '../tcp/route.ts';
import type { Http2Environment } from './environment.ts';
import { InstanceSession } from './instance-session.ts';

/** For whom instances are asked. */
export interface Asker {
  readonly account: Account;
  readonly peer: Endpoint | undefined;
  readonly environment: Omit<Http2Environment, 'mirrors'>;
  /** Those who share connections to instances that are reached directly, or are told for whom they are. */
  readonly ownerFor: (route: Route) => string;
}

/** A connection with room for another stream, which may yet have to open; `full`, or why there is no tunnel. */
export function sessionFor(asker: Asker, route: Route, backend: Backend): InstanceSession | string {
  const { environment, account, peer } = asker;
  const { tunnels, pool, traceIds, clock } = environment;
  const owner = backend.dial.via === 'direct' || route.announcesClient ? asker.ownerFor(route) : account.consumer;
  const kept = pool.take(backend, owner);
  if (kept !== undefined) return kept;
  const { service, name } = backend.instance;
  const { consumer } = account;
  const declared = service === account.service ? account.declared : account.declares(service);
  const client = peer ?? { address: '0.0.0.0', port: 0 };
  const head = { consumer, declared, service, instance: name, client, traceId: traceIds.next() };
  const session = InstanceSession.dial(
    {
      backend,
      owner,
      nowMs: () => clock.monotonicMs(),
      closed: (which) => pool.remove(which),
      limit: pool.limitOf(backend),
      limited: (limit) => pool.limited(backend, limit),
      announced: route.announcesClient ? { client: peer } : undefined,
    },
    tunnels === undefined ? undefined : { tunnels, head },
  );
  if (typeof session !== 'string') pool.add(session);
  return session;
}
