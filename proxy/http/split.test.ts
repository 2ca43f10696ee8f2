import { deepStrictEqual } from 'node:assert/strict';
import type { Socket } from 'node:net';
import fc from 'fast-check';
import t from 'tap';
import { BodyReader, chunkedBody } from './body.ts';
import { HttpFault } from './fault.ts';
import { Head, type Method, maxHeadBytes, methods } from './head.ts';
import { clientLines, HeadComposer } from './outgoing.ts';
import { Response } from './response.ts';

/** Whatever comes is read in the same way however it is cut into pieces, and never makes anything but an HttpFault. */

interface Reading {
  /** `refused`, `whole`, `upgraded`, or `waits` for more. */
  readonly end: string;
  /** What went on; of a message that is refused in the middle it depends on the pieces how much that was. */
  readonly passed: string;
}

/** Gives the pieces to the reader one after another, until it has come to an end. */
function inPieces(bytes: Buffer, cuts: readonly number[], read: (piece: Buffer) => boolean): void {
  let at = 0;
  for (let turn = 0; at < bytes.length; turn += 1) {
    const size = cuts[turn % cuts.length] ?? bytes.length;
    // A copy of just this size: to read beyond it would be noticed, and the buffer is used again as that of a socket is.
    const piece = Buffer.from(Uint8Array.prototype.slice.call(bytes, at, at + size));
    at += size;
    const goesOn = read(piece);
    piece.fill(0x21);
    if (!goesOn) return;
  }
}

function readRequest(bytes: Buffer, cuts: readonly number[]): Reading {
  const head = new Head();
  const composer = new HeadComposer();
  const body = new BodyReader();
  let ahead: Buffer | undefined;
  let passed = '';
  let end = 'waits';
  let isInBody = false;
  const readBody = (chunk: Buffer, at: number): boolean => {
    body.read(chunk, at, (from, start, stop) => {
      passed += from.toString('latin1', start, stop);
    });
    if (body.done) end = 'whole';
    return !body.done;
  };
  try {
    inPieces(bytes, cuts, (piece) => {
      if (isInBody) return readBody(piece, 0);
      const chunk = ahead === undefined ? Buffer.from(piece) : Buffer.concat([ahead, piece]);
      const from = head.readRequest(chunk, 0);
      if (from > chunk.length) throw new Error(`it read ${from} of ${chunk.length} bytes`);
      ahead = chunk;
      if (from < 0) return true;
      isInBody = true;
      body.begin(head.chunked ? chunkedBody : { kind: 'length', bytes: head.contentLength ?? 0 });
      const lines = clientLines({ address: '127.0.0.1', port: 1 }, 'http', 'append');
      const own = {
        lines,
        host: 'db',
        putId: (out: Buffer, at: number) => void out.fill('a', at, at + 32),
        target: undefined,
        edits: undefined,
      };
      passed += composer.request(head, { ...own, upgrade: head.upgrades });
      if (body.done) end = 'whole';
      return !body.done && readBody(chunk, from);
    });
  } catch (error) {
    if (!(error instanceof HttpFault)) throw error;
    return { end: 'refused', passed: '' };
  }
  return { end, passed };
}

function readResponse(
  bytes: Buffer,
  cuts: readonly number[],
  asked: { readonly method: Method; readonly minor: 0 | 1 },
): Reading {
  let passed = '';
  let end = 'waits';
  const client = { cork: () => undefined, uncork: () => undefined } as unknown as Socket;
  const response = new Response(
    client,
    { responseHead: new Head(), composer: new HeadComposer() },
    {
      answered: () => true,
      toClient: (piece) => {
        passed += piece.toString('latin1');
      },
      upgraded: () => {
        end = 'upgraded';
      },
      whole: ({ client: keeps }) => {
        end = keeps ? 'whole' : 'whole, and closes';
      },
    },
  );
  response.begin({ ...asked, upgrade: asked.method === methods.get });
  try {
    inPieces(bytes, cuts, (piece) => {
      response.bytes(piece);
      return end === 'waits';
    });
  } catch (error) {
    if (!(error instanceof HttpFault)) throw error;
    return { end: 'refused', passed: '' };
  }
  // What another protocol says first is the only thing that may come behind the end.
  return { end, passed: end === 'upgraded' ? (passed.split('\r\n\r\n')[0] ?? '') : passed };
}

const requests = [
  'GET / HTTP/1.1\r\nHost: db\r\n\r\n',
  '\r\nPOST http://db:80/a?b HTTP/1.1\r\nHost: db:80\r\nContent-Length: 5\r\nConnection: close, X-Own\r\nX-Own: 1\r\n\r\nhello',
  'PUT /x HTTP/1.1\r\nhost: [::1]:8\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nExpect: 100-continue\r\n\r\n5;a=b\r\nhello\r\nA\r\n0123456789\r\n0;z\r\nSum: 1\r\nOther: 2\r\n\r\n',
  'GET /chat HTTP/1.1\r\nHost: db\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n',
  'GET / HTTP/1.0\r\nConnection: keep-alive\r\nX-Forwarded-For: 10.0.0.1\r\nCookie: a=b; c=d\r\n\r\n',
];
const responses = [
  'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\nhello',
  'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n5;a=b\r\nhello\r\n0\r\nSum: 1\r\n\r\n',
  'HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end',
  'HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\nETag: "a"\r\n\r\n',
  'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframes',
  'HTTP/1.1 204\r\n\r\n',
];

/** What is put into valid messages: what parsers stumble over. */
const splinter = fc.constantFrom(
  '\r\n',
  '\n',
  '\r',
  '\0',
  ' ',
  '\t',
  ':',
  ';',
  ',',
  '0',
  'F',
  '-1',
  '+5',
  'chunked',
  'Content-Length: 5\r\n',
  'Transfer-Encoding: chunked\r\n',
  'Host: other\r\n',
  'Connection: close\r\n',
  'Connection: content-length\r\n',
  'HTTP/1.1 100 Continue\r\n\r\n',
  '\x80',
  'a'.repeat(300),
  `X: ${'b'.repeat(9000)}\r\n`,
  'y: z\r\n'.repeat(130),
);

/** A valid message, and up to four places where something was put in, left out, or said twice. */
function mutated(messages: readonly string[]): fc.Arbitrary<Buffer> {
  const change = fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    how: fc.constantFrom('insert', 'replace', 'remove', 'repeat'),
    what: fc.oneof(splinter, fc.string({ maxLength: 4, unit: 'binary-ascii' })),
    size: fc.integer({ min: 1, max: 12 }),
  });
  return fc.tuple(fc.constantFrom(...messages), fc.array(change, { maxLength: 4 })).map(([message, changes]) => {
    let text = message;
    for (const { at: share, how, what, size } of changes) {
      const at = Math.floor(share * text.length);
      const rest = text.slice(
        how === 'insert' || how === 'repeat' ? at : at + (how === 'replace' ? what.length : size),
      );
      const piece = how === 'repeat' ? text.slice(at, at + size) : how === 'remove' ? '' : what;
      text = text.slice(0, at) + piece + rest;
    }
    return Buffer.from(text, 'latin1');
  });
}

const noise = fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes));
const cuts = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 5 });
const numRuns = 3000;

t.test('requests', (t) => {
  for (const text of requests)
    t.equal(readRequest(Buffer.from(text, 'latin1'), [1]).end, 'whole', 'each of them is good as it is');
  let refused = 0;
  fc.assert(
    fc.property(
      fc.oneof({ arbitrary: mutated(requests), weight: 9 }, { arbitrary: noise, weight: 1 }),
      cuts,
      (bytes, sizes) => {
        const atOnce = readRequest(bytes, [bytes.length]);
        if (atOnce.end === 'refused') refused += 1;
        deepStrictEqual(readRequest(bytes, sizes), atOnce);
        if (bytes.length < 2000) deepStrictEqual(readRequest(bytes, [1]), atOnce);
      },
    ),
    { numRuns },
  );
  t.ok(refused > numRuns / 20 && refused < numRuns, `${refused} of ${numRuns} were refused`);
  t.end();
});

t.test('responses', (t) => {
  let refused = 0;
  const asked = fc.record({
    method: fc.constantFrom(methods.get, methods.head, methods.post),
    minor: fc.constantFrom<0 | 1>(0, 1),
  });
  fc.assert(
    fc.property(
      fc.oneof({ arbitrary: mutated(responses), weight: 9 }, { arbitrary: noise, weight: 1 }),
      cuts,
      asked,
      (bytes, sizes, request) => {
        const atOnce = readResponse(bytes, [bytes.length], request);
        if (atOnce.end === 'refused') refused += 1;
        deepStrictEqual(readResponse(bytes, sizes, request), atOnce);
        if (bytes.length < 2000) deepStrictEqual(readResponse(bytes, [1], request), atOnce);
      },
    ),
    { numRuns },
  );
  t.ok(refused > numRuns / 20 && refused < numRuns, `${refused} of ${numRuns} were refused`);
  t.end();
});

t.test('a head at its bounds is read in the same way at once and in pieces', (t) => {
  for (let more = -6; more <= 6; more += 1) {
    for (const lines of [1, 2, 100]) {
      const start = `GET / HTTP/1.1\r\nHost: db\r\n${'a: b\r\n'.repeat(lines - 1)}X: `;
      const size = maxHeadBytes - start.length - 4 + more;
      const bytes = Buffer.from(`${start}${'b'.repeat(size)}\r\n\r\n`, 'latin1');
      const ends = [[bytes.length], [bytes.length - 1, 1], [bytes.length - 2, 1], [bytes.length - 3, 1]].map(
        (sizes) => readRequest(bytes, sizes).end,
      );
      deepStrictEqual([...new Set(ends)], [more > 0 ? 'refused' : 'whole'], `${more} over it, ${lines} lines: ${ends}`);
    }
  }
  t.pass('from 6 bytes below to 6 above it');
  t.end();
});
