import t from 'tap';
import type { Caller } from '../src/model/caller.ts';
import type { DeclaredLink } from '../src/model/link.ts';
import { maxHeldOfAddress, maxHeldQuestions } from './held-questions.ts';
import { callersAt, decode, type Inside, inside, instance, queryPacket, service, snapshotOf } from './test-support.ts';

const redis = service('redis', [instance('redis', '172.17.0.2')], { vip: '240.77.0.5', port: 6380 });
const cache = service('cache', [instance('cache', '172.17.0.3')], { vip: '240.77.0.6' });
const plain = service('plain', [instance('plain', '172.17.0.4')]);
const away = service('away', [], { vip: '240.77.0.8' });
const services = [redis, cache, plain, away];

const web = '172.17.0.50';
const other = '172.17.0.51';
const bare = '172.17.0.52';
const unknown = '172.17.0.99';

function link(alias: string, to: string, port?: number): DeclaredLink {
  return { alias, service: to, port };
}

function caller(container: string, ...links: DeclaredLink[]): Caller {
  return { container, consumer: container, links };
}

const longest = 'a'.repeat(63);
const webCaller = caller(
  'web',
  link('db', 'redis'),
  link('cache', 'redis', 6379),
  link('later', 'soon', 7000),
  link('chain', 'db'),
  link('self', 'self'),
  link('redis', 'cache'),
  link('early', 'away', 1),
  link('bare', 'plain'),
  link(longest, 'redis'),
  link('twice', 'redis'),
  link('twice', 'cache'),
);
const otherCaller = caller('other', link('db', 'cache'));
const table = { [web]: webCaller, [other]: otherCaller, [bare]: caller('bare') };

interface Given {
  readonly id?: number;
  readonly via?: 'udp' | 'tcp';
}

function handle(w: Inside, from: string, question: string, { id = 7, via = 'udp' }: Given = {}) {
  const [name = '', type = 'A'] = question.split(' ');
  return w.handler.handle(queryPacket(name, type, { id, edns: 1232 }), from, {
    transport: via,
    serverAddress: '172.17.0.1',
  });
}

/** `240.77.0.5`, `NODATA waits for the service x`, `NXDOMAIN`. */
function said(packet: Buffer): string {
  const { rcode, answers = [], authorities = [], additionals = [] } = decode(packet);
  const records = answers.map((record) => ('data' in record ? String(record.data) : record.type));
  if (records.length > 0) return records.join(' ');
  if (rcode !== 'NOERROR') return rcode;
  const soa = authorities[0];
  const seconds = soa?.type === 'SOA' ? `${soa.ttl} ${soa.data.minimum}` : 'no SOA';
  const opt = additionals.find((record) => record.type === 'OPT');
  const options = (opt?.type === 'OPT' ? opt.options : []) as { code: number; data: Buffer }[];
  const extended =
    options
      .find(({ code }) => code === 15)
      ?.data.subarray(2)
      .toString() ?? '';
  return `NODATA ${seconds} ${extended}`.trim();
}

function ask(w: Inside, from: string, question: string): string {
  const reply = handle(w, from, question);
  if (!(reply instanceof Buffer)) throw new Error(`${question} was not answered at once`);
  return said(reply);
}

t.test('an alias is known to its own container only', async (t) => {
  const cases: readonly (readonly [question: string, from: string, expected: string])[] = [
    ['cache', web, '240.77.0.5'],
    ['cache.mesh.internal', web, '240.77.0.5'],
    ['CaChE.Mesh.INTERNAL', web, '240.77.0.5'],
    ['cache', other, '240.77.0.6'],
    ['cache', bare, '240.77.0.6'],
    ['cache', '127.0.0.1', '240.77.0.6'],
    ['cache', '10.77.0.9', '240.77.0.6'],
    ['cache AAAA', web, 'NODATA 1 1'],
    ['cache TXT', web, 'NODATA 1 1'],
    ['db', web, '240.77.0.5'],
    ['db', other, '240.77.0.6'],
    ['db', bare, 'NXDOMAIN'],
    ['db.mesh.internal', '127.0.0.1', 'NXDOMAIN'],
    // A waiting one exists, and may come at any moment.
    ['later', web, 'NODATA 1 1 waits for the service soon'],
    ['later.mesh.internal', web, 'NODATA 1 1 waits for the service soon'],
    ['later', other, 'NXDOMAIN'],
    ['early', web, '240.77.0.8'],
    // An alias of an alias is not followed; one service may have another's name.
    ['chain', web, 'NODATA 1 1 waits for the service db'],
    ['self', web, 'NODATA 1 1 waits for the service self'],
    ['redis', web, '240.77.0.6'],
    ['redis', other, '240.77.0.5'],
    [longest, web, '240.77.0.5'],
    ['twice', web, '240.77.0.5'],
    ['bare', web, '172.17.0.4'],
    // Other forms are the service's.
    ['cache.service.mesh.internal', web, '172.17.0.3'],
    ['db.service.mesh.internal', web, 'NXDOMAIN'],
    ['_db._tcp.mesh.internal SRV', web, 'NXDOMAIN'],
    ['x.db.mesh.internal', web, 'NXDOMAIN'],
    ['db.example', web, 'REFUSED'],
  ];
  const w = inside(snapshotOf(services), { callers: callersAt(table) });
  for (const round of ['first', 'from the cache', 'again']) {
    for (const [question, from, expected] of cases) {
      t.equal(ask(w, from, question), expected, `${question} from ${from}, ${round}`);
    }
  }
  const off = inside(snapshotOf(services), { callers: { ...callersAt({}), off: 'no nftables' } });
  t.equal(ask(off, web, 'cache'), '240.77.0.6', 'nobody waits where callers are not told apart');
  t.equal(ask(off, web, 'later'), 'NXDOMAIN');
  const none = inside({ ...snapshotOf([]), origin: 'none' }, { callers: callersAt(table) });
  t.equal(ask(none, web, 'cache'), 'SERVFAIL', 'before anything is known');
});

t.test('without virtual addresses an alias is answered as the service’s name', async (t) => {
  const w = inside(snapshotOf(services), { callers: callersAt(table), vipsOn: false });
  t.equal(ask(w, web, 'cache'), '172.17.0.2');
  w.listeners.set('redis', { address: '172.17.0.1', port: 6380 });
  t.equal(ask(w, web, 'cache'), '172.17.0.1', 'the listener');
});

t.test('encoded answers follow services and callers', async (t) => {
  const w = inside(snapshotOf(services), { callers: callersAt(table) });
  t.equal(ask(w, web, 'cache'), '240.77.0.5');
  t.equal(ask(w, bare, 'cache'), '240.77.0.6');
  const kept = w.handler.cachedAnswers;
  t.equal(ask(w, web, 'cache'), '240.77.0.5');
  t.equal(w.handler.cachedAnswers, kept, 'copied');

  w.snapshots.set(snapshotOf([{ ...redis, vip: '240.77.0.55' }, cache]));
  t.equal(ask(w, web, 'cache'), '240.77.0.55', 'the service it means has changed');
  t.equal(ask(w, bare, 'cache'), '240.77.0.6');
  w.snapshots.set(snapshotOf([cache]));
  t.equal(ask(w, web, 'cache'), 'NODATA 1 1 waits for the service redis', 'it is gone');
  w.snapshots.set(snapshotOf(services));
  t.equal(ask(w, web, 'cache'), '240.77.0.5', 'it came');

  w.callers.set(callersAt({ ...table, [web]: caller('web', link('cache', 'cache')), [bare]: webCaller }));
  t.equal(ask(w, web, 'cache'), '240.77.0.6', 'the address has another container');
  t.equal(ask(w, bare, 'cache'), '240.77.0.5');
  t.equal(ask(w, other, 'cache'), '240.77.0.6', 'nobody else is concerned');
  w.callers.set({ ...callersAt({}), off: 'flushed' });
  t.equal(ask(w, bare, 'cache'), '240.77.0.6');
  t.equal(ask(w, web, 'db'), 'NXDOMAIN');
});

t.test('the first question of a new container waits until it is known', async (t) => {
  const w = inside(snapshotOf(services), { callers: callersAt(table) });
  const later = (question: string, given?: Given): Promise<string> => {
    const reply = handle(w, unknown, question, given);
    if (!(reply instanceof Promise)) throw new Error(`${question} did not wait`);
    return reply.then(said);
  };
  const first = [later('cache'), later('nosuch'), later('db.mesh.internal', { via: 'tcp' })];
  t.equal(ask(w, unknown, 'cache.service.mesh.internal'), '172.17.0.3', 'what no alias can be is answered at once');
  t.equal(ask(w, unknown, 'service'), 'NXDOMAIN');
  t.equal(ask(w, unknown, 'cache.example'), 'REFUSED');
  t.equal(ask(w, web, 'cache'), '240.77.0.5');
  w.callers.set(callersAt({ ...table, [unknown]: webCaller }));
  t.strictSame(await Promise.all(first), ['240.77.0.5', 'NXDOMAIN', '240.77.0.5']);
  t.equal(ask(w, unknown, 'cache'), '240.77.0.5', 'and then nobody waits');
  t.equal(w.clock.pending, 0);

  w.callers.set(callersAt(table));
  t.equal(ask(w, web, 'cache'), '240.77.0.5');
  const inVain = later('cache');
  await w.clock.advance(1999);
  const second = later('db');
  await w.clock.advance(1);
  t.strictSame(await Promise.all([inVain, second]), ['240.77.0.6', 'NXDOMAIN'], 'without aliases after two seconds');
  t.equal(ask(w, unknown, 'cache'), '240.77.0.6', 'and not waited for again at once');
  w.callers.set(callersAt({ ...table, [unknown]: webCaller }));
  t.equal(ask(w, unknown, 'cache'), '240.77.0.5', 'known after all');
  await null;
  w.callers.set(callersAt(table));
  const again = later('cache');
  w.callers.set({ ...callersAt(table), off: 'flushed' });
  t.equal(await again, '240.77.0.6', 'callers are no longer told apart');
});

t.test('waiting questions are bounded', async (t) => {
  const w = inside(snapshotOf(services), { callers: callersAt(table) });
  const held: Promise<Buffer>[] = [];
  const fill = (from: string): void => {
    const reply = handle(w, from, 'cache');
    if (reply instanceof Promise) held.push(reply);
  };
  for (let index = 0; index < 2 * maxHeldOfAddress; index += 1) fill(unknown);
  t.equal(held.length, maxHeldOfAddress, 'of one address');
  for (let index = 0; index < 2 * maxHeldQuestions; index += 1) fill(`172.17.${1 + (index >> 7)}.${1 + (index & 127)}`);
  t.equal(held.length, maxHeldQuestions, 'of all');
  const exposition = await w.metrics.exposition();
  t.match(exposition, `legate_dns_held_questions_count ${maxHeldQuestions}`);
  t.match(exposition, `legate_dns_unheld_questions_total ${maxHeldOfAddress + maxHeldQuestions + maxHeldOfAddress}`);
  w.handler.close();
  t.ok((await Promise.all(held)).every((packet) => said(packet) === '240.77.0.6'));
  t.equal(w.clock.pending, 0);
});
