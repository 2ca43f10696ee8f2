import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Latest } from '../src/base/feed.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { type Caller, type Callers, noCallers } from '../src/model/caller.ts';
import { decide, grantBook, lockedPolicy, mayOffer, type Policy } from '../src/model/policy.ts';
import { intents, policyOf } from '../test/support/policies.ts';
import { waitFor } from '../test/support/wait.ts';
import { ask, dial, instanceOf, naming, outcome, serviceOf, startBackend, startBed } from './link-plane.fixture.ts';
import { Permission } from './permission.ts';

t.test('the most particular intent decides, then declared links, then the default', async (t) => {
  const rules = (...lines: string[]): Partial<Policy> => ({ default: 'deny', intents: intents(...lines) });
  const cases: [Partial<Policy> | undefined, string, boolean, string][] = [
    [undefined, 'web db', true, 'no policy'],
    [{}, 'web db', true, 'default'],
    [{ default: 'deny' }, 'web db', false, 'default'],
    [rules('allow web db'), 'web db', true, 'intent'],
    [rules('allow web db'), 'api db', false, 'default'],
    [rules('allow * db', 'deny web db'), 'web db', false, 'intent'],
    [rules('deny web db', 'allow * db'), 'api db', true, 'intent'],
    [rules('allow web *', 'deny * db'), 'web db', false, 'intent'],
    [rules('allow web *', 'deny * *'), 'web db', true, 'intent'],
    [rules('deny web *', 'allow * *'), 'host db', true, 'intent'],
    [rules('allow * *'), 'anonymous db', true, 'intent'],
    [{ default: 'deny' }, '+web db', true, 'link'],
    [{ default: 'deny', fromLinks: false }, '+web db', false, 'default'],
    [rules('deny * db'), '+web db', false, 'intent'],
    [rules('deny web *'), '+web db', false, 'intent'],
    [rules('deny * *'), '+web db', true, 'link'],
    [rules('deny web db'), '+web db', false, 'intent'],
    [{ default: 'deny', mode: 'learn' }, 'web db', true, 'learning'],
    [{ ...rules('deny web db'), mode: 'learn' }, '+web db', true, 'learning'],
    [{ ...rules('allow web db'), mode: 'learn' }, 'web db', true, 'intent'],
    [lockedPolicy('home'), '+web db', false, 'locked'],
  ];
  for (const [fields, pair, allowed, by] of cases) {
    const [consumer = '', service = ''] = pair.replace('+', '').split(' ');
    const policy = fields === undefined ? undefined : policyOf(fields);
    const decision = decide(policy, { consumer, service, declared: pair.startsWith('+') });
    t.match(decision, { allowed, by }, `${pair} with ${JSON.stringify(fields)}`);
  }
});

t.test('grants: who is named, host or service, is held to them', async (t) => {
  const [one, two, three] = ['1', '2', '3'].map((digit) => digit.repeat(16)) as [string, string, string];
  const setAtMs = 1;
  const grants = [
    { hostId: one, service: 'db', setAtMs },
    { hostId: two, service: '*', setAtMs },
  ];
  const cases: [string, string, boolean][] = [
    [one, 'db', true],
    [one, 'web', false],
    [one, 'anonymous', true],
    [one, 'host', true],
    [two, 'db', true],
    [two, 'web', true],
    [three, 'db', false],
    [three, 'web', true],
  ];
  const policy = policyOf({ grants });
  const book = grantBook(policy);
  for (const [hostId, service, may] of cases) {
    t.equal(mayOffer(policy, hostId, service), may, `${hostId} ${service}`);
    t.equal(book(hostId, service), may, 'the same from the book');
  }
  t.ok(grantBook(undefined)(one, 'web'));
  t.ok(grantBook(policyOf())(one, 'web'));
});

t.test(
  'decisions are remembered until the policy changes, and refusals counted and logged once a minute',
  async (t) => {
    const policy = new Latest<Policy | undefined>(policyOf({ default: 'deny' }));
    const metrics = new Metrics();
    const clock = new ManualClock();
    const lines: object[] = [];
    const log = { ...silentLog, warn: (_: string, fields?: object) => void lines.push(fields ?? {}) };
    const learned: string[] = [];
    const onLearned = (pair: { consumer: string; service: string }): void => {
      learned.push(`${pair.consumer} ${pair.service}`);
    };
    const permission = new Permission({ policy, metrics, clock, log, onLearned });
    const asked = { consumer: 'web', service: 'db', declared: false };
    const first = permission.permits(asked);
    t.match(first, { allowed: false, by: 'default' });
    t.equal(permission.permits({ ...asked }), first, 'the very same decision');
    t.match(permission.denied(asked, first), {
      consumer: 'web',
      by: 'default',
      intent: null,
      message: /default is deny/,
    });
    permission.denied(asked, first);
    t.equal(lines.length, 1);
    await clock.advance(61_000);
    permission.denied(asked, first);
    t.match(lines, [{ 'link.consumer': 'web' }, { 'link.denied_before': 1 }]);
    for (let each = 0; each < 2 * Permission.maxLogged; each += 1) {
      permission.denied({ ...asked, consumer: `c${each}` }, first);
    }
    t.ok(lines.length <= Permission.maxLogged + 3, `bounded: ${lines.length} lines`);
    t.match(await metrics.exposition(), /legate_link_denied_total\{service="db",consumer="web",by="default"\} 3/);

    policy.set(policyOf({ mode: 'learn', intents: intents('deny web db') }));
    t.match(permission.permits(asked), { allowed: true, by: 'learning' });
    t.strictSame(learned, ['web db']);
    const hostId = '1'.repeat(16);
    policy.set(
      policyOf({
        grants: [{ hostId, service: 'db', setAtMs: 1 }],
        revoked: [{ hostId: '2'.repeat(16), name: 'b', setAtMs: 1 }],
      }),
    );
    t.match(permission.permitsFrom(hostId, asked), { allowed: false, by: 'grant' });
    t.match(permission.permitsFrom(hostId, { ...asked, consumer: 'db' }), { allowed: true });
    t.match(permission.permitsFrom('2'.repeat(16), asked), { allowed: false, by: 'grant' }, 'it is revoked');
  },
);

t.test('links refuse by policy, and cut what a new one forbids', async (t) => {
  const { port } = await startBackend(t, naming('one'));
  const quiet = await startBackend(t, () => undefined);
  const policy = new Latest<Policy | undefined>(policyOf());
  const caller: Caller = {
    consumer: 'web',
    container: 'web-1',
    links: [{ alias: 'q', service: 'quiet', port: undefined }],
  };
  const bound = PersistentMap.from([['127.0.0.1', caller]]);
  const callers: Callers = { ...noCallers, table: new Latest({ off: undefined, bound }) };
  const listen = { address: '127.0.0.1', port: 0 };
  const permission = new Permission({ policy, metrics: new Metrics(), clock: new ManualClock(), log: silentLog });
  const bed = await startBed(t, {
    callers,
    permission,
    links: [
      { service: 'db', listen, consumer: 'api' },
      { service: 'quiet', listen },
    ],
    services: [
      serviceOf([instanceOf({ name: 'one', port })]),
      serviceOf([instanceOf({ name: 'q', port: quiet.port, service: 'quiet' })], { name: 'quiet' }),
    ],
  });
  t.equal(await ask(t, bed.port), 'one');
  const running = dial(t, bed.plane.listenerOf('quiet')?.port ?? 0);
  const ended = outcome(running);
  await waitFor('it is carried', () => quiet.sockets.size === 1);

  policy.set(policyOf({ default: 'deny' }));
  t.equal(await ask(t, bed.port), 'ECONNRESET', 'a listener of the configuration is no permission');
  t.equal(bed.plane.activeConnections(), 1, 'a declared link is');
  policy.set(policyOf({ intents: intents('deny web quiet', 'allow api db') }));
  t.equal((await ended).how, 'ECONNRESET', 'what is forbidden by name now is cut');
  t.equal(await ask(t, bed.port), 'one');
  t.match(bed.plane.links(), [
    { service: 'db', denied: { total: 1, last: { consumer: 'api', by: 'default' } } },
    {
      service: 'quiet',
      denied: { total: 1, last: { consumer: 'web', by: 'intent', intent: { consumer: 'web', service: 'quiet' } } },
    },
  ]);
});
