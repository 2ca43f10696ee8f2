import { createSocket } from 'node:dgram';
import dnsPacket from 'dns-packet';
import t from 'tap';
import { maxCachedAnswers } from '../../dns/answer-cache.ts';
import { inside, instance, otherHost, queryPacket, service, snapshotOf, world } from '../../dns/test-support.ts';
import { readMessage } from '../../dns/wire/reader.ts';
import { waitFor } from '../support/wait.ts';

const packets = 100_000;
const zone = 'mesh.internal';

/** A small reproducible generator (mulberry32): a failure names its seed. */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const many = Array.from({ length: 120 }, (_, index) => {
  const parts = index % 3 === 0 ? { hostId: otherHost, reach: 'mesh' as const } : {};
  return instance('many', index % 7 === 0 ? `fd00::${index}` : `172.17.4.${index}`, {
    tags: ['a', 'é'],
    meta: { k: 'v'.repeat(300) },
    ...parts,
  });
});
const snapshot = snapshotOf([
  service('db', [instance('db', '172.17.0.2')], { vip: '240.77.0.5' }),
  service('many', many),
  service('none', []),
]);
const names = [
  `db.${zone}`,
  'db',
  `many.service.${zone}`,
  `_many._tcp.${zone}`,
  `a.many.service.${zone}`,
  `_a._many._tcp.${zone}`,
  `none.service.${zone}`,
  `web-1.host.${zone}`,
  zone,
  `ns.${zone}`,
  `ac110002.addr.${zone}`,
  '2.0.17.172.in-addr.arpa',
  '5.0.77.240.in-addr.arpa',
  'example.com',
  'localhost',
  '.',
];
const types = ['A', 'AAAA', 'SRV', 'TXT', 'PTR', 'SOA', 'NS', 'ANY', 'MX', 'AXFR', 'HINFO', 'CNAME'];

/** Either noise, or a query with some octets changed, cut off, doubled or swapped. */
function nextPacket(random: (below: number) => number): Buffer {
  if (random(8) === 0) return Buffer.from(Array.from({ length: random(80) }, () => random(256)));
  const name = names[random(names.length)] ?? '';
  const edns = random(2) === 0 ? {} : { edns: random(5000) };
  let packet = queryPacket(random(4) === 0 ? name.toUpperCase() : name, types[random(types.length)] ?? 'A', {
    id: random(65_536),
    ...edns,
  });
  for (let left = random(4); left > 0; left -= 1) {
    const at = random(packet.length + 1);
    const kind = random(6);
    if (kind < 3) packet[Math.min(at, packet.length - 1)] = random(256);
    else if (kind === 3) packet = packet.subarray(0, at);
    else if (kind === 4) packet = Buffer.concat([packet.subarray(0, at), packet.subarray(random(packet.length + 1))]);
    else packet = Buffer.concat([packet.subarray(0, at), Buffer.from([random(256)]), packet.subarray(at)]);
    if (packet.length === 0) break;
  }
  return packet;
}

/** The limit that a sender of a well-formed OPT at the packet's end states; generous where that cannot be told. */
function statedLimit(packet: Buffer, answer: Buffer): number {
  const hasOpt = answer.length >= 12 && answer.readUInt16BE(10) > 0;
  return hasOpt || packet.readUInt16BE(10) > 0 ? 1232 : 512;
}

const seed = Number(process.env.LEGATE_FUZZ_SEED ?? Date.now() % 2 ** 31);

t.test(`100,000 random and mutated packets (LEGATE_FUZZ_SEED=${seed})`, async (t) => {
  const random = generator(seed);
  const w = inside(snapshot, { clearUnderlay: true });
  const askers = ['127.0.0.1', '172.17.0.9', '172.18.0.9', '10.77.0.66'];
  let answered = 0;
  const faults: string[] = [];
  for (let count = 0; count < packets && faults.length < 5; count += 1) {
    const packet = nextPacket(random);
    const transport = random(10) === 0 ? 'tcp' : 'udp';
    const asker = random(20) === 0 ? `198.51.${random(256)}.${random(256)}` : (askers[random(askers.length)] ?? '');
    const label = `packet ${count} ${packet.toString('hex')}`;
    try {
      const reply = w.handler.handle(packet, asker, { transport, serverAddress: '127.0.0.1' });
      if (reply === undefined) {
        if (packet.length >= 12 && (packet[2] ?? 0) < 0x80) faults.push(`${label}: dropped`);
        continue;
      }
      if (!(reply instanceof Buffer)) throw new Error('an answer that comes later, without an upstream');
      answered += 1;
      dnsPacket.decode(reply);
      if (reply.readUInt16BE(0) !== packet.readUInt16BE(0)) faults.push(`${label}: another id`);
      if ((reply[2] ?? 0) < 0x80) faults.push(`${label}: no response`);
      if (transport === 'udp' && reply.length > statedLimit(packet, reply))
        faults.push(`${label}: ${reply.length} octets`);
    } catch (error) {
      faults.push(`${label}: ${error}`);
    }
  }
  t.strictSame(faults, []);
  t.ok(answered > packets / 2, `${answered} were answered`);
  t.ok(w.handler.cachedAnswers <= maxCachedAnswers);
  t.end();
});

t.test('the limit that the sender states holds for every well-formed query', (t) => {
  const random = generator(seed + 1);
  const w = inside(snapshot, { clearUnderlay: true });
  for (let count = 0; count < 20_000; count += 1) {
    // dns-packet writes 4096 for a stated limit of 0.
    const edns = random(3) === 0 ? undefined : 1 + random(2000);
    const packet = queryPacket(
      names[random(names.length)] ?? '',
      types[random(types.length)] ?? 'A',
      edns === undefined ? {} : { edns },
    );
    const reply = w.handler.handle(packet, '127.0.0.1', { transport: 'udp', serverAddress: '127.0.0.1' });
    const limit = Math.min(1232, Math.max(512, edns ?? 512));
    if (!(reply instanceof Buffer) || reply.length > limit) throw new Error(`over ${limit}: ${packet.toString('hex')}`);
  }
  t.pass('none was longer');
  t.end();
});

t.test('what is kept stays within its bound, whatever is asked', (t) => {
  const services = Array.from({ length: 12_000 }, (_, index) =>
    service(`s${index}`, [], { vip: `240.77.${index >> 8}.${index & 255}` }),
  );
  const w = inside(snapshotOf(services));
  for (const [index] of services.entries()) {
    for (const type of ['A', 'AAAA'])
      w.handler.handle(queryPacket(`s${index}`, type), '127.0.0.1', { transport: 'udp', serverAddress: undefined });
    w.handler.handle(queryPacket(`nosuch${index}`, 'A'), `10.1.${index >> 8}.${index & 255}`, {
      transport: 'udp',
      serverAddress: undefined,
    });
  }
  t.ok(
    w.handler.cachedAnswers <= maxCachedAnswers && w.handler.cachedAnswers > maxCachedAnswers / 2,
    `${w.handler.cachedAnswers} are kept`,
  );
  t.end();
});

t.test('thousands of them over a real socket, and it still answers', async (t) => {
  const random = generator(seed + 2);
  const w = world(snapshot);
  t.teardown(() => w.server.close());
  const { endpoint } = await w.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  const socket = createSocket('udp4');
  t.teardown(() => new Promise<void>((resolve) => socket.close(() => resolve())));
  let last = -1;
  let undecodable = 0;
  socket.on('message', (packet) => {
    if (packet.length >= 12 && packet.readUInt16BE(0) === 65_535) last = packet.length;
    try {
      dnsPacket.decode(packet);
    } catch {
      undecodable += 1;
    }
  });
  for (let batch = 0; batch < 30; batch += 1) {
    for (let count = 0; count < 100; count += 1) socket.send(nextPacket(random), endpoint.port, endpoint.address);
    last = -1;
    await waitFor('an answer after a batch', () => {
      socket.send(queryPacket('db', 'A', { id: 65_535 }), endpoint.port, endpoint.address);
      return last > 0;
    });
  }
  t.equal(undecodable, 0);
  const queries = w.server.listeners()[0]?.queries ?? 0;
  t.ok(queries > 2500, `${queries} came in`);
});

t.test('mutated answers of an upstream are read or refused', (t) => {
  const random = generator(seed + 3);
  const w = inside(snapshot, { clearUnderlay: true });
  let read = 0;
  for (let count = 0; count < 20_000; count += 1) {
    const query = queryPacket(names[random(names.length)] ?? '', types[random(types.length)] ?? 'A', { edns: 600 });
    const answer = w.handler.handle(query, '127.0.0.1', { transport: 'udp', serverAddress: '127.0.0.1' });
    if (!(answer instanceof Buffer)) throw new Error('no answer');
    const mutated = Buffer.from(answer.subarray(0, random(4) === 0 ? random(answer.length) : answer.length));
    for (let left = random(6); left > 0 && mutated.length > 0; left -= 1) mutated[random(mutated.length)] = random(256);
    if (readMessage(mutated) !== undefined) read += 1;
  }
  t.ok(read > 1000, `${read} could be read`);
  t.end();
});
