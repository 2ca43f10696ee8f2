import fc from 'fast-check';
import t from 'tap';
import { BodyReader, bodyUntilClose, chunkedBody, type Framing, maxExtensionBytes, maxTrailerBytes } from './body.ts';
import { HttpFault } from './fault.ts';

interface Outcome {
  readonly passed: string;
  readonly rest: string;
  readonly done: boolean;
  readonly content: number;
}

/** Reads the text in pieces of the given sizes, the last one over and over. */
function read(text: string, framing: Framing, cuts: readonly number[] = []): Outcome {
  const reader = new BodyReader();
  reader.begin(framing);
  const whole = Buffer.from(text, 'latin1');
  let passed = '';
  let at = 0;
  for (let piece = 0; at < whole.length && !reader.done; piece += 1) {
    const size = cuts[Math.min(piece, cuts.length - 1)] ?? whole.length;
    const buffer = whole.subarray(at, at + size);
    const used = reader.read(buffer, 0, (from, start, end) => {
      passed += from.toString('latin1', start, end);
    });
    at += used;
    if (used < buffer.length) break;
  }
  return { passed, rest: whole.toString('latin1', at), done: reader.done, content: reader.contentBytes };
}

function faultOf(text: string): string {
  try {
    return read(text, chunkedBody).done ? 'none' : 'not done';
  } catch (error) {
    return error instanceof HttpFault ? error.kind : String(error);
  }
}

t.test('bodies', (t) => {
  t.strictSame(read('helloGET', { kind: 'length', bytes: 5 }), {
    passed: 'hello',
    rest: 'GET',
    done: true,
    content: 5,
  });
  t.strictSame(read('GET', { kind: 'length', bytes: 0 }), { passed: '', rest: 'GET', done: true, content: 0 });
  t.strictSame(read('abc', bodyUntilClose), { passed: 'abc', rest: '', done: false, content: 3 });
  const plain = '5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n';
  t.strictSame(read(`${plain}GET`, chunkedBody), { passed: plain, rest: 'GET', done: true, content: 15 });
  const trailed = '1\r\nx\r\n0\r\nDigest: abc\r\ngrpc-status: 0\r\n\r\n';
  t.strictSame(read(`${trailed}G`, chunkedBody), { passed: trailed, rest: 'G', done: true, content: 1 });
  const extended = '1;a=b\r\nx\r\n0 \r\n'.replace('0 ', '0;last');
  t.equal(read(`${extended}\r\n`, chunkedBody).passed, '1\r\nx\r\n0\r\n\r\n', 'extensions stay here');
  t.end();
});

t.test('chunks that cannot be read in one way only', (t) => {
  const refused: Record<string, string> = {
    '\r\n': 'chunk',
    ';a\r\n': 'chunk',
    'x\r\n': 'chunk',
    '0x1\r\nx\r\n0\r\n\r\n': 'chunk',
    '-1\r\n': 'chunk',
    '+1\r\nx\r\n': 'chunk',
    '1 \r\nx\r\n': 'chunk',
    ' 1\r\nx\r\n': 'chunk',
    '1_0\r\n': 'chunk',
    '1\nx\n0\n\n': 'chunk',
    '1\r\nxy\r\n': 'chunk',
    '1\r\nx\n0\r\n\r\n': 'chunk',
    '1\r\nx\r0\r\n\r\n': 'chunk',
    '1\rx\r\n': 'chunk',
    '1;a\nx\r\n': 'chunk',
    '1;a\u0000\r\nx\r\n': 'chunk',
    '10000000000\r\n': 'chunk',
    '00000000001\r\nx\r\n': 'chunk',
    '0\r\n\n': 'field',
    '0\r\n\rX': 'trailer',
    '0\r\nContent-Length: 3\r\n\r\n': 'trailer',
    '0\r\nTransfer-Encoding: chunked\r\n\r\n': 'trailer',
    '0\r\nHost: a\r\n\r\n': 'trailer',
    '0\r\n folded\r\n\r\n': 'field',
    '0\r\nname : x\r\n\r\n': 'field',
  };
  for (const [text, kind] of Object.entries(refused)) t.equal(faultOf(text), kind, JSON.stringify(text));
  t.equal(faultOf(`1;${'e'.repeat(maxExtensionBytes)}\r\nx\r\n0\r\n\r\n`), 'chunk', 'endless extensions');
  t.equal(faultOf(`0\r\na: ${'b'.repeat(maxTrailerBytes)}\r\n\r\n`), 'trailer', 'endless trailers');
  t.end();
});

t.test('however it is cut, the same is passed on', (t) => {
  const chunk = fc.tuple(fc.string({ minLength: 1, maxLength: 40 }), fc.constantFrom('', ';a', ';name="value"'));
  const body = fc.tuple(fc.array(chunk, { maxLength: 6 }), fc.constantFrom('', 'a: b\r\n', 'a: b\r\nDigest: c\r\n'));
  fc.assert(
    fc.property(
      body,
      fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 10 }),
      ([chunks, trailers], cuts) => {
        const write = (extended: boolean): string =>
          [...chunks, undefined].reduce((text, each) => {
            if (each === undefined) return `${text}0\r\n${trailers}\r\n`;
            const content = Buffer.from(each[0], 'utf8').toString('latin1');
            return `${text}${content.length.toString(16)}${extended ? each[1] : ''}\r\n${content}\r\n`;
          }, '');
        const { passed, rest, done } = read(`${write(true)}GET /`, chunkedBody, cuts);
        // What is left of the piece that the body ended in, and all that follows it.
        return done && passed === write(false) && 'GET /'.endsWith(rest.slice(-5)) && rest.length >= 5;
      },
    ),
    { numRuns: 3000 },
  );
  t.end();
});
