import { createHash, randomBytes } from 'node:crypto';
import { connect, createServer, type Server, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { makeTestAuthority } from '../../test/support/certificates.ts';
import { waitFor } from '../../test/support/wait.ts';
import { maxDeskCallersPerAddress } from './desk-door.ts';
import { closeAfterMs, suspectAfterMs, tickMs } from './limits.ts';
import { silenceToldMs } from './peer.ts';
import { connectRaw, type RawPeer } from './raw-peer.test-support.ts';
import { makeHost, RecordedEvents, type TestHost, type TestHostOptions, testHead, testPolicy } from './test-support.ts';
import type { StreamHead, TunnelStream } from './tunnels.ts';

const hourMs = 3_600_000;
const authority = await makeTestAuthority();
const ids = { a: 'aaaaaaaaaaaaaaaa', b: 'bbbbbbbbbbbbbbbb', c: 'cccccccccccccccc' } as const;
const shown = { a: await authority.issue(ids.a), b: await authority.issue(ids.b) };

interface Pair {
  readonly a: TestHost;
  readonly b: TestHost;
}

async function start(t: Test, options: TestHostOptions): Promise<TestHost> {
  const host = makeHost(options);
  t.teardown(() => host.plane.close());
  await host.plane.start();
  return host;
}

/** Two hosts, of which `a` knows and wants `b`, at `port` if that is another one than b's own. */
async function pair(
  t: Test,
  options: {
    readonly a?: Partial<TestHostOptions>;
    readonly b?: Partial<TestHostOptions>;
    readonly port?: number;
  } = {},
): Promise<Pair> {
  const a = await start(t, { hostId: ids.a, credentials: shown.a, ...options.a });
  const b = await start(t, { hostId: ids.b, credentials: shown.b, ...options.b });
  a.knows({ hostId: ids.b, port: options.port ?? portOf(b) });
  a.plane.want(ids.b, true);
  return { a, b };
}

async function readyPair(t: Test, options: Parameters<typeof pair>[1] = {}): Promise<Pair> {
  const both = await pair(t, options);
  await ready(both.a, ids.b);
  return both;
}

function portOf(host: TestHost): number {
  return host.plane.bound?.port ?? 0;
}

function ready(host: TestHost, to: string): Promise<unknown> {
  return waitFor('two connections', () =>
    host.plane.documents().some((d) => d.hostId === to && d.connections.dialled === 2),
  );
}

function open(
  host: TestHost,
  to: string,
  head: Partial<StreamHead> = {},
): { stream: TunnelStream; events: RecordedEvents } {
  const events = new RecordedEvents();
  const stream = host.plane.open(to, testHead(head), events);
  if (typeof stream === 'string') throw new Error(stream);
  events.stream = stream;
  return { stream, events };
}

/** Writes the bytes in pieces as long as there is room, then the end. */
function pump(stream: TunnelStream, events: RecordedEvents, bytes: Buffer, piece = 50_000): void {
  let at = 0;
  const go = (): void => {
    while (at < bytes.length) {
      const chunk = bytes.subarray(at, at + piece);
      at += chunk.length;
      if (!stream.write(chunk) && at < bytes.length) return;
    }
    stream.end();
  };
  events.onDrain = go;
  go();
}

function hashOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

t.test('a stream carries its head, bytes both ways, and each end by itself', async (t) => {
  const { a, b } = await readyPair(t);
  const sent = randomBytes(3_000_000);
  const { stream, events } = open(a, ids.b, { consumer: 'web', declared: true, instance: 'db-1' });
  pump(stream, events, sent);
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  t.match(incoming.head, {
    consumer: 'web',
    declared: true,
    service: 'db',
    instance: 'db-1',
    client: { port: 41_000 },
  });
  t.equal(incoming.hostId, ids.a);
  await waitFor('the end', () => incoming.events.hasEnded);
  t.equal(incoming.events.sha256, hashOf(sent));
  t.ok(events.isOpened);
  t.notOk(events.hasEnded, 'the other direction is open');
  const answer = randomBytes(2_000_000);
  pump(incoming.stream, incoming.events, answer, 300_000);
  await waitFor('both ends', () => events.closedBy !== undefined && incoming.events.closedBy !== undefined);
  t.equal(events.sha256, hashOf(answer));
  t.same([events.closedBy, incoming.events.closedBy], Array(2).fill({ reason: undefined, detail: '' }));
  t.match(a.plane.documents(), [
    { state: 'ready', streams: { active: 0, opened: 1 }, bytes: { sent: 3e6, received: 2e6 } },
  ]);
});

t.test('a reset of either side is heard by the other, with its reason', async (t) => {
  const { a, b } = await readyPair(t);
  const first = open(a, ids.b);
  first.stream.write(Buffer.from('x'));
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  first.stream.reset('reset', 'client went away');
  await waitFor('the reset', () => incoming.events.closedBy);
  t.same(incoming.events.closedBy, { reason: 'reset', detail: 'client went away' });
  t.equal(first.events.closedBy, undefined, 'nobody is told of a reset of their own');
  const second = open(a, ids.b);
  const other = await waitFor('the stream', () => b.incoming[1]);
  other.stream.reset('unreachable', `é${'x'.repeat(300)}`);
  await waitFor('the reset', () => second.events.closedBy);
  t.equal(second.events.closedBy?.reason, 'unreachable');
  t.equal(Buffer.byteLength(second.events.closedBy?.detail ?? ''), 200);
  second.stream.write(Buffer.from('late'));
  second.stream.end();
  second.stream.consumed(5);
  t.equal(a.plane.documents()[0]?.streams.active, 0);
});

t.test('a refused stream is told why', async (t) => {
  const { a } = await readyPair(t, { b: { accept: () => ({ refused: 'denied', detail: 'web may not call db' }) } });
  const { stream, events } = open(a, ids.b);
  stream.write(Buffer.from('early'));
  await waitFor('the refusal', () => events.closedBy);
  t.same(events.closedBy, { reason: 'denied', detail: 'web may not call db' });
  t.notOk(events.isOpened);
});

t.test('slow streams do not stall the others, and never get more than their credit', async (t) => {
  const { a } = await readyPair(t, {
    b: {
      accept: (head, _from, stream) => {
        const events = new RecordedEvents(stream);
        events.slow = head.service === 'slow';
        if (events.slow) slow.push(events);
        else quick = events;
        stream.accept();
        return events;
      },
    },
  });
  const slow: RecordedEvents[] = [];
  let quick: RecordedEvents | undefined;
  const slowBytes = Buffer.alloc(2_000_000, 5);
  const senders = Array.from({ length: 100 }, () => open(a, ids.b, { service: 'slow' }));
  for (const { stream, events } of senders) pump(stream, events, slowBytes);
  await waitFor('slow streams that are full', () => slow.length === 100 && slow.every(({ bytes }) => bytes > 0));
  const sent = randomBytes(20_000_000);
  const { stream, events } = open(a, ids.b, { service: 'quick' });
  pump(stream, events, sent);
  await waitFor('the quick one', () => quick?.hasEnded);
  t.equal(quick?.sha256, hashOf(sent));
  const held = slow.reduce((sum, { bytes }) => sum + bytes, 0);
  t.ok(held <= 2 * 16 * 1_048_576, `${held} bytes are held`);
  t.ok(Math.max(...slow.map(({ bytes }) => bytes)) <= 1_048_576, 'no stream beyond its credit');
  // In such a crowd many small messages are no flood.
  const small = open(a, ids.b, { service: 'small' });
  for (let message = 0; message < 6000; message += 1) {
    small.stream.write(Buffer.alloc(50));
    await new Promise((resolve) => setImmediate(resolve));
  }
  small.stream.end();
  await waitFor('small messages', () => quick?.hasEnded === true && quick.bytes === 300_000);
  // They go on when somebody takes their bytes at last.
  for (const each of slow) {
    each.slow = false;
    each.stream?.consumed(each.bytes);
  }
  await waitFor('the slow ones', () => slow.every(({ hasEnded, bytes }) => hasEnded && bytes === slowBytes.length));
});

t.test('small requests beside a large transfer are answered', async (t) => {
  const { a, b } = await readyPair(t);
  const big = open(a, ids.b, { service: 'big' });
  pump(big.stream, big.events, Buffer.alloc(60_000_000));
  await waitFor('the transfer', () => (b.incoming[0]?.events.bytes ?? 0) > 1_000_000);
  for (let round = 0; round < 20; round += 1) {
    const { stream, events } = open(a, ids.b);
    stream.write(Buffer.from('ping'));
    const incoming = await waitFor('the request', () => b.incoming.find(({ head }) => head.service === 'db'));
    b.incoming.splice(b.incoming.indexOf(incoming), 1);
    incoming.stream.write(Buffer.from('pong'));
    await waitFor('the answer', () => events.bytes === 4, { everyMs: 1 });
    stream.reset('reset');
  }
  big.stream.reset('reset');
});

/** Between two hosts: what it carries can be held, cut, or refused. */
async function middle(
  t: Test,
  to: () => number,
): Promise<{ port: number; server: Server; sockets: Socket[]; hold(held: boolean): void }> {
  const sockets: Socket[] = [];
  let held = false;
  const server = createServer((socket) => {
    const onward = connect(to(), '127.0.0.1');
    sockets.push(socket, onward);
    for (const [one, other] of [
      [socket, onward],
      [onward, socket],
    ] as const) {
      one.on('data', (chunk) => other.write(chunk));
      one.on('error', () => other.destroy());
      one.on('close', () => other.destroy());
      if (held) one.pause();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const address = server.address();
  return {
    ...{ port: typeof address === 'object' ? (address?.port ?? 0) : 0, server, sockets },
    hold(now) {
      held = now;
      for (const socket of sockets) now ? socket.pause() : socket.resume();
    },
  };
}

t.test('a silent peer is suspect, and well again when it answers', async (t) => {
  let port = 0;
  const between = await middle(t, () => port);
  const { a, b } = await pair(t, { port: between.port });
  port = portOf(b);
  await ready(a, ids.b);
  const heard: string[] = [];
  a.plane.onChange((hostId) => heard.push(`${hostId} ${a.plane.state(hostId).state}`));
  const { version } = a.plane;
  between.hold(true);
  await waitFor('the suspicion', () => a.plane.state(ids.b).state === 'suspect');
  t.match(a.plane.state(ids.b).problem, /does not answer/);
  const { stream, events } = open(a, ids.b);
  stream.write(Buffer.from('all the same'));
  between.hold(false);
  await waitFor('an answer', () => a.plane.state(ids.b).state === 'ready');
  await waitFor('the stream', () => events.isOpened);
  t.same(heard, [`${ids.b} suspect`, `${ids.b} ready`]);
  t.ok(a.plane.version >= version + 2);
  t.type(a.plane.documents()[0]?.roundTripMs, 'number');
});

t.test('a peer that stays silent is given up', async (t) => {
  const clock = new ManualClock(Date.now());
  let port = 0;
  const between = await middle(t, () => port);
  const { a, b } = await pair(t, { port: between.port, a: { clock } });
  port = portOf(b);
  await ready(a, ids.b);
  const { stream, events } = open(a, ids.b);
  stream.write(Buffer.from('x'));
  await waitFor('the stream', () => events.isOpened);
  between.hold(true);
  await clock.advance(1000 + tickMs);
  t.equal(a.plane.state(ids.b).state, 'ready', 'asked');
  await clock.advance(suspectAfterMs + tickMs);
  t.equal(a.plane.state(ids.b).state, 'suspect');
  t.same(a.conditions.list(), [], 'not yet');
  const since = a.plane.documents()[0]?.since;
  await clock.advance(silenceToldMs);
  t.match(a.conditions.list(), [
    { id: `tunnel.host.${ids.b}`, severity: 'warning', message: /^host host-b does not answer on 127\.0\.0\.1:\d+$/ },
  ]);
  await clock.advance(closeAfterMs - silenceToldMs - 2 * suspectAfterMs);
  t.equal(events.closedBy, undefined);
  await clock.advance(2 * suspectAfterMs);
  t.match(events.closedBy, { reason: 'lost', detail: /^no answer for 1[56] s$/ });
  t.match(a.plane.state(ids.b), { state: 'connecting', problem: /^no answer for/ });
  t.equal(a.plane.documents()[0]?.since, since, 'since it fell silent');
});

t.test('a lost connection loses its streams and is made again', async (t) => {
  let port = 0;
  const between = await middle(t, () => port);
  const { a, b } = await pair(t, { port: between.port });
  port = portOf(b);
  await ready(a, ids.b);
  const { stream, events } = open(a, ids.b);
  stream.write(Buffer.from('x'));
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  for (const socket of between.sockets.splice(0)) socket.destroy();
  await waitFor('both sides', () => events.closedBy && incoming.events.closedBy);
  t.equal(events.closedBy?.reason, 'lost');
  t.equal(incoming.events.closedBy?.reason, 'lost');
  await ready(a, ids.b);
  between.server.close();
  for (const socket of between.sockets.splice(0)) socket.destroy();
  await waitFor('the failure', () => a.plane.state(ids.b).problem?.includes('refused'));
  t.match(a.plane.open(ids.b, testHead(), new RecordedEvents()), /^connection refused at 127\.0\.0\.1:\d+$/);
  await waitFor('the condition', () => a.conditions.list().length > 0);
  t.match(a.conditions.list(), [
    {
      id: `tunnel.host.${ids.b}`,
      message: /^no tunnel to host host-b: connection refused/,
      hint: /firewall there let \d+\/tcp in/,
    },
  ]);
  a.knows({ hostId: ids.b, port: between.port, alive: false });
  await waitFor('no word on what a lost host does not answer', () => a.conditions.list().length === 0);
  a.knows({ hostId: ids.b, port: portOf(b) });
  await ready(a, ids.b);
  t.same(a.conditions.list(), []);
  a.plane.want(ids.b, false);
  await waitFor('the end', () => a.plane.documents().length === 0);
});

t.test('a host that leaves finishes what runs and takes nothing new', async (t) => {
  const { a, b } = await readyPair(t);
  const { stream, events } = open(a, ids.b);
  stream.write(Buffer.from('x'));
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  await b.plane.leave();
  await waitFor('the word of it', () => a.plane.state(ids.b).state === 'connecting');
  t.type(a.plane.open(ids.b, testHead(), new RecordedEvents()), 'string');
  const rest = randomBytes(500_000);
  pump(incoming.stream, incoming.events, rest);
  stream.end();
  await waitFor('the end', () => events.closedBy);
  t.equal(events.closedBy?.reason, undefined);
  t.equal(events.sha256, hashOf(rest));
  await waitFor('no connections', () => b.plane.documents().every(({ connections }) => connections.accepted === 0));
});

t.test('a host that leaves makes no tunnel again', async (t) => {
  const { a, b } = await readyPair(t);
  const c = await start(t, { hostId: ids.c, credentials: await authority.issue(ids.c) });
  for (const host of [a, c]) host.knows({ hostId: ids.b, port: portOf(b) });
  c.plane.want(ids.b, true);
  await ready(c, ids.b);
  const failures = async (host: TestHost): Promise<number> =>
    Number(/^legate_tunnel_dial_failures_total (\d+)$/m.exec(await host.metrics.exposition())?.[1] ?? 0);
  await a.plane.leave();
  await b.plane.close();
  await waitFor('another one to try in vain', async () => (await failures(c)) >= 2);
  t.equal(await failures(a), 0);
  t.match(a.plane.documents(), [{ connections: { dialled: 0 } }]);
  a.plane.want(ids.c, true);
  t.equal(a.plane.documents().length, 1, 'nor one to any other host');
});

t.test('who is not accepted is told why', async (t) => {
  const other = await makeTestAuthority();
  const foreign = await makeTestAuthority('elsewhere');
  const expired = { notBeforeMs: Date.now() - 5 * hourMs, notAfterMs: Date.now() - 3 * hourMs - 1000 };
  const cases: readonly (readonly [string, Partial<TestHostOptions>, RegExp])[] = [
    [
      'expired',
      { credentials: await authority.issue(ids.a, expired) },
      /refuses this host: your certificate ended 3 h ago/,
    ],
    [
      'another authority',
      { credentials: { ...(await other.issue(ids.a)), roots: shown.a.roots } },
      /refuses this host: your certificate comes from another authority/,
    ],
    [
      'another mesh',
      { credentials: { ...(await authority.issue(ids.a, { mesh: 'elsewhere' })), mesh: 'legate' } },
      /refuses this host: your certificate is of mesh elsewhere, not legate/,
    ],
    [
      'no host',
      { credentials: await authority.issue(ids.a, { uris: [] }) },
      /refuses this host: your certificate has not exactly/,
    ],
    [
      'other roots',
      { credentials: { ...shown.a, roots: (await other.issue(ids.a)).roots } },
      /its certificate comes from another authority/,
    ],
    ['a foreign mesh', { credentials: await foreign.issue(ids.a) }, /its certificate is of mesh legate, not elsewhere/],
    ['the peer is revoked', { policy: testPolicy([ids.b]) }, /host b{16} is revoked/],
    ['no certificate', { credentials: undefined }, /this host has no certificate/],
  ];
  const b = await start(t, { hostId: ids.b, credentials: shown.b, policy: testPolicy([ids.c]) });
  const dial = async (
    name: string,
    options: Partial<TestHostOptions>,
    expected: RegExp,
    to: string = ids.b,
  ): Promise<void> => {
    const a = await start(t, { hostId: ids.a, credentials: shown.a, ...options });
    a.knows({ hostId: to, port: portOf(b) });
    a.plane.want(to, true);
    await waitFor(`${name}: ${a.plane.state(to).problem}`, () => expected.test(a.plane.state(to).problem ?? ''));
    t.equal(a.plane.state(to).state, 'connecting', name);
    await a.plane.close();
  };
  for (const [name, options, expected] of cases) await dial(name, options, expected);
  await dial(
    'revoked',
    { hostId: ids.c, credentials: await authority.issue(ids.c) },
    /refuses this host: host c{16} is revoked/,
  );
  await dial('another host', {}, /is host b{16} instead of c{16}/, ids.c);
  t.match(await b.metrics.exposition(), /turned_away_total\{reason="certificate"\} [1-9]/);
});

t.test('what is no sidecar is turned away', async (t) => {
  const b = await start(t, { hostId: ids.b, credentials: shown.b });
  const port = portOf(b);
  const without = await connectRaw({ port, credentials: undefined });
  await waitFor('the refusal', () => without.closed);
  t.same(without.received.lines, ['goaway refused no certificate']);
  const protocols = ['http/1.1'];
  const wrong = await connectRaw({ port, credentials: shown.a, protocols });
  t.match(wrong.problem, /NO_APPLICATION_PROTOCOL|ECONNRESET/);
  t.ok(
    await connectRaw({ port, credentials: shown.a, protocols: ['legate-enrol/1'] }).then((peer) =>
      waitFor('the end', () => peer.closed),
    ),
  );
  t.match(
    (await connectRaw({ port, credentials: shown.a, maxVersion: 'TLSv1.2' })).problem,
    /PROTOCOL_VERSION|ECONNRESET/,
  );
  const itself = await connectRaw({ port, credentials: shown.b });
  await waitFor('the refusal', () => itself.closed);
  t.match(itself.received.lines, [/goaway refused it is this host itself/]);
  const silent = await Promise.all(Array.from({ length: 80 }, () => plain(t, port)));
  await waitFor(
    'handshakes beyond the limit to be closed',
    () => silent.filter(({ destroyed }) => destroyed).length === 16,
  );
});

function plain(t: Test, port: number): Promise<Socket> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => resolve(socket));
    socket.on('error', () => undefined).resume();
    t.teardown(() => socket.destroy());
  });
}

t.test('it listens while there is a certificate, and tries again while it cannot', async (t) => {
  const blocker = createServer();
  await new Promise<void>((resolve) => blocker.listen(0, '127.0.0.1', resolve));
  const address = blocker.address();
  const port = typeof address === 'object' ? (address?.port ?? 0) : 0;
  const b = await start(t, { hostId: ids.b, credentials: undefined, port });
  t.same([b.plane.bound, b.conditions.list()], [undefined, []], 'nothing without a certificate');
  b.credentials.set(shown.b);
  await waitFor('the condition', () => b.conditions.list().length > 0);
  t.match(b.conditions.list(), [{ id: 'tunnel.listen', severity: 'error', message: /^tunnels cannot listen on 127/ }]);
  await new Promise((resolve) => blocker.close(resolve));
  await waitFor('the address', () => b.plane.bound?.port === port);
  t.same(b.conditions.list(), []);
  b.credentials.set(undefined);
  await waitFor('the end', () => b.plane.bound === undefined);
});

t.test('enrolment: one request, one answer, within bounds', async (t) => {
  const asked: string[] = [];
  let release = (): void => undefined;
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  const desk = {
    answer: async (kind: string, request: Uint8Array, from: { address: string; hostId?: string }) => {
      asked.push(`${kind} ${Buffer.from(request)} ${from.address} ${from.hostId}`);
      if (request.length === 0) throw new Error('nothing to say');
      if (Buffer.from(request).toString() === 'slow') await released;
      return Buffer.from('answer');
    },
  };
  const b = await start(t, { hostId: ids.b, credentials: shown.b, desk });
  const port = portOf(b);
  const ask = (protocol: string, credentials: typeof shown.a | undefined, ...parts: Buffer[]): Promise<string> =>
    connectRaw({ port, credentials, protocols: [protocol] }).then(
      ({ socket }) =>
        new Promise((resolve) => {
          const answer: Buffer[] = [];
          socket.removeAllListeners('data').on('data', (chunk) => answer.push(chunk));
          socket.once('close', () => resolve(Buffer.concat(answer).toString('latin1')));
          for (const part of parts) socket.write(part);
        }),
    );
  const request = (text: string): Buffer => Buffer.concat([Buffer.from([0, 0, 0, text.length]), Buffer.from(text)]);
  t.equal(
    await ask('legate-enrol/1', undefined, request('token').subarray(0, 3), request('token').subarray(3)),
    '\0\0\0\x06answer',
  );
  t.equal(await ask('legate-renew/1', shown.a, request('again')), '\0\0\0\x06answer');
  const refusal = await ask('legate-renew/1', undefined, request('again'));
  t.match(refusal, /E_UNAUTHORIZED.*refuses this host: no certificate.*legate join/, 'renewal needs one');
  t.equal(await ask('legate-enrol/1', undefined, request('')), '');
  t.equal(await ask('legate-enrol/1', undefined, Buffer.from([0, 16, 0, 0])), '', 'too long');
  t.equal(await ask('legate-enrol/1', undefined, Buffer.concat([request('a'), request('b')])), '', 'more than one');
  t.same(asked, ['enrol token 127.0.0.1 undefined', `renew again 127.0.0.1 ${ids.a}`, 'enrol  127.0.0.1 undefined']);
  const beyond = 4;
  const answers: string[] = [];
  const all = Array.from({ length: maxDeskCallersPerAddress + beyond }, async () => {
    answers.push(await ask('legate-enrol/1', undefined, request('slow')));
  });
  await waitFor('those beyond the bound to be told', () => answers.length === beyond);
  t.ok(
    answers.every((each) => /E_IN_USE.*busy with other hosts/.test(each)),
    JSON.stringify(answers),
  );
  release();
  await Promise.all(all);
  t.same(
    answers.slice(beyond),
    Array.from({ length: maxDeskCallersPerAddress }, () => '\0\0\0\x06answer'),
  );
});

t.test('who breaks the protocol or floods is cut off, and counted', async (t) => {
  const b = await start(t, {
    ...{ hostId: ids.b, credentials: shown.b },
    accept: ({ service }, _from, stream) => {
      if (service === 'talks') stream.write(Buffer.alloc(100_000));
      return Object.assign(new RecordedEvents(), { slow: true });
    },
  });
  const head = testHead();
  const open1 = (peer: RawPeer): void => peer.writer.open(1, head);
  const repeat = (times: number, write: (peer: RawPeer, index: number) => void) => (peer: RawPeer) => {
    for (let index = 0; index < times && !peer.closed; index += 1) write(peer, index);
  };
  const all =
    (...acts: ((peer: RawPeer) => void)[]) =>
    (peer: RawPeer): void => {
      for (const act of acts) act(peer);
    };
  const reset1 = ({ writer }: RawPeer): void => writer.reset(1, 'reset', '');
  const ignored = Buffer.concat(Array(10_000).fill(Buffer.from('0000008000000000', 'hex')));
  const cases: readonly (readonly [string, (peer: RawPeer) => void, string])[] = [
    ['a stream that was never opened', ({ writer }) => writer.end(5), 'order'],
    ['a stream opened twice', repeat(2, open1), 'order'],
    ['a stream opened backwards', (peer) => [7, 5].map((id) => peer.writer.open(id, head)), 'order'],
    ['OPENED for its own stream', all(open1, ({ writer }) => writer.opened(1)), 'order'],
    ['DATA after END', all(open1, ({ writer }) => writer.end(1), send), 'order'],
    ['a second END', all(open1, ...Array(2).fill(({ writer }: RawPeer) => writer.end(1))), 'order'],
    ['a PONG that nobody asked for', ({ writer }) => writer.pong(Buffer.alloc(8)), 'order'],
    ['credit that was not used', ({ writer }) => writer.window(0, 5), 'credit'],
    ['more than its credit', all(open1, repeat(5, send)), 'credit'],
    ['a frame of type 0', ({ socket }) => socket.write(Buffer.alloc(8)), 'malformed'],
    ['pings', repeat(10_000, ({ writer }) => writer.ping(1)), 'flood'],
    [
      'streams',
      repeat(150_000, (peer, id) => all(({ writer }) => writer.open(id + 1, head), end(id + 1))(peer)),
      'flood',
    ],
    [
      'empty frames',
      all(
        open1,
        repeat(150_000, ({ writer }) => writer.data(1, 0)),
      ),
      'flood',
    ],
    ['resets of a stream that is gone', all(open1, repeat(150_000, reset1)), 'flood'],
    ['unknown frames', ({ socket }) => socket.write(ignored), 'flood'],
    ['credit byte by byte', creditByByte, 'flood'],
  ];
  function end(id: number): (peer: RawPeer) => void {
    return ({ writer }) => writer.reset(id, 'reset', '');
  }
  function creditByByte(peer: RawPeer): void {
    peer.writer.open(1, testHead({ service: 'talks' }));
    peer.writer.flush();
    void waitFor('bytes', () => peer.received.bytes > 50_000).then(() => {
      repeat(20_000, ({ writer }) => writer.window(1, 1))(peer);
      peer.writer.flush();
    });
  }
  function send({ writer }: RawPeer): void {
    writer.data(1, 262_144);
    writer.body(Buffer.alloc(262_144));
  }
  const count = async (kind: string): Promise<number> =>
    Number(new RegExp(`protocol_faults_total\\{kind="${kind}"\\} (\\d+)`).exec(await b.metrics.exposition())?.[1] ?? 0);
  for (const [name, act, kind] of cases) {
    const before = await count(kind);
    const peer = await connectRaw({ port: portOf(b), credentials: shown.a });
    peer.writer.hello({ version: 1, streamCredit: 1_048_576, connectionCredit: 16_777_216, maxStreams: 1000 });
    peer.writer.flush();
    await waitFor('HELLO', () => peer.received.lines.length > 0);
    act(peer);
    peer.writer.flush();
    await waitFor(`${name}: cut`, () => peer.closed);
    t.equal(await count(kind), before + 1, name);
  }
  await waitFor('nothing to be left', () =>
    b.plane.documents().every((d) => d.connections.accepted === 0 && d.streams.active === 0),
  );
});

t.test('certificates are renewed and roots change under load without a lost stream', async (t) => {
  const { a, b } = await readyPair(t);
  const next = await makeTestAuthority();
  let failures = 0;
  let requests = 0;
  let stop = false;
  const serve = setInterval(() => {
    for (const { stream, events } of b.incoming.splice(0)) {
      events.onEnd = () => {
        stream.write(Buffer.alloc(events.bytes, 1));
        stream.end();
      };
      if (events.hasEnded) events.onEnd();
    }
  }, 1);
  t.teardown(() => clearInterval(serve));
  const load = Promise.all(
    Array.from({ length: 8 }, async () => {
      while (!stop) {
        const opened = (() => {
          try {
            return open(a, ids.b);
          } catch {
            failures += 1;
          }
        })();
        if (opened !== undefined) {
          opened.stream.write(Buffer.alloc(1000));
          opened.stream.end();
          await waitFor('an answer', () => opened.events.closedBy, { everyMs: 1 });
          if (opened.events.closedBy?.reason !== undefined || opened.events.bytes !== 1000) failures += 1;
          requests += 1;
        } else await new Promise((resolve) => setImmediate(resolve));
      }
    }),
  );
  const long = open(a, ids.b, { service: 'long' });
  const settle = async (): Promise<void> => {
    const seen = requests;
    await waitFor('more requests', () => requests > seen + 20);
  };
  await settle();
  // Renewed by the same authority: nothing is dropped.
  b.credentials.set(await authority.issue(ids.b));
  a.credentials.set(await authority.issue(ids.a));
  await settle();
  // Both roots, then issued by the new one: connections by the old root stay as long as it is trusted.
  const both = [...shown.a.roots, next.root];
  const issued = { a: { ...(await next.issue(ids.a)), roots: both }, b: { ...(await next.issue(ids.b)), roots: both } };
  a.credentials.set({ ...shown.a, roots: both });
  b.credentials.set({ ...shown.b, roots: both });
  await settle();
  a.credentials.set(issued.a);
  b.credentials.set(issued.b);
  await settle();
  t.equal(failures, 0);
  t.equal(long.events.closedBy, undefined, 'a long stream lives on');
  // Without the old root what was opened by it goes on; what is new is on connections of the new one.
  a.credentials.set({ ...issued.a, roots: [next.root] });
  await settle();
  b.credentials.set({ ...issued.b, roots: [next.root] });
  await settle();
  await waitFor('the old connections to be left', () => a.plane.documents()[0]?.connections.dialled === 3);
  t.equal(failures, 0);
  stop = true;
  await load;
  t.equal(long.events.closedBy, undefined, 'the long stream lives on');
  long.stream.write(Buffer.alloc(1000));
  long.stream.end();
  await waitFor('its answer', () => long.events.bytes === 1000);
  await waitFor('its connection to be closed', () => a.plane.documents()[0]?.connections.dialled === 2);
  await ready(a, ids.b);
});

t.test('what was opened by a root that is gone ends with its certificate, and with a revocation', async (t) => {
  const next = await makeTestAuthority();
  const notAfterMs = Math.ceil(Date.now() / 1000) * 1000 + 3000;
  for (const [how, end] of [
    ['certificate', () => undefined],
    ['revocation', (b: TestHost) => b.policy.set(testPolicy([ids.a], 2))],
  ] as const) {
    const own = how === 'certificate' ? await authority.issue(ids.a, { notAfterMs }) : shown.a;
    const { a, b } = await readyPair(t, { a: { credentials: own } });
    const { events } = open(a, ids.b);
    await waitFor('the stream', () => events.isOpened);
    for (const host of [a, b]) host.credentials.set({ ...(await next.issue(host.hostId)), roots: [next.root] });
    await ready(a, ids.b);
    t.equal(events.closedBy, undefined, how);
    end(b);
    await waitFor('its end', () => events.closedBy, { timeoutMs: 15_000 });
    t.match(events.closedBy, { reason: 'lost', detail: how === 'certificate' ? /has ended|been replaced/ : /revoked/ });
    await a.plane.close();
    await b.plane.close();
  }
});

t.test('a revoked host loses its connections', async (t) => {
  const { a, b } = await readyPair(t);
  const { events } = open(a, ids.b);
  await waitFor('the stream', () => events.isOpened);
  b.policy.set(testPolicy([ids.a], 2));
  await waitFor('its end', () => events.closedBy);
  t.match(events.closedBy, { reason: 'lost', detail: /revoked/ });
  await waitFor('the reason', () =>
    /refuses this host: host a{16} is revoked/.test(a.plane.state(ids.b).problem ?? ''),
  );
  b.policy.set(testPolicy([], 3));
  await ready(a, ids.b);
});

t.test('a certificate that runs out is followed by a new connection', async (t) => {
  const shortly = await authority.issue(ids.b, { notAfterMs: Math.ceil(Date.now() / 1000) * 1000 + 2000 });
  const { a, b } = await readyPair(t, { b: { credentials: shortly } });
  const { stream, events } = open(a, ids.b);
  stream.write(Buffer.from('x'));
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  b.credentials.set(await authority.issue(ids.b));
  const until = a.plane.documents()[0]?.peerCertificateUntil ?? '';
  await waitFor('newer certificates', () => (a.plane.documents()[0]?.peerCertificateUntil ?? '') > until);
  await ready(a, ids.b);
  t.equal(a.plane.state(ids.b).state, 'ready');
  incoming.stream.write(Buffer.from('y'));
  await waitFor('a byte on the old one', () => events.bytes === 1);
});
