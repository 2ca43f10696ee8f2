import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import dnsPacket from 'dns-packet';
import t, { type Test } from 'tap';
import { ManualClock, systemClock } from '../src/base/clock.ts';
import type { Endpoint } from '../src/model/address.ts';
import { waitFor } from '../test/support/wait.ts';
import { maxInFlight } from './forward.ts';
import { askTcp, askUdp, decode, queryPacket, service, snapshotOf, world } from './test-support.ts';
import { parseResolvConf, Upstreams } from './upstreams.ts';

const snapshot = snapshotOf([service('db', [], { vip: '240.77.0.5' })]);

interface Fake {
  readonly endpoint: Endpoint;
  readonly questions: { readonly name: string; readonly id: number; readonly port: number; readonly packet: Buffer }[];
}

type Behaviour = (query: Buffer, over: 'udp' | 'tcp') => Buffer | undefined;

/** An upstream that does as it is told. */
async function upstream(t: Test, behave: Behaviour): Promise<Fake> {
  const questions: Fake['questions'] = [];
  const udp = createSocket('udp4');
  udp.on('message', (packet, peer) => {
    questions.push({
      name: decode(packet).questions?.[0]?.name ?? '',
      id: packet.readUInt16BE(0),
      port: peer.port,
      packet,
    });
    const answer = behave(packet, 'udp');
    if (answer !== undefined) udp.send(answer, peer.port, peer.address);
  });
  const tcp = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (chunk) => {
      const answer = behave(Buffer.from(chunk).subarray(2), 'tcp');
      if (answer === undefined) return;
      const length = Buffer.alloc(2);
      length.writeUInt16BE(answer.length);
      socket.write(length);
      socket.write(answer);
    });
  });
  const endpoint = { address: '127.0.0.1', port: await samePort(tcp, udp) };
  t.teardown(() => {
    udp.close();
    tcp.close();
  });
  return { endpoint, questions };
}

/** Listens on one port that is free for both; one that is free for TCP may be taken for UDP. */
async function samePort(tcp: Server, udp: Socket): Promise<number> {
  for (let attempt = 0; attempt < 50; attempt += 1) {
    tcp.listen(0, '127.0.0.1');
    await once(tcp, 'listening');
    const address = tcp.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    udp.bind(port, '127.0.0.1');
    const taken = await once(udp, 'listening').then(
      () => false,
      () => true,
    );
    if (!taken) return port;
    tcp.close();
    await once(tcp, 'close');
  }
  throw new Error('no port is free for both TCP and UDP');
}

/** An answer to the query with so many addresses. */
function answer(
  query: Buffer,
  count = 1,
  { rcode = 0, flags = 0, id }: { rcode?: number; flags?: number; id?: number } = {},
): Buffer {
  const { questions = [], id: asked = 0 } = decode(query);
  const answers = Array.from({ length: count }, (_, index) => {
    return { type: 'A' as const, name: questions[0]?.name ?? '', ttl: 60, data: `192.0.2.${index % 250}` };
  });
  const response = dnsPacket.encode({
    type: 'response',
    id: id ?? asked,
    flags: flags | dnsPacket.RECURSION_AVAILABLE,
    questions,
    answers,
  });
  response[3] = ((response[3] ?? 0) & 0xf0) | rcode;
  return response;
}

async function serverFor(t: Test, endpoints: readonly Endpoint[], clock = systemClock) {
  const w = world(snapshot, { upstream: endpoints }, clock);
  t.teardown(() => w.server.close());
  const { endpoint } = await w.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  return { ...w, at: endpoint };
}

t.test('other zones are forwarded, over UDP and TCP', async (t) => {
  const fake = await upstream(t, (query) => answer(query, 2));
  const w = await serverFor(t, [fake.endpoint]);
  const own = decode(await askUdp(w.at, queryPacket('db', 'A')));
  t.match([own.flag_ra, own.flag_aa, own.answers?.length], [true, true, 1]);
  const got = decode(await askUdp(w.at, queryPacket('WWW.example.com', 'A', { id: 321 })));
  t.match(got, { id: 321, rcode: 'NOERROR', flag_ra: true, flag_aa: false, questions: [{ name: 'WWW.example.com' }] });
  t.equal(got.answers?.length, 2);
  const [byTcp] = await askTcp(w.at, [queryPacket('example.com', 'A', { id: 12 })]);
  t.match(decode(byTcp ?? Buffer.alloc(0)), { id: 12, answers: { length: 2 } });
  t.equal(fake.questions.length, 1, 'what came by TCP went by TCP');
  t.match(decode(await askUdp(w.at, queryPacket('example.com', 'A', { rd: false }))), { rcode: 'REFUSED' });
  for (const name of ['nosuch', 'nosuch.mesh.internal', 'foo.localhost']) await askUdp(w.at, queryPacket(name, 'A'));
  t.equal(fake.questions.length, 1, 'single labels and our zone stay here');
  for (let index = 0; index < 60; index += 1)
    await askUdp(w.at, queryPacket(`n${index}.example.com`, 'A', { edns: 4096 }));
  t.ok(new Set(fake.questions.map(({ id }) => id)).size > 55, 'ids are random');
  t.equal(new Set(fake.questions.map(({ port }) => port)).size, 4, 'source ports are several, and bounded');
  const sizes = new Set(fake.questions.slice(1).map(({ packet }) => packet.readUInt16BE(packet.length - 8)));
  t.strictSame([...sizes], [1232], 'an upstream is never told to send more than we may pass on');
  const explained = await w.server.resolve({ name: 'example.com', type: 'A' });
  t.match(explained, {
    origin: `forwarded to 127.0.0.1:${fake.endpoint.port}`,
    answers: [{ data: '192.0.2.0', ttl: 60 }, {}],
  });
});

t.test('to the first upstream that answers', async (t) => {
  const silent = await upstream(t, () => undefined);
  const ill = await upstream(t, (query) => answer(query, 0, { rcode: 2 }));
  const well = await upstream(t, (query) => answer(query));
  const nobody = { address: '127.0.0.1', port: 9 };
  const clock = new ManualClock();
  const w = await serverFor(t, [nobody, silent.endpoint, well.endpoint], clock);
  const first = askUdp(w.at, queryPacket('a.example.com', 'A'));
  await waitFor('the second upstream to be asked', () => silent.questions.length > 0);
  t.equal(well.questions.length, 0);
  await clock.advance(2000);
  t.match(decode(await first), { rcode: 'NOERROR' });
  t.match(decode(await askUdp(w.at, queryPacket('b.example.com', 'A'))), { rcode: 'NOERROR' });
  t.equal(silent.questions.length, 1, 'one in trouble is tried last for a while');
  const v = await serverFor(t, [ill.endpoint, well.endpoint]);
  t.match(decode(await askUdp(v.at, queryPacket('a.example.com', 'A'))), { rcode: 'NOERROR' });
  t.equal(ill.questions.length, 1);
  const lone = await serverFor(t, [ill.endpoint]);
  t.match(decode(await askUdp(lone.at, queryPacket('a.example.com', 'A'))), { rcode: 'SERVFAIL' });
});

t.test('with no upstream left: SERVFAIL, and a condition until one answers', async (t) => {
  let dead = true;
  const fake = await upstream(t, (query) => (dead ? undefined : answer(query)));
  const clock = new ManualClock();
  const w = await serverFor(t, [fake.endpoint], clock);
  for (let round = 0; round < 3; round += 1) {
    const before = fake.questions.length;
    const asked = askUdp(w.at, queryPacket('a.example.com', 'A', { edns: 1232 }));
    for (const tries of [1, 2]) {
      await waitFor('a try', () => fake.questions.length === before + tries);
      await clock.advance(2000);
    }
    t.match(decode(await asked), { rcode: 'SERVFAIL', flag_aa: false });
  }
  t.match(w.conditions.list(), [{ id: 'dns.upstream.silent', hint: /dns\.upstream/ }]);
  dead = false;
  t.match(decode(await askUdp(w.at, queryPacket('a.example.com', 'A'))), { rcode: 'NOERROR' });
  t.strictSame(w.conditions.list(), []);
});

t.test('what does not answer the question is ignored', async (t) => {
  let port = 0;
  const fake = await upstream(t, (query) => {
    const { id = 0, questions = [] } = decode(query);
    const forged = [
      answer(query, 3, { id: (id + 1) & 0xffff }),
      dnsPacket.encode({ type: 'response', id, questions: [{ type: 'A', name: 'evil.example.com' }] }),
      dnsPacket.encode({ type: 'query', id, questions }),
      Buffer.alloc(3),
    ];
    const socket = createSocket('udp4');
    // From another port not even the right answer counts.
    socket.send(answer(query, 4), port, '127.0.0.1', () => socket.close());
    for (const packet of forged) sender.send(packet, port, '127.0.0.1');
    return answer(query, 1);
  });
  const sender = createSocket('udp4');
  t.teardown(() => sender.close());
  const w = await serverFor(t, [fake.endpoint]);
  port = 1;
  for (let round = 0; round < 5; round += 1) {
    const got = decode(await askUdp(w.at, queryPacket('a.example.com', 'A')));
    t.equal(got.answers?.length, 1);
    port = fake.questions.at(-1)?.port ?? 1;
  }
});

t.test('truncated answers are fetched over TCP, and fit the asker', async (t) => {
  const fake = await upstream(t, (query, over) =>
    over === 'udp' ? answer(query, 0, { flags: dnsPacket.TRUNCATED_RESPONSE }) : answer(query, 20),
  );
  const w = await serverFor(t, [fake.endpoint]);
  t.match(decode(await askUdp(w.at, queryPacket('a.example.com', 'A', { edns: 1232 }))), {
    flag_tc: false,
    answers: { length: 20 },
  });
  const small = await askUdp(w.at, queryPacket('a.example.com', 'A'));
  t.ok(small.length <= 512);
  t.match(decode(small), { flag_tc: true, answers: { length: 0 } });
  const rude = await upstream(t, (query) => answer(query, 100));
  const v = await serverFor(t, [rude.endpoint]);
  const cut = await askUdp(v.at, queryPacket('a.example.com', 'A', { edns: 600 }));
  t.match(decode(cut), { flag_tc: true, answers: { length: 0 }, additionals: [{ type: 'OPT' }] });
});

t.test('what is in flight is bounded', async (t) => {
  const fake = await upstream(t, () => undefined);
  const w = await serverFor(t, [fake.endpoint], new ManualClock());
  const socket = createSocket('udp4');
  t.teardown(() => socket.close());
  let failed = 0;
  socket.on('message', (packet) => {
    if (((packet[3] ?? 0) & 15) === 2) failed += 1;
  });
  let sent = 0;
  await waitFor('questions beyond the bound to fail at once', () => {
    for (let index = 0; index < 100; index += 1) {
      socket.send(queryPacket(`n${sent++}.example.com`, 'A'), w.at.port, w.at.address);
    }
    return failed > 0;
  });
  const text = await w.metrics.exposition();
  t.match(text, new RegExp(`legate_dns_forwards_in_flight_count ${maxInFlight}\n`));
});

t.test('our own questions that come back are refused', async (t) => {
  // An upstream that hands every packet on as it is, as a port mapping does.
  const back = await upstream(t, () => undefined);
  const v = world(snapshot, { upstream: [back.endpoint] });
  t.teardown(() => v.server.close());
  const { endpoint } = await v.server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
  const asked = askUdp(endpoint, queryPacket('a.example.com', 'A'));
  await waitFor('the question to come by', () => back.questions.length > 0);
  const returned = await askUdp(endpoint, back.questions[0]?.packet ?? Buffer.alloc(0));
  t.match(decode(returned), { rcode: 'REFUSED' });
  t.match(v.conditions.list(), [{ id: 'dns.upstream.loop' }]);
  await v.server.close();
  t.match(await asked.catch(() => 'closed'), 'closed');
});

t.test('the servers of resolv.conf, without ourselves, as the file changes', async (t) => {
  t.strictSame(
    parseResolvConf(
      '# x\nnameserver 10.0.0.2\n nameserver\tfd00::2 # y\nnameserver nonsense\nsearch a\n;nameserver 1.1.1.1\n',
    ),
    [
      { address: '10.0.0.2', port: 53 },
      { address: 'fd00::2', port: 53 },
    ],
  );
  t.equal(parseResolvConf('nameserver 10.0.0.1\n'.repeat(100)).length, 8);
  const resolvConf = join(t.testdir(), 'resolv.conf');
  const clock = new ManualClock();
  const upstreams = new Upstreams({
    upstream: 'auto',
    resolvConf,
    clock,
    isOwn: ({ address }) => address === '240.77.0.53',
  });
  t.strictSame(upstreams.inOrder(), []);
  writeFileSync(resolvConf, 'nameserver 240.77.0.53\nnameserver 10.0.0.2\n');
  await clock.advance(2000);
  await waitFor('the new file', () => upstreams.inOrder().length === 1);
  t.strictSame(upstreams.inOrder(), [{ address: '10.0.0.2', port: 53 }]);
});
