import t from 'tap';
import { FrameParser, type FrameSink } from '../../proxy/tunnel/frame-parser.ts';
import { FrameWriter, GatherBuffers } from '../../proxy/tunnel/frame-writer.ts';
import { maxDataBytes, ProtocolFault } from '../../proxy/tunnel/frames.ts';

const inputs = 1_000_000;

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

/** Holds what a parser says to its own rules: bodies are as long as their frames say, and nothing is out of bounds. */
class CheckingSink implements FrameSink {
  frames = 0;
  #left = 0;
  hello(): void {
    this.#frame();
  }
  open(stream: number, head: Parameters<FrameSink['open']>[1]): void {
    this.#frame();
    const { consumer, service, instance, client, traceId } = head;
    if (stream === 0 || consumer === '' || service === '' || instance === '') throw new Error('an empty name');
    if (client.port < 1 || client.port > 65_535 || traceId.length !== 32) throw new Error('a head that is none');
  }
  opened(): void {
    this.#frame();
  }
  dataBegins(stream: number, bytes: number): void {
    this.#frame();
    if (stream === 0 || bytes > maxDataBytes) throw new Error('DATA out of bounds');
    this.#left = bytes;
  }
  data(piece: Buffer): void {
    this.#left -= piece.length;
    if (piece.length === 0 || this.#left < 0) throw new Error('more bytes than were announced');
  }
  end(): void {
    this.#frame();
  }
  reset(_stream: number, _reason: string, detail: string): void {
    this.#frame();
    if (/[\u0000-\u001f]/.test(detail)) throw new Error('text that is not printable');
  }
  window(_stream: number, bytes: number): void {
    this.#frame();
    if (bytes === 0) throw new Error('a WINDOW of nothing');
  }
  ping(payload: Buffer): void {
    this.#frame();
    if (payload.length !== 8) throw new Error('a PING of another length');
  }
  pong(): void {
    this.#frame();
  }
  goAway(): void {
    this.#frame();
  }
  ignored(): void {
    this.#frame();
  }
  #frame(): void {
    if (this.#left !== 0) throw new Error('a frame inside of a body');
    this.frames += 1;
  }
}

const head = {
  ...{ consumer: 'web', declared: true, service: 'db', instance: 'db-5432', traceId: '0'.repeat(32) },
  client: { address: 'fd00::1', port: 5 },
};

/** Streams of frames as a sidecar writes them. */
function validStreams(random: (below: number) => number): Buffer[] {
  return Array.from({ length: 64 }, () => {
    const parts: Buffer[] = [];
    const writer = new FrameWriter(new GatherBuffers(), (bytes) => parts.push(Buffer.from(bytes)));
    writer.hello({ version: 1, streamCredit: 1_048_576, connectionCredit: 16_777_216, maxStreams: 16_384 });
    for (let left = random(8); left > 0; left -= 1) {
      const stream = 1 + random(4);
      const write = [
        () => writer.open(stream, head),
        () => writer.opened(stream),
        () => {
          const bytes = random(40);
          writer.data(stream, bytes);
          writer.body(Buffer.alloc(bytes, 7));
        },
        () => writer.end(stream),
        () => writer.reset(stream, 'gone', 'détail'),
        () => writer.window(random(2) * stream, 1 + random(1e6)),
        () => writer.ping(left),
        () => writer.pong(Buffer.alloc(8)),
        () => writer.goAway({ reason: 'leaving', detail: 'x' }),
      ][random(9)];
      write?.();
    }
    writer.flush();
    return Buffer.concat(parts);
  });
}

/** Noise, or a valid stream with some octets changed, cut out or doubled. */
function nextInput(random: (below: number) => number, valid: readonly Buffer[]): Buffer {
  if (random(8) === 0) return Buffer.from(Array.from({ length: random(60) }, () => random(random(4) === 0 ? 256 : 16)));
  let bytes = Buffer.from(valid[random(valid.length)] ?? []);
  for (let left = random(4); left > 0 && bytes.length > 0; left -= 1) {
    const at = random(bytes.length);
    const kind = random(6);
    if (kind < 4) bytes[at] = random(2) === 0 ? random(256) : (bytes[at] ?? 0) ^ (1 << random(8));
    else if (kind === 4) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random(12))]);
    else bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(random(at + 1))]);
  }
  return bytes;
}

/** Pushes the bytes in random pieces; how the parsing ended. */
function feed(parser: FrameParser, bytes: Buffer, random: (below: number) => number): 'whole' | 'fault' {
  const largest = 1 + random(random(2) === 0 ? 8 : 200);
  try {
    for (let at = 0; at < bytes.length; ) {
      const end = Math.min(bytes.length, at + 1 + random(largest));
      parser.push(bytes.subarray(at, end));
      at = end;
    }
  } catch (error) {
    if (!(error instanceof ProtocolFault)) throw error;
    return 'fault';
  }
  return 'whole';
}

t.test(`${inputs} inputs are parsed or refused, within their bounds`, async (t) => {
  const seed = Number(process.env.FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 31));
  const random = generator(seed);
  const valid = validStreams(random);
  const outcomes = { whole: 0, fault: 0 };
  let frames = 0;
  const before = process.memoryUsage();
  for (let index = 0; index < inputs; index += 1) {
    const sink = new CheckingSink();
    const bytes = nextInput(random, valid);
    try {
      outcomes[feed(new FrameParser(sink), bytes, random)] += 1;
    } catch (error) {
      t.fail(`seed ${seed}, input ${index}: ${bytes.toString('hex')}`, { found: String(error) });
      return;
    }
    frames += sink.frames;
  }
  const grownBytes = process.memoryUsage().rss - before.rss;
  t.ok(outcomes.whole > inputs / 50, `${outcomes.whole} were parsed`);
  t.ok(outcomes.fault > inputs / 20, `${outcomes.fault} were refused`);
  t.ok(frames > inputs, `${frames} frames`);
  t.ok(grownBytes < 256 * 1_048_576, `memory grew by ${Math.round(grownBytes / 1_048_576)} MiB`);
});
