import type { Answer } from 'dns-packet';
import t, { type Test } from 'tap';
import { decode, type Inside, inside, instance, otherHost, queryPacket, service, snapshotOf } from './test-support.ts';

const away = { hostId: otherHost, host: 'web-2' };
const db = service(
  'db',
  [
    instance('db', '172.17.0.2', {
      name: 'a',
      id: 'web-1/a',
      tags: ['Primary', 'v1.2'],
      meta: { zone: 'a', region: 'eu' },
      weight: 7,
    }),
    instance('db', '172.17.0.3', { name: 'b', id: 'web-1/b', port: 6432 }),
    instance('db', '172.18.0.4', {
      name: 'c',
      id: 'web-1/c',
      published: { address: '10.77.0.1', port: 32_768 },
      reach: 'mesh',
    }),
    instance('db', '172.17.0.9', {
      name: 'd',
      id: 'web-1/d',
      status: 'critical',
      output: 'refused',
      tags: ['primary'],
    }),
    instance('db', '10.77.0.2', {
      name: 'e',
      id: 'web-2/e',
      ...away,
      reach: 'mesh',
      published: { address: '10.77.0.2', port: 40_000 },
    }),
    instance('db', '172.17.0.2', { name: 'f', id: 'web-2/f', ...away }),
  ],
  { vip: '240.77.0.5' },
);
const sick = service(
  'sick',
  [
    instance('sick', '172.17.0.20', { status: 'critical', tags: ['x'] }),
    instance('sick', '172.17.0.21', { draining: true }),
  ],
  { vip: '240.77.0.6' },
);
const plain = service('plain', [instance('plain', '172.17.0.30')]);
const six = service('six', [instance('six', 'fd00::1f'), instance('six', '172.17.0.40')]);
const syslog = service('syslog', [instance('syslog', '172.17.0.50', { protocol: 'udp', port: 514 })], {
  protocol: 'udp',
  port: 514,
});
const foreign = service('foreign', [instance('foreign', '127.0.0.1', { ...away, reach: 'mesh' })]);
const snapshot = snapshotOf([db, sick, plain, six, syslog, foreign]);

/** `TYPE ttl data`, without owner. */
function line(record: Answer): string {
  switch (record.type) {
    case 'A':
    case 'AAAA':
    case 'NS':
    case 'PTR':
      return `${record.type} ${record.ttl} ${record.data}`;
    case 'SRV':
      return `SRV ${record.ttl} ${record.data.priority} ${record.data.weight} ${record.data.port} ${record.data.target}`;
    case 'TXT':
      return `TXT ${record.ttl} ${[record.data].flat().map(String).join('|')}`;
    case 'SOA':
      return `SOA ${record.ttl} ${record.data.mname} ${record.data.rname} ${record.data.minimum}`;
    case 'HINFO':
      return `HINFO ${record.ttl} ${JSON.stringify(record.data)}`;
    default:
      return record.type;
  }
}

interface Case {
  readonly ask: string;
  readonly from?: string;
  readonly rcode?: string;
  readonly answers?: readonly string[];
  /** The owner of the SOA in a negative answer. */
  readonly soa?: string;
  readonly additional?: readonly string[];
  readonly extended?: string;
}

const server = '10.77.0.1';
const zone = 'mesh.internal';
const onDocker0 = '172.17.0.99';
const onShop = '172.18.0.99';
const lan = '10.77.0.66';

function ask(w: Inside, { ask: text, from = '127.0.0.1' }: Pick<Case, 'ask' | 'from'>, edns?: number) {
  const [name = '', type = ''] = text.split(' ');
  const reply = w.handler.handle(queryPacket(name, type, edns === undefined ? {} : { edns }), from, {
    transport: 'tcp',
    serverAddress: server,
  });
  if (!(reply instanceof Buffer)) throw new Error('no answer at once');
  return decode(reply);
}

function check(t: Test, w: Inside, test: Case, round: string): void {
  const label = `${test.ask} from ${test.from ?? 'host'}, ${round}`;
  const answer = ask(w, test, 1232);
  t.equal(answer.rcode, test.rcode ?? 'NOERROR', `${label}: code`);
  t.equal(answer.flag_aa, !['SERVFAIL', 'REFUSED'].includes(test.rcode ?? ''), `${label}: authoritative`);
  t.strictSame((answer.answers ?? []).map(line).sort(), [...(test.answers ?? [])].sort(), `${label}: answers`);
  for (const record of answer.answers ?? []) t.equal(record.name, test.ask.split(' ')[0], `${label}: owner`);
  const authority = (answer.authorities ?? []).map((record) => `${record.name} ${line(record)}`);
  const soa = test.soa === undefined ? [] : [`${test.soa} SOA 1 ns.${zone} hostmaster.${zone} 1`];
  t.strictSame(authority, soa, `${label}: authority`);
  const additional = (answer.additionals ?? []).filter((record) => record.type !== 'OPT');
  t.strictSame(
    additional.map((record) => `${record.name} ${line(record)}`).sort(),
    [...(test.additional ?? [])].sort(),
    `${label}: additional`,
  );
  const opt = (answer.additionals ?? []).find((record) => record.type === 'OPT');
  const option =
    opt?.type === 'OPT' ? (opt.options as { code: number; data: Buffer }[]).find(({ code }) => code === 15) : undefined;
  t.equal(
    option === undefined ? undefined : `${option.data.readUInt16BE(0)} ${option.data.subarray(2)}`,
    test.extended,
    `${label}: extended`,
  );
}

const nxdomain = { rcode: 'NXDOMAIN', soa: zone };
const nodata = { soa: zone };
const srvA = `SRV 5 1 7 5432 ac110002.addr.${zone}`;
const srvB = `SRV 5 1 1 6432 ac110003.addr.${zone}`;
const srvC = `SRV 5 1 1 5432 ac120004.addr.${zone}`;
const addA = `ac110002.addr.${zone} A 5 172.17.0.2`;
const addB = `ac110003.addr.${zone} A 5 172.17.0.3`;
const addC = `ac120004.addr.${zone} A 5 172.18.0.4`;
const hostSrv = { answers: [srvA, srvB, srvC], additional: [addA, addB, addC] };

const cases: readonly Case[] = [
  { ask: `db.${zone} A`, answers: ['A 5 240.77.0.5'] },
  { ask: 'db A', answers: ['A 5 240.77.0.5'] },
  { ask: 'DB.mesh.Internal A', answers: ['A 5 240.77.0.5'] },
  { ask: `db.${zone} AAAA`, ...nodata },
  { ask: 'db AAAA', soa: '.' },
  { ask: `db.${zone} SRV`, ...nodata },
  { ask: `db.${zone} MX`, ...nodata },
  { ask: `sick.${zone} A`, answers: ['A 5 240.77.0.6'] },
  { ask: `nosuch.${zone} A`, ...nxdomain },
  { ask: 'nosuch A', rcode: 'NXDOMAIN', soa: '.' },
  { ask: 'service A', rcode: 'NXDOMAIN', soa: '.' },
  { ask: `localhost.${zone} A`, ...nxdomain },
  { ask: `anonymous.${zone} A`, ...nxdomain },
  { ask: 'localhost A', answers: ['A 5 127.0.0.1'] },
  { ask: 'localhost AAAA', answers: ['AAAA 5 ::1'] },
  { ask: `x.db.${zone} A`, ...nxdomain },
  { ask: `under_score.${zone} A`, ...nxdomain },
  { ask: 'example.com A', rcode: 'REFUSED' },
  // Not yet claimed: as the instances, for a second.
  { ask: `plain.${zone} A`, answers: ['A 1 172.17.0.30'] },
  {
    ask: 'plain A',
    from: onShop,
    soa: '.',
    extended:
      '0 plain: 1 of 1 instances usable, none from here: it is on bridge docker0, which Docker isolates from br-shop',
  },
  // Instances, as the asker can dial them.
  { ask: `db.service.${zone} A`, answers: ['A 5 172.17.0.2', 'A 5 172.17.0.3', 'A 5 172.18.0.4'] },
  { ask: `db.service.${zone} A`, from: onDocker0, answers: ['A 5 172.17.0.2', 'A 5 172.17.0.3'] },
  { ask: `db.service.${zone} A`, from: onShop, answers: ['A 5 172.18.0.4'] },
  {
    ask: `db.service.${zone} A`,
    from: lan,
    ...nodata,
    extended: '0 db: 5 of 6 instances usable, none from here: its address is known only to its own host',
  },
  { ask: `db.service.${zone} AAAA`, ...nodata },
  { ask: `primary.db.service.${zone} A`, answers: ['A 5 172.17.0.2'] },
  { ask: `PRIMARY.db.service.${zone} A`, answers: ['A 5 172.17.0.2'] },
  { ask: `v1.2.db.service.${zone} A`, answers: ['A 5 172.17.0.2'] },
  { ask: `nosuch.db.service.${zone} A`, ...nxdomain },
  { ask: `sick.service.${zone} A`, ...nodata, extended: '0 sick: 0 of 2 instances usable' },
  { ask: `sick.service.${zone} SRV`, ...nodata, extended: '0 sick: 0 of 2 instances usable' },
  { ask: `x.sick.service.${zone} A`, ...nodata, extended: '0 sick: 0 of 1 instances tagged x usable' },
  { ask: `six.service.${zone} AAAA`, answers: ['AAAA 5 fd00::1f'] },
  { ask: `six.service.${zone} A`, answers: ['A 5 172.17.0.40'] },
  {
    ask: `foreign.service.${zone} A`,
    ...nodata,
    extended: '0 foreign: 1 of 1 instances usable, none from here: it listens on loopback of its own host',
  },
  // SRV in all its forms.
  { ask: `_db._tcp.${zone} SRV`, ...hostSrv },
  { ask: `_db._tcp.service.${zone} SRV`, ...hostSrv },
  { ask: `db.service.${zone} SRV`, ...hostSrv },
  { ask: `_DB._TCP.${zone} SRV`, ...hostSrv },
  // The instance on the other bridge by its published address, with the published port.
  {
    ask: `_db._tcp.${zone} SRV`,
    from: onDocker0,
    answers: [srvA, srvB, `SRV 5 1 1 32768 0a4d0001.addr.${zone}`],
    additional: [addA, addB, `0a4d0001.addr.${zone} A 5 10.77.0.1`],
  },
  { ask: `_primary._db._tcp.${zone} SRV`, answers: [srvA], additional: [addA] },
  { ask: `_primary._db._tcp.service.${zone} SRV`, answers: [srvA], additional: [addA] },
  { ask: `_primary._db.service.${zone} SRV`, answers: [srvA], additional: [addA] },
  { ask: `_primary._db.${zone} SRV`, answers: [srvA], additional: [addA] },
  { ask: `primary.db.service.${zone} SRV`, answers: [srvA], additional: [addA] },
  { ask: `_nosuch._db._tcp.${zone} SRV`, ...nxdomain },
  { ask: `_nosuch._tcp.${zone} SRV`, ...nxdomain },
  { ask: `_db._udp.${zone} SRV`, ...nxdomain },
  {
    ask: `_syslog._udp.${zone} SRV`,
    answers: [`SRV 5 1 1 514 ac110032.addr.${zone}`],
    additional: [`ac110032.addr.${zone} A 5 172.17.0.50`],
  },
  { ask: `_db._tcp.${zone} A`, ...nodata },
  {
    ask: `_six._tcp.${zone} SRV`,
    answers: [`SRV 5 1 1 5432 fd00000000000000000000000000001f.addr.${zone}`, `SRV 5 1 1 5432 ac110028.addr.${zone}`],
    additional: [
      `fd00000000000000000000000000001f.addr.${zone} AAAA 5 fd00::1f`,
      `ac110028.addr.${zone} A 5 172.17.0.40`,
    ],
  },
  { ask: `ac110002.addr.${zone} A`, answers: ['A 5 172.17.0.2'] },
  { ask: `AC110002.addr.${zone} A`, answers: ['A 5 172.17.0.2'] },
  { ask: `ac110002.addr.${zone} AAAA`, ...nodata },
  { ask: `fd00000000000000000000000000001f.addr.${zone} AAAA`, answers: ['AAAA 5 fd00::1f'] },
  { ask: `ac11000.addr.${zone} A`, ...nxdomain },
  // Empty non-terminals exist.
  { ask: `service.${zone} A`, ...nodata },
  { ask: `addr.${zone} A`, ...nodata },
  { ask: `_tcp.${zone} SRV`, ...nodata },
  { ask: `_db.${zone} SRV`, ...nodata },
  { ask: `_nosuch.${zone} SRV`, ...nxdomain },
  // Hosts.
  { ask: `web-1.host.${zone} A`, answers: ['A 5 10.77.0.1'] },
  { ask: `web-2.node.${zone} A`, answers: ['A 5 10.77.0.2'] },
  { ask: `web-1.host.${zone} AAAA`, ...nodata },
  { ask: `web-1.host.${zone} TXT`, answers: ['TXT 5 id=00000000000000a1|address=10.77.0.1|version=0.1.0|alive=true'] },
  { ask: `web-9.host.${zone} A`, ...nxdomain },
  { ask: `primary.db.service.${zone} TXT`, answers: ['TXT 5 id=web-1/a|tags=Primary,v1.2|zone=a|region=eu'] },
  { ask: `plain.service.${zone} TXT`, answers: ['TXT 5 id=web-1/172-17-0-30-5432'] },
  // Reverse names.
  { ask: '3.0.17.172.in-addr.arpa PTR', answers: [`PTR 5 db.service.${zone}`] },
  { ask: '5.0.77.240.in-addr.arpa PTR', answers: [`PTR 5 db.${zone}`] },
  { ask: '77.0.77.240.in-addr.arpa PTR', rcode: 'NXDOMAIN', soa: '77.240.in-addr.arpa' },
  { ask: '3.0.17.172.in-addr.arpa A', soa: '3.0.17.172.in-addr.arpa' },
  { ask: '1.1.1.1.in-addr.arpa PTR', rcode: 'REFUSED' },
  { ask: `f.1.${'0.'.repeat(26)}0.0.d.f.ip6.arpa PTR`, answers: [`PTR 5 six.service.${zone}`] },
  // The apex.
  { ask: `${zone} SOA`, answers: [`SOA 5 ns.${zone} hostmaster.${zone} 1`] },
  { ask: `${zone} NS`, answers: [`NS 5 ns.${zone}`], additional: [`ns.${zone} A 5 ${server}`] },
  { ask: `${zone} A`, ...nodata },
  { ask: `ns.${zone} A`, answers: [`A 5 ${server}`] },
  { ask: `ns.${zone} AAAA`, ...nodata },
  { ask: `db.${zone} ANY`, answers: ['HINFO 5 {"cpu":"RFC8482","os":""}'] },
  { ask: `nosuch.${zone} ANY`, ...nxdomain },
  { ask: `${zone} AXFR`, rcode: 'REFUSED' },
];

t.test('every form of a name, first encoded and then copied', (t) => {
  const w = inside(snapshot);
  for (const test of cases) for (const round of ['encoded', 'copied']) check(t, w, test, round);
  t.end();
});

t.test('a declared underlay lets other hosts’ published addresses in', (t) => {
  const w = inside(snapshot, { clearUnderlay: true });
  const a = { ask: `db.service.${zone} A`, from: onShop, answers: ['A 5 10.77.0.2', 'A 5 172.18.0.4'] };
  check(t, w, a, 'once');
  check(
    t,
    w,
    {
      ask: `foreign.service.${zone} A`,
      ...nodata,
      extended: '0 foreign: 1 of 1 instances usable, none from here: it listens on loopback of its own host',
    },
    'once',
  );
  const srv = ask(w, { ask: `_db._tcp.${zone} SRV`, from: lan })
    .answers?.map(line)
    .sort();
  t.strictSame(srv, [`SRV 5 1 1 32768 0a4d0001.addr.${zone}`, `SRV 5 1 1 40000 0a4d0002.addr.${zone}`]);
  t.end();
});

t.test('an instance that only a tunnel leads to is answered by the address that this host serves it at', (t) => {
  const remote = [...snapshot.services.values()]
    .flatMap(({ usable }) => usable)
    .filter(({ hostId, service }) => hostId === otherHost && service === 'foreign')
    .map(({ id }) => id);
  const w = inside(snapshot, { instanceAddressOf: (id) => (remote.includes(id) ? '240.78.0.9' : undefined) });
  check(t, w, { ask: `foreign.service.${zone} A`, from: onShop, answers: ['A 5 240.78.0.9'] }, 'a container');
  check(t, w, { ask: `foreign.service.${zone} A`, answers: ['A 5 240.78.0.9'] }, 'the host');
  const srv = ask(w, { ask: `_foreign._tcp.${zone} SRV` }).answers?.map(line);
  t.match(srv, [/ f04e0009\.addr\./]);
  const others = ask(w, { ask: `foreign.service.${zone} A`, from: lan }).answers;
  t.same(others, [], 'nobody else can dial it');
  w.vipsOn.set(false);
  t.same(
    ask(inside(snapshot, { vipsOn: false, instanceAddressOf: () => '240.78.0.9' }), {
      ask: `foreign.service.${zone} A`,
    }).answers,
    [],
  );
  t.end();
});

t.test('without VIPs the link name is the listener’s, else the instances’', (t) => {
  const w = inside(snapshot, { vipsOn: false });
  check(t, w, { ask: 'db A', from: onShop, answers: ['A 5 172.18.0.4'] }, 'no listener');
  w.listeners.set('db', { address: '127.0.0.1', port: 15_432 });
  check(t, w, { ask: 'db A', answers: ['A 5 127.0.0.1'] }, 'a listener that was opened later');
  check(t, w, { ask: 'db A', from: onShop, answers: ['A 5 172.18.0.4'] }, 'loopback is no use in a container');
  w.listeners.set('db', { address: '0.0.0.0', port: 15_432 });
  check(t, w, { ask: 'db A', answers: [`A 5 ${server}`] }, 'a listener on all addresses');
  w.vipsOn.set(true);
  check(t, w, { ask: 'db A', answers: ['A 5 240.77.0.5'] }, 'VIPs came on');
  t.end();
});

t.test('before and after the store has been read', (t) => {
  const w = inside(snapshotOf([db], { origin: 'none' }));
  for (const name of [`nosuch.${zone} A`, 'nosuch A', `${zone} SOA`, '5.0.77.240.in-addr.arpa PTR']) {
    check(t, w, { ask: name, rcode: 'SERVFAIL', extended: '14 the catalog has not been read yet' }, 'origin none');
  }
  check(t, w, { ask: 'db A', answers: ['A 1 240.77.0.5'] }, 'what runs here is answered before the mesh is known');
  check(t, w, { ask: 'localhost A', answers: ['A 1 127.0.0.1'] }, 'origin none');
  w.snapshots.set({ ...snapshot, origin: 'disk' });
  check(t, w, { ask: 'db A', answers: ['A 1 240.77.0.5'] }, 'origin disk');
  w.snapshots.set(snapshot);
  check(t, w, { ask: 'db A', answers: ['A 5 240.77.0.5'] }, 'origin store');
  t.end();
});

t.test('an encoded answer lasts as long as its service', (t) => {
  const w = inside(snapshot);
  const first = { ask: `db.service.${zone} A`, from: onDocker0, answers: ['A 5 172.17.0.2', 'A 5 172.17.0.3'] };
  check(t, w, first, 'first');
  const kept = w.handler.cachedAnswers;
  const services = snapshot.services.with([['plain', service('plain', [])]], []);
  w.snapshots.set({ ...snapshot, services });
  check(t, w, first, 'another service has changed');
  t.equal(w.handler.cachedAnswers, kept, 'nothing was flushed');
  const changed = service('db', db.instances.slice(0, 1), { vip: '240.77.0.5' });
  w.snapshots.set({ ...snapshot, services: services.with([['db', changed]], []) });
  check(t, w, { ...first, answers: ['A 5 172.17.0.2'] }, 'it has changed');
  w.snapshots.set({ ...snapshot, services: services.with([], ['db']) });
  check(t, w, { ask: first.ask, ...nxdomain }, 'it has gone');
  w.topology.set({ addresses: new Set(), bridges: [] });
  w.snapshots.set(snapshot);
  check(t, w, { ...first, answers: ['A 5 172.18.0.4'] }, 'the bridges have gone');
  t.end();
});

t.test('answers are shuffled, and each order keeps its records whole', (t) => {
  const instances = Array.from({ length: 5 }, (_, index) =>
    instance('many', `172.17.1.${index}`, { port: 100 + index }),
  );
  const w = inside(snapshotOf([service('many', instances)]));
  const firsts = new Map<string, number>();
  let torn = 0;
  for (let round = 0; round < 1000; round += 1) {
    const answers = ask(w, { ask: `many.service.${zone} SRV` }).answers ?? [];
    for (const record of answers) {
      if (record.type !== 'SRV') continue;
      if (Number.parseInt(record.data.target.slice(6, 8), 16) + 100 !== record.data.port) torn += 1;
    }
    const first = answers[0]?.type === 'SRV' ? answers[0].data.target : '';
    firsts.set(first, (firsts.get(first) ?? 0) + 1);
  }
  t.equal(torn, 0, 'records whose port and target do not belong together');
  t.equal(firsts.size, 5);
  for (const [target, count] of firsts) t.ok(count > 120 && count < 290, `${target} was first ${count} of 1000 times`);
  t.end();
});

t.test('thousands of instances give a bounded answer of ever other ones', (t) => {
  const instances = Array.from({ length: 3000 }, (_, index) => instance('huge', `172.17.${index >> 8}.${index & 255}`));
  const w = inside(snapshotOf([service('huge', instances)]));
  const seen = new Set<string>();
  for (let round = 0; round < 1000; round += 1) {
    const answer = ask(w, { ask: `huge.service.${zone} A` });
    if (round === 0) t.equal(answer.answers?.length, 256);
    for (const record of answer.answers ?? []) if (record.type === 'A') seen.add(record.data);
    if (seen.size > 1500) break;
  }
  t.ok(seen.size > 1500, `${seen.size} of 3000 were seen`);
  t.end();
});
