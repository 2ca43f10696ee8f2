import t from 'tap';
import { ManualClock } from '../../../base/clock.ts';
import { Conditions } from '../../../base/conditions.ts';
import { silentLog } from '../../../base/log.ts';
import { Metrics } from '../../../base/metrics.ts';
import { Refusals } from './refusals.ts';

function made() {
  const clock = new ManualClock();
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, clock, metrics);
  const living = new Map<string, string>();
  const livingHost = (name: string, address: string) => living.get(name) ?? living.get(address);
  const refusals = new Refusals({ clock, metrics, conditions, livingHost });
  return { clock, conditions, living, refusals, said: () => conditions.list().map(({ message }) => message) };
}

t.test('clients: one condition for each cause, ended after two quiet minutes', async (t) => {
  const { clock, conditions, refusals, said } = made();
  const address = '10.77.0.3';
  refusals.connection({ address, why: 'it speaks without TLS' });
  await clock.advance(60_000);
  refusals.connection({ address, why: 'it shows no certificate' });
  const revoked = { hostId: '33'.repeat(8), name: 'web-3' };
  for (const from of [address, '10.77.0.4']) refusals.connection({ address: from, why: 'revoked', revoked });
  t.same(said(), [
    'the store refuses a client from 10.77.0.3: it speaks without TLS',
    'the store refuses a client from 10.77.0.3: it shows no certificate',
    'host web-3 (3333333333333333) was revoked and still tries to reach the store, from 10.77.0.3',
  ]);
  t.match(conditions.list()[2]?.hint, /^if it is still running, stop the sidecar whose id is 3{16}; to have it back: /);
  await clock.advance(20_000);
  refusals.connection({ address, why: 'revoked', revoked });
  await clock.advance(20_000);
  t.equal(said().length, 3, 'it goes on');
  await clock.advance(10_000);
  t.equal(said().length, 2, 'a revoked host that was stopped is soon no more talked of');
  await clock.advance(10_000);
  t.equal(said().length, 1, 'the first has kept quiet');
  await clock.advance(60_000);
  t.same(said(), []);
});

t.test('a revoked host whose name or address another one has now is told apart from that', async (t) => {
  const { conditions, living, refusals } = made();
  const hint = (): string => {
    refusals.connection({
      address: '10.77.0.3',
      why: 'revoked',
      revoked: { hostId: '33'.repeat(8), name: 'web-3' },
    });
    return conditions.list()[0]?.hint ?? '';
  };
  living.set('10.77.0.3', '44'.repeat(8));
  t.match(hint(), /stop the sidecar whose id is 3{16}, not host 4{16}, which has its name or address now$/);
  living.clear();
  living.set('web-3', '33'.repeat(8));
  t.notMatch(hint(), /, not host/, 'it is still shown as living itself');
});

t.test('hosts: all that one tried, and how often', async (t) => {
  const { clock, conditions, refusals, said } = made();
  const by = { hostId: '22'.repeat(8), name: 'web-2' };
  const things = ['the policy', 'instances of web-1', 'instances of web-1', 'the record of web-1', 'join tokens'];
  refusals.request({ ...by, kind: 'policy', deed: 'write the policy' });
  t.same(said(), ['host web-2 tried to write the policy']);
  for (const thing of things) refusals.request({ ...by, kind: 'x', deed: `write ${thing}` });
  t.same(said(), ['host web-2 tried to write the policy, instances of web-1 and 2 more kinds']);
  t.equal(conditions.list()[0]?.count, 6);
  await clock.advance(120_000);
  t.same(said(), []);
  refusals.request({ ...by, kind: 'tokens', deed: 'read join tokens' });
  t.same(said(), ['host web-2 tried to read join tokens'], 'it begins anew');
  refusals.close();
  t.same(said(), []);
});
