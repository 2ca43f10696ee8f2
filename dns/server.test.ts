import { execFile } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { promisify } from 'node:util';
import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { isLegateError } from '../src/base/errors.ts';
import type { Endpoint } from '../src/model/address.ts';
import { unless } from '../test/support/needs.ts';
import { waitFor } from '../test/support/wait.ts';
import { ConnectionBudget, idleMs } from './tcp-listener.ts';
import {
  askTcp,
  askUdp,
  decode,
  instance,
  otherHost,
  queryPacket,
  service,
  snapshotOf,
  type World,
  world,
} from './test-support.ts';

const run = promisify(execFile);
const zone = 'mesh.internal';
const db = service('db', [instance('db', '172.17.0.2'), instance('db', '172.17.0.3')], { vip: '240.77.0.5' });
const many = service(
  'many',
  Array.from({ length: 200 }, (_, index) => instance('many', `172.17.2.${index}`)),
);
const snapshot = snapshotOf([db, many]);

async function started(
  t: import('tap').Test,
  parts: Parameters<typeof world>[1] = {},
): Promise<World & { at: Endpoint }> {
  const w = world(snapshot, parts);
  t.teardown(() => w.server.close());
  const { endpoint } = await w.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  return { ...w, at: endpoint };
}

t.test('over UDP and TCP of one port', async (t) => {
  const w = await started(t);
  const udp = decode(await askUdp(w.at, queryPacket('dB.Mesh.internal', 'A', { id: 99 })));
  t.match(udp, { id: 99, rcode: 'NOERROR', flag_aa: true, flag_rd: true, flag_ra: false, flag_tc: false });
  t.strictSame(udp.questions?.[0]?.name, 'dB.Mesh.internal', 'the question’s letters are kept');
  t.match(udp.answers, [{ name: 'dB.Mesh.internal', type: 'A', ttl: 5, data: '240.77.0.5' }]);
  t.equal(udp.additionals?.length, 0, 'no OPT that was not asked for');
  const packets = Array.from({ length: 50 }, (_, id) =>
    queryPacket(id % 2 === 0 ? 'db' : `_db._tcp.${zone}`, id % 2 === 0 ? 'A' : 'SRV', { id }),
  );
  const answers = (await askTcp(w.at, packets)).map(decode);
  t.strictSame(
    answers.map(({ id }) => id).sort((a, b) => (a ?? 0) - (b ?? 0)),
    packets.map((_, id) => id),
    'pipelined',
  );
  t.ok(answers.every((answer) => answer.answers?.length === ((answer.id ?? 0) % 2) + 1));
  t.match(w.server.listeners(), [
    { listen: `127.0.0.1:${w.at.port}`, purpose: 'configured', state: 'up', queries: 51 },
  ]);
});

t.test('answers stay within the sender’s limit', async (t) => {
  const w = await started(t);
  for (const [edns, most, truncated] of [
    [undefined, 512, true],
    [100, 512, true],
    [800, 800, true],
    [4096, 1232, true],
  ] as const) {
    for (const [name, type] of [
      [`many.service.${zone}`, 'A'],
      [`_many._tcp.${zone}`, 'SRV'],
    ] as const) {
      const packet = await askUdp(w.at, queryPacket(name, type, edns === undefined ? {} : { edns }));
      const answer = decode(packet);
      const label = `${type} with ${edns ?? 'no EDNS'}`;
      t.ok(packet.length <= most && packet.length > most - 120, `${label}: ${packet.length} octets`);
      t.equal(answer.flag_tc, truncated, `${label}: TC`);
      t.ok((answer.answers?.length ?? 0) > 5, `${label}: whole records`);
      t.equal(
        answer.additionals?.filter(({ type }) => type === 'OPT').length,
        edns === undefined ? 0 : 1,
        `${label}: OPT`,
      );
    }
  }
  const [whole] = await askTcp(w.at, [queryPacket(`_many._tcp.${zone}`, 'SRV')]);
  const answer = decode(whole ?? Buffer.alloc(0));
  t.match([answer.flag_tc, answer.answers?.length, answer.additionals?.length], [false, 200, 200]);
});

t.test('additional records that have no room are no truncation', async (t) => {
  const instances = Array.from({ length: 9 }, (_, index) => instance('nine', `172.17.3.${index}`));
  const w = world(snapshotOf([service('nine', instances)]));
  t.teardown(() => w.server.close());
  const { endpoint } = await w.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  const packet = await askUdp(endpoint, queryPacket(`_nine._tcp.${zone}`, 'SRV'));
  const answer = decode(packet);
  t.match([answer.flag_tc, answer.answers?.length], [false, 9]);
  t.ok((answer.additionals?.length ?? 9) < 9 && packet.length <= 512);
});

/** Header flags, counts and the rest by hand: what dns-packet would not write. */
function raw(flags: number, counts: readonly number[], rest = ''): Buffer {
  const header = Buffer.alloc(12);
  header.writeUInt16BE(7, 0);
  header.writeUInt16BE(flags, 2);
  for (const [index, count] of counts.entries()) header.writeUInt16BE(count, 4 + 2 * index);
  return Buffer.concat([header, Buffer.from(rest, 'hex')]);
}

const dbA = '02646200' + '00010001';
const opt = (version: string, rest = '0000') => `000029040000${version}0000${rest}`;

t.test('packets that are no proper query', async (t) => {
  const w = await started(t);
  for (const [what, packet, code, octets] of [
    ['opcode STATUS', raw(0x1000, [1, 0, 0, 0], dbA), 4, 12],
    ['opcode UPDATE', raw(0x2800, [1, 0, 0, 0], dbA), 4, 12],
    ['no question', raw(0x0100, [0, 0, 0, 0]), 1, 12],
    ['two questions', raw(0x0100, [2, 0, 0, 0], dbA + dbA), 1, 12],
    ['65,535 additional records', raw(0x0100, [1, 0, 0, 65_535], dbA), 1, 12],
    ['an answer', raw(0x0100, [1, 1, 0, 0], dbA), 1, 12],
    ['a name that points at itself', raw(0x0100, [1, 0, 0, 0], 'c00c00010001'), 1, 12],
    ['a label beyond the end', raw(0x0100, [1, 0, 0, 0], '3f646200010001'), 1, 12],
    ['octets behind the end', raw(0x0100, [1, 0, 0, 0], `${dbA}00`), 1, 20],
    ['two OPT records', raw(0x0100, [1, 0, 0, 2], dbA + opt('00') + opt('00')), 1, 31],
    ['an OPT record that is not the root’s', raw(0x0100, [1, 0, 0, 1], `${dbA}0161${opt('00')}`), 1, 20],
    ['an option beyond its record', raw(0x0100, [1, 0, 0, 1], dbA + opt('00', '0004000a0008')), 1, 20],
    ['EDNS version 1', raw(0x0100, [1, 0, 0, 1], dbA + opt('01')), 16, 31],
    ['class CHAOS', raw(0x0100, [1, 0, 0, 0], '0264620000010003'), 5, 20],
  ] as const) {
    const answer = await askUdp(w.at, packet);
    const extended = answer.length >= 31 ? (answer[answer.length - 6] ?? 0) << 4 : 0;
    t.equal(((answer[3] ?? 0) & 15) | extended, code, `${what}: code`);
    t.equal(answer.length, octets, `${what}: length`);
    t.equal(answer.readUInt16BE(0), 7, `${what}: id`);
    t.equal((answer[2] ?? 0) & 0xf9, 0x80 | ((packet[2] ?? 0) & 0x79), `${what}: QR, opcode and RD`);
  }
});

t.test('what gets no answer at all', async (t) => {
  const w = await started(t);
  const socket = createSocket('udp4');
  t.teardown(() => new Promise<void>((resolve) => socket.close(() => resolve())));
  const received: number[] = [];
  socket.on('message', (packet) => received.push(packet.readUInt16BE(0)));
  for (const packet of [raw(0x8180, [1, 0, 0, 0], dbA), raw(0x8000, [0, 0, 0, 0]), Buffer.alloc(0), Buffer.alloc(11)]) {
    socket.send(packet, w.at.port, w.at.address);
  }
  socket.send(queryPacket('db', 'A', { id: 5 }), w.at.port, w.at.address);
  await waitFor('the one answer', () => received.length > 0);
  t.strictSame(received, [5]);
});

t.test('TCP connections are bounded', async (t) => {
  const clock = new ManualClock();
  const w = world(snapshot, {}, clock);
  t.teardown(() => w.server.close());
  const { endpoint } = await w.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  let closed = 0;
  let open = 0;
  const sockets = Array.from({ length: ConnectionBudget.maxPerAddress + 5 }, () => {
    const socket = connect(endpoint.port, endpoint.address);
    socket.on('connect', () => (open += 1));
    socket.on('close', () => (closed += 1));
    socket.on('error', () => undefined);
    return socket;
  });
  t.teardown(() => sockets.map((socket) => socket.destroy()));
  await waitFor('those beyond the bound to be closed', () => open === sockets.length && closed === 5);
  // A drip of octets is no sign of life: only whole questions are.
  for (const socket of sockets) socket.write(Buffer.from([0]));
  await clock.advance(idleMs);
  await waitFor('the idle ones to be closed', () => closed === sockets.length);
  const tooLong = connect(endpoint.port, endpoint.address, () => tooLong.write(Buffer.from([0xff, 0xff, 0, 0])));
  tooLong.on('close', () => (closed += 1));
  await waitFor('the one with a message beyond the bound to be closed', () => closed === sockets.length + 1);
  const half = connect({ port: endpoint.port, host: endpoint.address, allowHalfOpen: true });
  const query = queryPacket('db', 'A');
  half.end(Buffer.concat([Buffer.from([0, query.length]), query]));
  const [chunk] = await Promise.race([
    new Promise<Buffer[]>((resolve) => half.once('data', (data: Buffer) => resolve([data]))),
  ]);
  t.equal(chunk?.readUInt16BE(0), (chunk?.length ?? 0) - 2, 'a half-closed connection gets its answer');
  await waitFor('its end', () => half.readableEnded);
});

t.test('listening that fails says why', async (t) => {
  const w = await started(t);
  const other = world(snapshot);
  t.teardown(() => other.server.close());
  for (const [endpoint, code] of [
    [w.at, 'E_IN_USE'],
    [{ address: '192.0.2.1', port: 0 }, 'E_NOT_FOUND'],
    [{ address: '0.0.0.0', port: 0 }, 'E_INVALID'],
    [{ address: '::', port: 0 }, 'E_INVALID'],
  ] as const) {
    const error = await other.server.listen(endpoint, 'configured').then(
      () => undefined,
      (reason) => reason,
    );
    t.ok(isLegateError(error, code), `${code}: ${error}`);
    t.ok(error.hint, 'with a hint');
  }
  t.strictSame(other.server.listeners(), []);
  const handle = await other.server.listen({ address: '127.0.0.2', port: w.at.port }, 'bridge docker0');
  t.equal(other.server.listeners().length, 1);
  await handle.close();
  t.strictSame(other.server.listeners(), []);
  await (await other.server.listen({ address: '127.0.0.2', port: w.at.port }, 'again')).close();
});

t.test('resolve says what is left out and where it comes from', async (t) => {
  const ill = service('ill', [
    instance('ill', '172.17.0.2'),
    instance('ill', '172.18.0.3'),
    instance('ill', '172.17.0.4', { status: 'critical', output: 'refused\n' }),
  ]);
  const w = world(snapshotOf([ill]));
  t.teardown(() => w.server.close());
  const { endpoint } = await w.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  const found = await w.server.resolve({ name: `ill.service.${zone}`, type: 'a' }, '172.17.0.9');
  t.match(found, {
    server: `127.0.0.1:${endpoint.port}`,
    status: 'NOERROR',
    answers: [{ name: `ill.service.${zone}.`, type: 'A', ttl: 5, data: '172.17.0.2' }],
    origin: 'the snapshot',
    leftOut: [
      { id: 'web-1/172-18-0-3-5432', reason: 'it is on bridge br-shop, which Docker isolates from docker0' },
      { id: 'web-1/172-17-0-4-5432', reason: 'is critical: refused\\n' },
    ],
    note: null,
  });
  const srv = await w.server.resolve({ name: `_ill._tcp.${zone}`, type: 'SRV' }, '172.17.0.9');
  t.match(srv.answers, [{ data: `1 1 5432 ac110002.addr.${zone}.` }]);
  t.match(srv.additionals, [{ name: `ac110002.addr.${zone}.`, data: '172.17.0.2' }]);
  t.match(await w.server.resolve({ name: 'nosuch', type: 'A' }), { status: 'NXDOMAIN', answers: [] });
  t.match(await w.server.resolve({ name: '172.17.0.2', type: 'ptr' }), {
    name: '2.0.17.172.in-addr.arpa.',
    answers: [{ type: 'PTR', data: `ill.service.${zone}.` }],
  });
  t.match(await w.server.resolve({ name: 'fd00::2', type: 'PTR' }), {
    name: `2.${'0.'.repeat(27)}0.0.d.f.ip6.arpa.`,
    status: 'REFUSED',
  });
  t.match(await w.server.resolve({ name: '172.17.0.2', type: 'A' }), { name: '172.17.0.2.', hint: null });
  for (const name of ['ill', `ill.${zone}`, `ILL.${zone}.`]) {
    t.match(await w.server.resolve({ name, type: 'SRV' }), {
      status: 'NOERROR',
      answers: [],
      hint: `ports are at ill.service.${zone} and _ill._tcp.${zone}`,
    });
  }
  for (const name of [`web-1.host.${zone}`, 'nosuch', `_ill._tcp.${zone}`]) {
    t.equal((await w.server.resolve({ name, type: 'SRV' })).hint, null, name);
  }
  await t.rejects(w.server.resolve({ name: 'a..b', type: 'A' }), { code: 'E_INVALID' });
  await t.rejects(w.server.resolve({ name: 'db', type: 'NONSENSE' }), { code: 'E_INVALID' });
});

t.test('resolve says when nothing behind a virtual address is for this host, and what the full name is', async (t) => {
  const far = (name: string, parts: Parameters<typeof instance>[2] = {}) =>
    instance(name, '172.17.0.2', { hostId: otherHost, ...parts });
  const w = world(
    snapshotOf([
      service('inner', [far('inner')], { vip: '240.77.0.6' }),
      service('outer', [far('outer', { reach: 'mesh', published: { address: '10.77.0.2', port: 80 } })], {
        vip: '240.77.0.7',
      }),
      service('ill', [far('ill', { status: 'lost' })], { vip: '240.77.0.8' }),
      service('mixed', [far('mixed'), instance('mixed', '172.17.0.3')], { vip: '240.77.0.9' }),
    ]),
  );
  t.teardown(() => w.server.close());
  const ask = (name: string) => w.server.resolve({ name, type: 'A' });
  const inner = 'inner: 1 of 1 instances usable, none from here: its address is known only to its own host';
  t.match(await ask(`inner.${zone}`), { status: 'NOERROR', answers: [{ data: '240.77.0.6' }], note: inner });
  t.match(await ask('outer'), {
    answers: [{ data: '240.77.0.7' }],
    note: /none from here: the underlay is not declared/,
  });
  t.match(await ask('ill'), { answers: [{ data: '240.77.0.8' }], note: 'ill: 0 of 1 instances usable' });
  t.match(await ask('mixed'), { answers: [{ data: '240.77.0.9' }], note: null });
  for (const name of ['inner.service', '_inner._tcp', 'web-2.host']) {
    const hint = `names of the mesh are asked in full: ${name}.${zone}`;
    t.match(await ask(name), { status: 'REFUSED', hint });
  }
  for (const name of ['example.com', 'unheard-of.host', `nosuch.service.${zone}`])
    t.equal((await ask(name)).hint, null, name);
});

t.test('resolve tells the age of the picture by the store’s last confirmation, not by its last change', async (t) => {
  const clock = new ManualClock(1_000_000);
  let confirmedAtMs: number | undefined;
  const w = world(snapshot, { confirmedAtMs: () => confirmedAtMs }, clock);
  t.teardown(() => w.server.close());
  const origin = async (): Promise<string> => (await w.server.resolve({ name: 'db', type: 'A' })).origin;
  t.equal(await origin(), 'the snapshot');
  await clock.advance(60_000);
  confirmedAtMs = clock.nowMs() - 200;
  t.equal(await origin(), 'the snapshot, confirmed by the store 0.2 s ago');
  w.snapshots.set({ ...snapshot, origin: 'disk' });
  confirmedAtMs = clock.nowMs() - 180_000;
  t.equal(await origin(), 'the snapshot on disk, last confirmed 3 min ago');
  confirmedAtMs = undefined;
  t.equal(await origin(), 'the snapshot on disk, never confirmed by the store');
  w.snapshots.set({ ...snapshot, origin: 'none' });
  t.equal(await origin(), 'no snapshot yet');
});

t.test('over IPv6, with IPv4 askers in their own form', async (t) => {
  const w = world(snapshot);
  t.teardown(() => w.server.close());
  const handle = await w.server.listen({ address: '::1', port: 0 }, 'configured').catch(() => undefined);
  if (handle === undefined) return t.comment('no IPv6 here');
  const socket = createSocket('udp6');
  const answer = await new Promise<Buffer>((resolve) => {
    socket.once('message', resolve);
    socket.send(queryPacket(`ns.${zone}`, 'AAAA'), handle.endpoint.port, '::1');
  });
  socket.close();
  t.match(decode(answer).answers, [{ type: 'AAAA', data: '::1' }]);
});

t.test('dig understands every form, over UDP and TCP', { skip: unless('command:dig') }, async (t) => {
  const w = await started(t);
  const dig = async (...args: string[]): Promise<string> => {
    const { stdout } = await run('dig', ['@127.0.0.1', '-p', String(w.at.port), '+tries=1', '+time=3', ...args]);
    return stdout;
  };
  for (const transport of ['+notcp', '+tcp']) {
    t.equal(await dig(transport, '+short', 'db', 'A'), '240.77.0.5\n');
    t.equal(
      (await dig(transport, '+short', `_db._tcp.${zone}`, 'SRV')).split('\n').sort().join(),
      `,1 1 5432 ac110002.addr.${zone}.,1 1 5432 ac110003.addr.${zone}.`,
    );
    t.equal(await dig(transport, '+short', '-x', '240.77.0.5'), `db.${zone}.\n`);
    t.match(
      await dig(transport, 'nosuch', 'A'),
      /status: NXDOMAIN[\s\S]*\n\.\s+1\s+IN\s+SOA\s+ns\.mesh\.internal\. hostmaster\.mesh\.internal\./,
    );
    t.match(
      await dig(transport, `${zone}`, 'NS'),
      /ADDITIONAL SECTION:\s+ns\.mesh\.internal\.\s+5\s+IN\s+A\s+127\.0\.0\.1/,
    );
    t.match(
      await dig(transport, '+nosplit', `web-1.host.${zone}`, 'TXT'),
      /"id=00000000000000a1" "address=10\.77\.0\.1"/,
    );
    t.match(await dig(transport, '+dnssec', '+cookie', 'db', 'A'), /flags: do; udp: 1232/);
    t.notMatch(await dig(transport, `db.service.${zone}`, 'A'), /malformed|extra bytes/i);
  }
  t.match(await dig('+ignore', '+noedns', `many.service.${zone}`), /flags: qr aa tc rd/);
  t.match(await dig('+noedns', `many.service.${zone}`), /Truncated, retrying in TCP mode[\s\S]*ANSWER: 200/);
  t.match(await dig('+edns=1', '+noednsneg', 'db'), /status: BADVERS/);
  t.match(await dig('+opcode=STATUS', 'db'), /status: NOTIMP/);
});
