import { stripVTControlCharacters } from 'node:util';
import t, { type Test } from 'tap';
import { waitFor } from '../../test/support/wait.ts';
import type { SplitDocument, SplitSideDocument } from '../admin/documents.ts';
import { runCommandLine } from './program.ts';
import { type Answer, canned, fakeAdmin, fakeSession, type SeenRequest } from './test-support.ts';

const idle = { requests: 0, errors: 0, rates: { requests: 0, errors: 0 }, errorRate: null, latencyMs: null };

const sides = (weights: Readonly<Record<string, number>>): SplitSideDocument[] => {
  const sum = Object.values(weights).reduce((total, weight) => total + weight, 0);
  return Object.entries(weights).map(([tag, weight]) => {
    return { tag, weight, share: weight / sum, instances: 2, usable: 2, ...idle, verdict: 'off' };
  });
};

const document = (
  weights: Readonly<Record<string, number>> | null,
  over: Partial<SplitDocument> = {},
): SplitDocument => ({
  ...{ service: 'web', protocol: 'http', splits: true, split: weights, former: null, sticky: 'off', guard: 0 },
  ...{ host: 'web-1', sides: sides(weights ?? {}), without: { instances: 0, tags: [] }, takenBack: null },
  ...over,
});

/** A sidecar that has this split until another one is set. */
function sidecar(t: Test, first: SplitDocument) {
  let present = first;
  const answer = ({ method, url, body }: SeenRequest): Answer => {
    if (url === '/api/splits/none') {
      return { status: 404, json: { error: { code: 'E_NOT_FOUND', message: 'there is no service "none"', hint: '' } } };
    }
    if (method !== 'PUT') return { json: present };
    const given = JSON.parse(String(body)) as { split?: Record<string, string>; sticky?: string; split_guard?: number };
    const { split, sticky = present.sticky, split_guard: guard = present.guard } = given;
    if (split === undefined) present = { ...present, sticky, guard: Number(guard) };
    else {
      const weights = Object.fromEntries(Object.entries(split).map(([tag, weight]) => [tag, Number(weight)]));
      const isNone = Object.keys(weights).length === 0;
      const more = { former: present.split ?? {}, sticky, guard: Number(guard) };
      present = document(isNone ? null : weights, more);
      if (weights.next !== undefined) {
        const next = { ...present.sides[0], tag: 'next', weight: 1, instances: 0, usable: 0 } as SplitSideDocument;
        present = { ...present, sides: [next], without: { instances: 3, tags: ['canary', 'stable'] } };
      }
    }
    return { json: { name: 'web' } };
  };
  return fakeAdmin(t, answer).then((admin) => ({
    ...admin,
    async run(...args: string[]) {
      const fake = fakeSession({ tty: true, columns: 100, env: { NO_COLOR: '1' } });
      const status = await runCommandLine(['split', ...args, '--admin', admin.address], fake.session);
      return { status, stdout: fake.stdout.text, stderr: fake.stderr.text.replace('\r\u001b[K', '') };
    },
    puts: () =>
      admin.seen.filter(({ method }) => method === 'PUT').map(({ body }) => JSON.parse(String(body)) as unknown),
  }));
}

t.test('a split is shown, set and taken back', async (t) => {
  const s = await sidecar(t, document(null));
  t.same(await s.run('web'), {
    ...{ status: 0, stderr: '' },
    stdout: ' web is not split: its requests go to all of its instances\n',
  });
  const set = await s.run('web', 'stable=95', 'canary=5', '--guard', '3', '--sticky', 'cookie:side');
  t.same(set, {
    ...{ status: 0, stderr: '' },
    stdout: ` ok web is split: stable 95 %, canary 5 %; before: not split
   sticky by the cookie side
   guard: a side with over 3 times the error rate of the heaviest goes back to 0
   back: legate split web --back
`,
  });
  t.same(s.puts(), [{ split: { stable: '95', canary: '5' }, sticky: 'cookie:side', split_guard: '3' }]);
  t.equal(
    (await s.run('web')).stdout,
    ` TAG     WEIGHT  SHARE  INSTANCES  USABLE
 stable      95   95 %          2       2
 canary       5    5 %          2       2
 - sticky by the cookie side
 - guard: a side with over 3 times the error rate of the heaviest goes back to 0
 - before: not split (legate split web --back)
`,
  );
  t.match(await s.run('web', 'stable=95', 'canary=5'), { stdout: /^ ok web is split: .*; as before\n$/ });
  t.match(await s.run('web', 'blue=0', 'green=100'), {
    stdout:
      /^ ok web is split: green 100 %, blue 0 %; before: stable 95 %, canary 5 %\n {3}back: legate split web --back\n$/,
  });
  t.match(await s.run('web', '--back'), { stdout: /^ ok web is split: stable 95 %, canary 5 %; before: green 100 %/ });
  t.same(s.puts().at(-1), { split: { stable: 95, canary: 5 } });
  t.match(await s.run('web', '--guard', 'off'), { status: 0, stdout: /; as before\n {3}no guard\n$/ });
  t.match(await s.run('web', '--off'), { stdout: /^ ok web is not split; before: stable 95 %, canary 5 %\n/ });
  t.same(s.puts().at(-1), { split: {} });
  t.match(await s.run('web', '--back', '--json'), { stdout: /^\{\n {2}"service": "web",\n/ });
});

t.test('what may be a mistake is said, and done', async (t) => {
  const s = await sidecar(t, document({ stable: 1 }));
  const { status, stdout, stderr } = await s.run('web', 'next=1');
  t.equal(status, 0);
  t.match(stdout, /^ ok web is split: next 100 %/);
  t.equal(
    stderr,
    ` - no tag with a weight has a usable instance: requests go to all instances, whatever their tags
 - next: no instance has this tag
 - 3 instances have none of these tags; there: canary, stable
`,
  );
  const [table = '', note = ''] = (await s.run('web')).stdout.split('\n').slice(1);
  t.match(table, /^ next +1 +100 % +0 +0$/);
  t.match(note, /^ x no tag with a weight has a usable instance/);
  const tcp = await sidecar(t, document({ stable: 1 }, { splits: false, protocol: 'tcp' }));
  t.match(await tcp.run('web'), {
    stdout: / x web is of protocol tcp: only http, http2 and grpc are divided by request\n/,
  });
});

t.test('wrong usage, and what cannot be done', async (t) => {
  const s = await sidecar(t, document({ stable: 1 }));
  const cases: [args: string[], status: number, stderr: RegExp][] = [
    [['web', 'stable'], 2, /^legate split: "stable" is not tag=weight; such as stable=95 canary=5\n$/],
    [['web', '=5'], 2, /is not tag=weight/],
    [['web', 'a=1', 'a=2'], 2, /a is given twice/],
    [['web', 'a=x'], 2, /split\.a: "x" is not a whole number from 0 to 1000000/],
    [['web', 'a=0', 'b=0'], 2, /no weight above 0/],
    [['web', 'a=1', '--back'], 2, /weights and --back exclude each other/],
    [['web', '--off', '--back'], 2, /--back and --off exclude each other/],
    [['web', '--sticky', 'ip'], 2, /sticky.*must be "off", "cookie", "cookie:NAME" or "header:NAME"/],
    [['web', '--guard', 'many'], 2, /split_guard/],
    [
      ['web', '--guard', '0.5'],
      2,
      /split_guard: 0\.5 is not a whole number \(0 to 100; .* 1, the least: .*; 0 or off: no guard\)/,
    ],
    [['web', '--guard=-1'], 2, /split_guard: -1 is not a whole number/],
    [['WEB'], 2, /the service's name "WEB"/],
    [[], 2, /missing required argument/],
    [['none'], 1, /there is no service "none"/],
    [['none', 'a=1'], 1, /there is no service "none"/],
    [['web', '--back'], 1, /^legate split: web had no other split before; legate split web shows the present one/],
  ];
  for (const [args, status, stderr] of cases) {
    const ran = await s.run(...args);
    t.equal(ran.status, status, args.join(' '));
    t.match(ran.stderr, stderr);
  }
  t.same(s.puts(), [], 'nothing was set');
  const seen = { requests: 120, errors: 37, against: 'stable', againstRequests: 2280, againstErrors: 4 };
  const at = new Date(canned.nowMs - 180_000).toISOString();
  const takenBack = { tag: 'canary', weight: 5, hostId: '8899aabbccddeeff', host: 'web-\u001b2', at, ...seen };
  const former = { canary: 5, stable: 95 };
  const tripped = await sidecar(t, document({ canary: 0, stable: 95 }, { takenBack, former, guard: 3 }));
  const { status, stderr } = await tripped.run('web', '--back');
  t.equal(status, 1);
  t.equal(
    stderr,
    'legate split: the guard has taken canary back already; before that it failed; ' +
      'when it is mended, try again: legate split web canary=5 stable=95\n',
  );
  t.match((await tripped.run('web')).stdout.split('\n').slice(3), [
    /^ x canary was taken back to 0 by the guard of web-\\u001b2 3 min ago: 37 of 120 requests failed/,
    /\(30\.8 %\), of stable 4 of 2280 \(0\.2 %\)/,
    / {2}when it is mended, try again: legate split web canary=5 stable=95/,
    ' - not sticky',
    / - guard: /,
    '',
  ]);
});

t.test('--watch keeps rates current, within the width', async (t) => {
  const [canary, stable] = sides({ canary: 5, stable: 95 });
  const busy = {
    rates: { requests: 5.3, errors: 1.6 },
    errorRate: 0.308,
    latencyMs: 12.4,
    verdict: 'failing',
  } as const;
  const shown = document(
    { canary: 5, stable: 95 },
    {
      ...{
        guard: 3,
        sides: [
          { ...canary, ...busy },
          { ...stable, verdict: 'measure' },
        ] as SplitSideDocument[],
      },
    },
  );
  const { address, change } = await fakeAdmin(t, () => ({ json: shown }));
  const fake = fakeSession({ tty: true, columns: 80, rows: 24 });
  const running = runCommandLine(['split', 'web', '-w', '--admin', address], fake.session);
  await waitFor('a frame', () => fake.stdout.text.includes('GUARD'));
  change();
  fake.interrupt();
  t.equal(await running, 0);
  const [head, columns, first, second] = stripVTControlCharacters(fake.stdout.text).split('\n');
  t.match(head, /web, as consumers on web-1 get it; rates of the last 10 s/);
  t.match(columns, /^ TAG +WEIGHT +SHARE +(INSTANCES +)?USABLE +REQUESTS +ERRORS +ERROR RATE +MEAN +GUARD/);
  t.match(first, /^ stable +95 +95 % .* 0\/s +0\/s +- +- +measure/);
  t.match(second, /^ canary +5 +5 % .* 5\.3\/s +1\.6\/s +30\.8 % +12\.4 ms +failing/);
  for (const line of [columns, first, second]) t.ok((line ?? '').length <= 80);
});

t.test('legate services says how a service is split, as far as there is room', async (t) => {
  const [first] = canned.services.services.filter(({ name }) => name === 'cache');
  const splits: [over: object, state: RegExp][] = [
    [{ split: { canary: 5, stable: 95 } }, / all passing; split canary 5 %$/],
    [{ split: { blue: 1 } }, / all passing; split blue 100 %$/],
    [{ split: { canary: 0, stable: 95 }, takenBack: 'canary' }, / all passing; canary taken back$/],
    [{ split: {} }, / all passing$/],
    [{ split: Object.fromEntries([...'abcdefghij'].map((tag) => [`side-${tag}`, 1])) }, /; split side-b 10 %.*\.\.$/],
  ];
  for (const [over, state] of splits) {
    const { address } = await fakeAdmin(t, () => ({ json: { services: [{ ...first, ...over }], refused: [] } }));
    const fake = fakeSession({ tty: true, columns: 100, env: { NO_COLOR: '1' } });
    t.equal(await runCommandLine(['services', '--admin', address], fake.session), 0);
    t.match(fake.stdout.text.split('\n')[1], state);
  }
});
