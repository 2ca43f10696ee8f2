import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { Latest } from '../src/base/feed.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { parseIpv4Range } from '../src/model/address.ts';
import type { DesiredInstance, InstanceRecord } from '../src/model/instance.ts';
import type { Policy } from '../src/model/policy.ts';
import { policyOf } from '../test/support/policies.ts';
import { waitFor } from '../test/support/wait.ts';
import { ExternalTargets, type LookUp, signExternal, withExternal } from './external-targets.ts';
import { ofTheMesh } from './own-instances.ts';

const range = parseIpv4Range('240.188.0.0/16');

function begin(t: import('tap').Test, configured: Record<string, string[]>, lookUp: LookUp) {
  const clock = new ManualClock();
  const conditions = new Conditions(silentLog, clock, new Metrics());
  const policy = new Latest<Policy | undefined>(undefined);
  const told: DesiredInstance[][] = [];
  const external = new ExternalTargets({
    ...{ clock, conditions, policy, lookUp },
    configured: new Map(Object.entries(configured)),
    ownRanges: range === undefined ? [] : [range],
    onChange: (change) => told.push(change.kind === 'reset' ? [...change.items] : []),
  });
  const ended = new AbortController();
  const run = external.run(ended.signal);
  t.teardown(() => {
    ended.abort();
    return run;
  });
  const names = (): string[] => (told.at(-1) ?? []).map(({ name }) => name);
  return { clock, conditions, policy, told, names };
}

t.test('names are resolved again after their TTL, and what is known stays while nobody answers', async (t) => {
  let answer: string[] | undefined = ['192.0.2.2', '192.0.2.1'];
  let asked = 0;
  const b = begin(t, { mail: ['smtp.example.com:25', '[2001:db8::1]:26'] }, async () => {
    asked += 1;
    if (answer === undefined) throw new Error('queryA ETIMEOUT smtp.example.com');
    return { addresses: answer, ttlMs: 20_000 };
  });
  await waitFor('the addresses', () => b.names().length === 3);
  t.same(b.names(), ['mail-192.0.2.1-25', 'mail-192.0.2.2-25', 'mail-2001:db8::1-26']);
  t.match(b.told.at(-1)?.[0], {
    ...{ service: 'mail', address: '192.0.2.1', port: 25, reach: 'host', source: 'external:smtp.example.com:25' },
    checks: [{ kind: 'tcp' }],
  });
  answer = ['192.0.2.9'];
  await b.clock.advance(19_000);
  t.equal(asked, 1);
  await b.clock.advance(1100);
  await waitFor('the other one', () => b.names().includes('mail-192.0.2.9-25'));
  t.equal(b.names().length, 2);
  answer = undefined;
  await b.clock.advance(21_000);
  const told = await waitFor('the condition', () => b.conditions.list()[0]);
  t.match(told, { id: 'external.resolve.smtp.example.com', message: /cannot be resolved.*former addresses go on/ });
  t.ok(b.names().includes('mail-192.0.2.9-25'));
  answer = ['127.0.0.1', '240.188.0.7', '169.254.169.254', '::1', 'x'];
  await b.clock.advance(6000);
  await waitFor('the other condition', () =>
    b.conditions.list()[0]?.message.includes('only to addresses of this host'),
  );
  t.ok(b.names().includes('mail-192.0.2.9-25'), 'a name does not lead into this host');
  answer = ['192.0.2.9', '192.0.2.9', '127.0.0.1'];
  await b.clock.advance(31_000);
  await waitFor('all is well', () => b.conditions.list().length === 0);
});

t.test('what the policy says holds, but for what the own file says', async (t) => {
  const b = begin(t, { mail: ['127.0.0.1:25'] }, async () => ({ addresses: [], ttlMs: 0 }));
  await waitFor('its own', () => b.names().length === 1);
  t.same(b.names(), ['mail-127.0.0.1-25'], 'an address that is written is meant');
  const external = [
    { service: 'ldap', targets: ['192.0.2.3:389'] },
    { service: 'mail', targets: ['192.0.2.4:25'] },
  ];
  b.policy.set(policyOf({ external }));
  await waitFor('both', () => b.names().length === 2);
  t.same(b.names(), ['ldap-192.0.2.3-389', 'mail-127.0.0.1-25']);
  b.policy.set(policyOf());
  await waitFor('its own', () => b.names().length === 1);
});

t.test('the file of the authority goes into the policy where it differs, and takes back', async (t) => {
  const policy = new Latest<Policy | undefined>(undefined);
  let changes = 0;
  const authority = {
    change: async (by: (policy: Policy) => Policy): Promise<Policy> => {
      changes += 1;
      const next = by(policy.value ?? policyOf());
      policy.set(next);
      return next;
    },
  };
  const kept = { service: 'ldap', targets: ['192.0.2.3:389'] };
  const configured = new Map([
    ['mail', ['192.0.2.4:25']],
    ['web', []],
  ]);
  const stop = signExternal({ authority, policy, configured, log: silentLog });
  t.equal(changes, 0, 'without a policy there is nothing to change');
  policy.set(policyOf({ external: [{ service: 'web', targets: ['192.0.2.5:80'] }, kept] }));
  await waitFor('the change', () => changes === 1);
  t.same(policy.value?.external, [kept, { service: 'mail', targets: ['192.0.2.4:25'] }]);
  policy.set({ ...policyOf(), external: policy.value?.external ?? [] });
  t.equal(changes, 1);
  t.equal(withExternal(policyOf(), new Map()).external.length, 0);
  stop();
});

t.test('the store is never told of them', (t) => {
  const record = (name: string, source: string): InstanceRecord => ({ name, source }) as InstanceRecord;
  const [a, x] = [record('a', 'file'), record('x', 'external:smtp.example.com:25')];
  t.same(ofTheMesh({ kind: 'reset', items: [a, x], revision: '' }), { kind: 'reset', items: [a], revision: '' });
  t.same(ofTheMesh({ kind: 'delta', puts: [a, x], deletes: ['b'], revision: '' }), {
    ...{ kind: 'delta', puts: [a], deletes: ['b', 'x'], revision: '' },
  });
  t.end();
});
