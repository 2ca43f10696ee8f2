import t from 'tap';
import type { WhyDocument } from '../admin/why-document.ts';
import { runCommandLine } from './program.ts';
import { canned, fakeAdmin, fakeSession } from './test-support.ts';

const since = new Date(canned.nowMs - 4 * 60_000).toISOString();
const plain = { since: null, details: [] };
const bad: WhyDocument = {
  ...{ name: 'db', consumer: 'web', service: 'db', fine: false },
  steps: [
    { ...plain, name: 'consumer', verdict: 'ok', text: 'web (container web-7f3, 172.17.0.4 on docker0)' },
    { ...plain, name: 'name', verdict: 'ok', text: 'db → 240.77.118.4, from the snapshot of 0.3 s ago' },
    { ...plain, name: 'address', verdict: 'ok', text: '240.77.118.4:5432 → this sidecar' },
    {
      ...{ name: 'choice', verdict: 'ok', since: null, text: 'db-2/9c1f on host db-2' },
      details: [
        { text: 'db-1/77ab is critical, "connect ECONNREFUSED 172.17.0.5:5432 and \u001b[31m a long tail"', since },
      ],
    },
    {
      ...plain,
      name: 'tunnel',
      verdict: 'bad',
      text: 'db-2: it refuses our certificate: expired 3 h ago (its clock is 5 h ahead)',
      since,
    },
    { ...plain, name: 'instance', verdict: 'unknown', text: 'not reached' },
  ],
  fix: 'on db-2: compare its clock (chronyc makestep); where it is right, legate join anew',
  traffic: {
    active: 1,
    total: 1400,
    failed: 212,
    denied: 0,
    lastError: { at: since, message: 'db-2/9c1f: no tunnel' },
  },
  changes: [{ at: since, text: 'db-1/77ab turned critical: connection refused' }],
};
const fine: WhyDocument = { ...bad, fine: true, steps: bad.steps.slice(0, 3), fix: null, traffic: null, changes: [] };

const times = (moment: string): string => {
  const date = new Date(moment);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, '0')).join(':');
};

t.test('status: tunnels, those in trouble first', async (t) => {
  const tunnels = [
    { host: 'db-1', state: 'ready', since, problem: null },
    { host: 'cache-1', state: 'connecting', since, problem: 'connection refused at 10.77.0.9:7711' },
    { host: 'db-2', state: 'ready', since, problem: null },
  ];
  const admin = await fakeAdmin(t, () => ({ json: { ...canned.status, tunnels } }));
  const { session, stdout } = fakeSession();
  t.equal(await runCommandLine(['--admin', admin.address, 'status'], session), 0);
  t.match(
    stdout.text,
    /11 links, 3 tunnels \(cache-1 x 4 min: connection refused at 10\.77\.0\.9:7711, db-1 db-2 ok\), Docker/,
  );
});

t.test('why: plain, and rich at two widths', async (t) => {
  const admin = await fakeAdmin(t, ({ url }) => ({ json: url.includes('name=fine') ? fine : bad }));
  const ask = async (words: string[], terminal: { tty?: boolean; columns?: number } = {}) => {
    const { session, stdout, stderr } = fakeSession(terminal);
    const status = await runCommandLine(['--admin', admin.address, 'why', ...words], session);
    return { status, text: Buffer.from(stdout.text, 'utf8').toString('utf8'), error: stderr.text };
  };
  const at = times(since);
  const piped = await ask(['web', 'db']);
  t.equal(piped.status, 1);
  t.equal(
    piped.text,
    [
      ' web (container web-7f3, 172.17.0.4 on docker0)',
      '  ok name      db -> 240.77.118.4, from the snapshot of 0.3 s ago',
      '  ok address   240.77.118.4:5432 -> this sidecar',
      '  ok choice    db-2/9c1f on host db-2',
      `               - db-1/77ab is critical, "connect ECONNREFUSED 172.17.0.5:5432 and \\u001b[31m a long tail", since ${at}`,
      `  x  tunnel    db-2: it refuses our certificate: expired 3 h ago (its clock is 5 h ahead), since ${at}`,
      '  -  instance  not reached',
      ' fix:     on db-2: compare its clock (chronyc makestep); where it is right, legate join anew',
      ' links:   db: 1400 connections so far, 1 open, 212 failed; last failure 4 min ago: db-2/9c1f: no tunnel'.replace(
        '1 400',
        '1400',
      ),
      ` changes: ${at} db-1/77ab turned critical: connection refused`,
      '',
    ].join('\n'),
  );
  t.match(admin.seen.at(-1)?.url, '/api/why?name=db&consumer=web');
  for (const columns of [80, 100]) {
    const { text } = await ask(['web', 'db'], { tty: true, columns });
    const lines = text.replace(/\u001b\[\d+m/g, '').split('\n');
    for (const line of lines) t.ok(line.length <= columns, `${columns}: ${line}`);
    t.match(text, /✘.*tunnel/);
    t.match(text, /✔.*name +db → 240/);
    t.match(lines.join('\n'), /fix: +on db-2/);
  }
  const well = await ask(['fine']);
  t.equal(well.status, 0);
  t.match(well.text, /nothing is in the way/);
  t.match(admin.seen.at(-1)?.url, '/api/why?name=fine');
  const json = await ask(['web', 'db', '--json']);
  t.equal(json.status, 1);
  t.same(JSON.parse(json.text), bad);
  const usage = await ask([]);
  t.equal(usage.status, 2);
  t.match(usage.error, /why needs the name/);
});
