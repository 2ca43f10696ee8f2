import { once } from 'node:events';
import { constants, createServer, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo, Socket } from 'node:net';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, dial, instanceOf, serviceOf, startBed } from '../link-plane.fixture.ts';
import { maxClientStreams, maxReadFields } from './bounds.ts';

const { NGHTTP2_ENHANCE_YOUR_CALM } = constants;
const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'latin1');
const types = { data: 0, headers: 1, reset: 3, settings: 4, ping: 6, goaway: 7, continuation: 9 } as const;
const endStream = 0x1;
const endHeaders = 0x4;
/** GET or POST, http, /, and db as authority (RFC 7541 appendix A and section 6.2.1). */
const get = Buffer.from([0x82, 0x86, 0x84, 0x41, 0x02, 0x64, 0x62]);
const post = Buffer.from([0x83, 0x86, 0x84, 0x41, 0x02, 0x64, 0x62]);
const nothing: Buffer = Buffer.alloc(0);

function frame(type: number, flags: number, id: number, payload: Buffer = nothing): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(id, 5);
  return Buffer.concat([head, payload]);
}

/** A field that no table knows. */
function field(name: string, value: string): Buffer {
  if (name.length > 126 || value.length > 126) throw new Error('too long for this');
  return Buffer.concat([
    Buffer.from([0x00, name.length]),
    Buffer.from(name),
    Buffer.from([value.length]),
    Buffer.from(value),
  ]);
}

/** A value of 127 bytes and more (RFC 7541 section 5.1). */
function wide(value: string): Buffer {
  const length = [0x7f];
  let rest = value.length - 0x7f;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) length.push((rest % 0x80) + 0x80);
  return Buffer.concat([Buffer.from([...length, rest]), Buffer.from(value)]);
}

class Raw {
  readonly socket: Socket;
  /** Codes of the streams that were reset, and that of the last GOAWAY. */
  readonly resets: number[] = [];
  goaway: number | undefined;
  closed = false;
  #bytes: Buffer = nothing;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.closed = true;
    });
    socket.on('end', () => socket.end());
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.write(Buffer.concat([preface, frame(types.settings, 0, 0)]));
  }

  send(...frames: Buffer[]): void {
    this.socket.write(Buffer.concat(frames));
  }

  #read(chunk: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, chunk]);
    while (this.#bytes.length >= 9) {
      const size = 9 + this.#bytes.readUIntBE(0, 3);
      if (this.#bytes.length < size) return;
      if (this.#bytes[3] === types.reset) this.resets.push(this.#bytes.readUInt32BE(9));
      if (this.#bytes[3] === types.goaway) this.goaway = this.#bytes.readUInt32BE(13);
      this.#bytes = this.#bytes.subarray(size);
    }
  }
}

async function holding(t: Test) {
  const streams = new Set<ServerHttp2Stream>();
  let total = 0;
  const server = createServer();
  server.on('stream', (stream: ServerHttp2Stream) => {
    total += 1;
    streams.add(stream);
    stream.on('error', () => undefined);
    stream.resume();
    stream.on('close', () => streams.delete(stream));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const stream of streams) stream.session?.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, streams, total: () => total };
}

async function before(t: Test, port: number): Promise<Bed> {
  const instances = [instanceOf({ name: 'a', port, protocol: 'http2' })];
  return startBed(t, { services: [serviceOf(instances, { protocol: 'http2' })] });
}

const many = <T>(count: number, make: (index: number) => T): T[] => Array.from({ length: count }, (_, at) => make(at));
const cancel = Buffer.from([0, 0, 0, 8]);

const floods: Readonly<Record<string, { frames: Buffer[]; counted: string; code: number }>> = {
  'requests that are taken back at once': {
    frames: many(400, (at) =>
      Buffer.concat([
        frame(types.headers, endHeaders | endStream, 2 * at + 1, get),
        frame(types.reset, 0, 2 * at + 1, cancel),
      ]),
    ),
    counted: 'reset',
    code: NGHTTP2_ENHANCE_YOUR_CALM,
  },
  settings: {
    frames: many(200, () => frame(types.settings, 0, 0)),
    counted: 'settings',
    code: NGHTTP2_ENHANCE_YOUR_CALM,
  },
  pings: {
    frames: many(900, () => frame(types.ping, 0, 0, Buffer.alloc(8))),
    counted: 'ping',
    code: NGHTTP2_ENHANCE_YOUR_CALM,
  },
  'bodies of nothing': {
    frames: [frame(types.headers, endHeaders, 1, post), ...many(400, () => frame(types.data, 0, 1))],
    counted: 'frames',
    code: constants.NGHTTP2_INTERNAL_ERROR,
  },
  'heads that do not end': {
    frames: [
      frame(types.headers, endStream, 1, get),
      ...many(64, (at) => frame(types.continuation, 0, 1, field(`x-${at}`, 'y'))),
    ],
    counted: '',
    code: constants.NGHTTP2_INTERNAL_ERROR,
  },
};

for (const [name, { frames, counted, code }] of Object.entries(floods)) {
  t.test(`a flood of ${name}`, async (t) => {
    const instance = await holding(t);
    const bed = await before(t, instance.port);
    const good = new Raw(dial(t, bed.port));
    good.send(frame(types.headers, endHeaders | endStream, 1, get));
    await waitFor('a good client is served', () => instance.streams.size === 1);
    const bad = new Raw(dial(t, bed.port));
    for (const each of frames) bad.send(each);
    await waitFor('it is cut off', () => bad.closed);
    t.equal(bad.goaway, code);
    await waitFor(
      'only the good one is left',
      () => bed.plane.activeConnections() === 1 && instance.streams.size === 1,
    );
    if (counted !== '') t.equal(await bed.metric(`legate_http2_floods_total{kind="${counted}"}`), 1);
    t.notOk(good.closed);
    t.ok(instance.total() < 400, `the instance saw ${instance.total()} requests`);
  });
}

/** A head in as many frames as it takes. */
function headers(id: number, block: Buffer): Buffer {
  const size = 16_384;
  const pieces = many(Math.ceil(block.length / size), (at) => block.subarray(at * size, (at + 1) * size));
  return Buffer.concat(
    pieces.map((piece, at) => {
      const flags = (at === 0 ? endStream : 0) | (at === pieces.length - 1 ? endHeaders : 0);
      return frame(at === 0 ? types.headers : types.continuation, flags, id, piece);
    }),
  );
}

const fieldsOf = (count: number, bytes: number): Buffer =>
  Buffer.concat([get, ...many(count, (at) => field(`x-${at}`, 'y'.repeat(bytes)))]);

t.test('heads far beyond what is allowed', async (t) => {
  const instance = await holding(t);
  const bed = await before(t, instance.port);
  const large = new Raw(dial(t, bed.port));
  // The limit of size is the runtime's from the moment that the client has read of it.
  await waitFor('it is greeted', () => large.socket.bytesRead > 9);
  large.send(frame(types.settings, 1, 0));
  large.send(headers(1, get), headers(3, fieldsOf(maxReadFields, 1)), headers(5, fieldsOf(600, 100)), headers(7, get));
  await waitFor('they are reset', () => large.resets.length === 2 && instance.streams.size === 2);
  t.same(large.resets, [NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_ENHANCE_YOUR_CALM]);
  t.notOk(large.closed, 'the others are not concerned');
});

t.test('a field of more than the runtime ever reads', async (t) => {
  const clock = new ManualClock();
  const bed = await startBed(t, { services: [serviceOf([], { protocol: 'http2' })], clock });
  const raw = new Raw(dial(t, bed.port));
  raw.send(headers(1, Buffer.concat([get, Buffer.from([0, 1, 0x61]), wide('y'.repeat(70_000))])));
  await waitFor('it is told to go', () => raw.goaway !== undefined);
  t.equal(raw.goaway, constants.NGHTTP2_COMPRESSION_ERROR);
  // The runtime reads no more then, and does not see that the client is gone either.
  raw.socket.destroy();
  await waitFor('nothing is left', async () => {
    await clock.advance(5000);
    return bed.plane.activeConnections() === 0;
  });
});

t.test('too many streams', async (t) => {
  const instance = await holding(t);
  const bed = await before(t, instance.port);
  const crowd = new Raw(dial(t, bed.port));
  crowd.send(...many(maxClientStreams + 20, (at) => frame(types.headers, endHeaders | endStream, 2 * at + 1, get)));
  await waitFor('the rest is refused', () => crowd.resets.length === 20);
  await waitFor('the others are there', () => instance.streams.size === maxClientStreams);
  t.notOk(crowd.closed);
});

t.test('whoever does not speak HTTP/2', async (t) => {
  const instance = await holding(t);
  const bed = await before(t, instance.port);
  const socket = dial(t, bed.port);
  socket.on('error', () => undefined);
  socket.on('end', () => socket.end());
  socket.resume();
  socket.write('GET / HTTP/1.1\r\nHost: db\r\n\r\n');
  await once(socket, 'close');
  t.equal(await bed.metric('legate_http_refused_total{reason="connection"}'), 1);
  t.equal(bed.plane.activeConnections(), 0);
});

t.test('whoever holds on to half of a beginning', async (t) => {
  const instance = await holding(t);
  const instances = [instanceOf({ name: 'a', port: instance.port, protocol: 'http2' })];
  const clock = new ManualClock();
  const bed = await startBed(t, { services: [serviceOf(instances, { protocol: 'http2' })], clock });
  const silent = dial(t, bed.port);
  const halfPreface = dial(t, bed.port);
  const raws = [silent, halfPreface].map((socket) =>
    once(
      socket
        .on('error', () => undefined)
        .on('end', () => socket.end())
        .resume(),
      'close',
    ),
  );
  halfPreface.write(preface.subarray(0, 8));
  const halfHead = new Raw(dial(t, bed.port));
  halfHead.send(frame(types.headers, endStream, 1, get));
  const halfFrame = new Raw(dial(t, bed.port));
  halfFrame.send(frame(types.headers, endHeaders | endStream, 1, get).subarray(0, 10));
  await waitFor('all are there', () => bed.plane.activeConnections() === 4);
  // What has come is read, before time goes on.
  for (const raw of [halfHead, halfFrame]) await waitFor('it is greeted', () => raw.socket.bytesRead > 9);
  await clock.advance(16_000);
  await Promise.all(raws);
  await waitFor('those who began are there', () => bed.plane.activeConnections() === 2);
  await clock.advance(60_000);
  await clock.advance(3000);
  await waitFor('nobody is there', () => bed.plane.activeConnections() === 0);
  t.equal(instance.streams.size, 0);
});

/** What makes the runtime free streams that it is still reading, unless we keep it from that; see `resetStream`. */
const endings: Readonly<Record<string, { frames: Buffer[]; code: number; requests: number; rounds: number }>> = {
  'a goodbye with a request behind it': {
    frames: [
      frame(types.headers, endHeaders, 1, post),
      frame(types.goaway, 0, 0, Buffer.alloc(8)),
      ...many(3, (at) => frame(types.headers, endHeaders | endStream, 2 * at + 3, get)),
    ],
    code: constants.NGHTTP2_NO_ERROR,
    requests: 1,
    rounds: 12,
  },
  'a goodbye with an error, and a request behind it': {
    frames: [
      ...many(20, (at) =>
        frame(types.headers, endHeaders | ((at % 2) * endStream), 2 * at + 1, at % 2 === 0 ? post : get),
      ),
      frame(types.goaway, 0, 0, Buffer.from([0, 0, 0, 0, 0, 0, 0, 2])),
      ...many(3, (at) => frame(types.headers, endHeaders | endStream, 2 * at + 41, get)),
    ],
    code: constants.NGHTTP2_NO_ERROR,
    requests: 20,
    rounds: 4,
  },
  'too many resets between requests': {
    frames: many(400, (at) => [
      frame(types.headers, endHeaders | endStream, 2 * at + 1, get),
      at % 10 === 0 ? nothing : frame(types.reset, 0, 2 * at + 1, cancel),
    ]).flat(),
    code: NGHTTP2_ENHANCE_YOUR_CALM,
    requests: 400,
    rounds: 2,
  },
  'too many pings between requests': {
    frames: [
      ...many(900, () => frame(types.ping, 0, 0, Buffer.alloc(8))),
      ...many(20, (at) => frame(types.headers, endHeaders | endStream, 2 * at + 1, get)),
    ],
    code: NGHTTP2_ENHANCE_YOUR_CALM,
    requests: 20,
    rounds: 4,
  },
};

for (const [name, { frames, code, requests, rounds }] of Object.entries(endings)) {
  t.test(`${name}, again and again`, async (t) => {
    const instance = await holding(t);
    const bed = await before(t, instance.port);
    const clients = 8;
    for (let round = 0; round < rounds; round += 1) {
      const seen = instance.total();
      const raws = many(clients, () => new Raw(dial(t, bed.port)));
      for (const raw of raws) raw.send(...frames);
      await waitFor('all are answered', () => raws.every(({ goaway }) => goaway !== undefined));
      t.same(new Set(raws.map(({ goaway }) => goaway)), new Set([code]));
      for (const { socket } of raws) socket.destroy();
      await waitFor('nothing is left', () => bed.plane.activeConnections() === 0 && instance.streams.size === 0);
      t.ok(instance.total() - seen <= clients * requests, 'nothing was asked that was refused');
    }
  });
}
