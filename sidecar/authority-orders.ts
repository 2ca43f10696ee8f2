import { LegateError } from '../src/base/errors.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Host } from '../src/model/host.ts';
import { isAuthorityElsewhere, type Policy } from '../src/model/policy.ts';
import type { AdminBackend } from './admin/backend.ts';
import type { AuthorityOffice } from './authority-office.ts';

const defaultTtlMs = 3_600_000;
const maxTtlMs = 30 * 24 * 3_600_000;
const maxUses = 9999;

/** What the admin API orders of the authority; on another host it says where that is. */
export function authorityOrders(parts: {
  readonly self: { readonly hostId: string };
  readonly office: AuthorityOffice | undefined;
  readonly policy: Observable<Policy | undefined>;
  readonly hosts: () => readonly Host[];
}): AdminBackend['authority'] {
  const office = (): AuthorityOffice => {
    const { self, policy } = parts;
    if (parts.office !== undefined && !isAuthorityElsewhere(policy.value, self.hostId)) return parts.office;
    throw notHere(parts.policy.value, parts.hosts());
  };
  return {
    document: () => office().document(),
    giveToken: ({ ttlMs = defaultTtlMs, uses = 1 }) => {
      const isTime = Number.isInteger(ttlMs) && ttlMs >= 1000 && ttlMs <= maxTtlMs;
      if (isTime && Number.isInteger(uses) && uses >= 1 && uses <= maxUses) return office().giveToken({ ttlMs, uses });
      const limits = `ttlMs from 1000 to ${maxTtlMs}, uses from 1 to ${maxUses}`;
      throw new LegateError('E_INVALID', `a token has whole numbers: ${limits}`);
    },
    rotate: ({ finish }) => office().rotate(finish === true),
  };
}

function notHere(policy: Policy | undefined, hosts: readonly Host[]): LegateError {
  if (policy === undefined) {
    return new LegateError('E_NOT_FOUND', 'this sidecar is in no mesh with an authority', {
      hint: 'legate init makes this host the authority of one; legate join lets it into one',
    });
  }
  const host = hosts.find(({ id }) => id === policy.authority);
  const where = host === undefined ? `host ${policy.authority}` : `${host.name} (${host.address})`;
  return new LegateError('E_NOT_FOUND', `the authority of this mesh is on ${where}, not here`, {
    hint: 'run the command there, or name its sidecar with --admin HOST:PORT --token-file FILE',
  });
}
