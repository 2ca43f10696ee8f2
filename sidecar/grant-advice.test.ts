import t from 'tap';
import { Conditions } from '../src/base/conditions.ts';
import { Latest } from '../src/base/feed.ts';
import type { Ungranted } from '../src/catalog/rights.ts';
import { emptySnapshot } from '../src/catalog/snapshot.ts';
import { grantBook, type Policy } from '../src/model/policy.ts';
import { policyOf } from '../test/support/policies.ts';
import { parts } from '../test/support/records.ts';
import { grantAdvice, grantsTogether, type Offer } from './grant-advice.ts';
import { watchRights } from './rights-watch.ts';

/** `web@2`: host-2 has instances of web. */
function offer(text: string): Offer {
  const [service = '', n = ''] = text.split('@');
  return { hostId: n.repeat(16), host: `host-${n}`, service };
}

function granting(...texts: readonly string[]): Policy {
  return policyOf({ grants: texts.map(offer).map(({ hostId, service }) => ({ hostId, service, setAtMs: 1 })) });
}

const cases: readonly {
  readonly what: string;
  readonly granted: readonly string[];
  readonly wanted: string;
  readonly stay: readonly string[];
  readonly advice: RegExp;
}[] = [
  {
    what: 'a service that is granted to others already',
    granted: ['db@1', 'web@2'],
    wanted: 'db@2',
    stay: ['db@1', 'web@2'],
    advice: /: legate host allow host-2 db$/,
  },
  {
    what: 'the first grant of a service: whoever has it, needs one as well',
    granted: ['db@2'],
    wanted: 'web@2',
    stay: ['web@3', 'db@2'],
    advice: /: legate host allow host-2 web && legate host allow host-3 web, which leaves nobody else out$/,
  },
  {
    what: 'and with its first grant such a host needs one for all that it has',
    granted: ['db@2'],
    wanted: 'web@2',
    stay: ['web@3', 'mail@3', 'mail@4'],
    advice: /host-2 web && .+host-3 web && .+host-3 mail && .+host-4 mail, which/,
  },
  {
    what: 'too many: a grant for any service names none',
    granted: ['db@2'],
    wanted: 'web@2',
    stay: ['web@3', 'web@4', 'web@5', 'web@6'],
    advice: /: legate host allow host-2 '\*', which leaves nobody else out$/,
  },
];

for (const { what, granted, wanted, stay, advice } of cases) {
  t.test(`advice that takes nobody out: ${what}`, async (t) => {
    const policy = granting(...granted);
    const offers = stay.map(offer);
    t.match(grantAdvice(policy, offer(wanted), offers), advice);
    const together = grantsTogether(policy, [offer(wanted)], offers) ?? [{ ...offer(wanted), service: '*' }];
    const given = together.map(({ hostId, service }) => ({ hostId, service, setAtMs: 1 }));
    const can = grantBook({ ...policy, grants: [...policy.grants, ...given] });
    for (const { hostId, service } of [offer(wanted), ...offers]) t.ok(can(hostId, service), `${hostId} ${service}`);
  });
}

t.test('a host without a grant says so of itself, and of others', async (t) => {
  const { log, clock, metrics } = parts();
  const conditions = new Conditions(log, clock, metrics);
  const policy = new Latest<Policy | undefined>(granting('db@1'));
  const ungranted = new Latest<readonly Ungranted[]>([]);
  const self = { hostId: offer('db@2').hostId, hostName: 'host-2' };
  const end = watchRights({ self, policy, snapshots: new Latest(emptySnapshot), ungranted, conditions });
  t.teardown(end);
  t.strictSame(conditions.list(), []);
  const kept = (text: string): Ungranted => ({ ...offer(text), id: `${offer(text).host}/one` });
  ungranted.set([kept('db@2'), kept('db@3')]);
  await Promise.resolve();
  const told = [...conditions.list()].sort((a, b) => (a.id < b.id ? -1 : 1));
  t.match(told, [
    { message: /this host has no grant to offer db: .+ left out everywhere, here too/, hint: /allow host-2 db$/ },
    { message: 'host-3 offers db without a grant: that is left out', hint: /allow host-3 db$/ },
  ]);
  ungranted.set([]);
  await Promise.resolve();
  t.strictSame(conditions.list(), []);
});
