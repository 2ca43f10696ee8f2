import { once } from 'node:events';
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import {
  type Backend,
  type Bed,
  dial,
  instanceOf,
  outcome,
  serviceOf,
  startBackend,
  startBed,
} from '../proxy/link-plane.fixture.ts';
import { ManualClock } from '../src/base/clock.ts';
import type { Service } from '../src/catalog/snapshot.ts';
import { waitFor } from './support/wait.ts';

/** What comes of HTTP links whose clients and instances are slow, endless, mad, or gone in the middle of a word. */

type Options = Omit<Parameters<typeof startBed>[1], 'services'>;

async function before(t: Test, port: number, fields: Partial<Service> = {}, options: Options = {}): Promise<Bed> {
  const instances = [instanceOf({ name: 'a', port, protocol: 'http' })];
  return startBed(t, { ...options, services: [serviceOf(instances, { protocol: 'http', ...fields })] });
}

function active(bed: Bed): number {
  return (bed.plane.links()[0]?.backends ?? []).reduce((sum, backend) => sum + backend.active, 0);
}

/** No client, no request, and no connection to the instance but those that are kept for further requests. */
async function nothingIsLeft(bed: Bed, instance: { readonly sockets: ReadonlySet<Socket> }): Promise<void> {
  const isSo = async (): Promise<boolean> =>
    bed.plane.activeConnections() === 0 &&
    active(bed) === 0 &&
    instance.sockets.size === (await bed.metric('legate_http_idle_connections'));
  await waitFor('nothing to be left', isSo, { timeoutMs: 20_000 }).catch(async (error) => {
    const kept = await bed.metric('legate_http_idle_connections');
    const left = `${bed.plane.activeConnections()} clients, ${active(bed)} requests, ${instance.sockets.size} connections`;
    throw new Error(`left: ${left}, ${kept} of them kept`, { cause: error });
  });
}

/** Runs `each` for all of them, some at a time. */
async function crowd<T>(all: readonly T[], each: (one: T) => Promise<void>, atOnce = 32): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let one = all[next++]; one !== undefined; one = all[next++]) await each(one);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

const host = 'Host: db\r\n';
const post = (more: string, body = '', path = '/p'): string => `POST ${path} HTTP/1.1\r\n${host}${more}\r\n${body}`;

// Too much, too slow

/** An instance that swallows everything. */
function silent(t: Test): Promise<Backend> {
  return startBackend(t, (socket) => {
    socket.resume();
    socket.on('end', () => socket.end());
  });
}

/** Sends `start`, then `more` again and again until it is answered or cut; gives the answer and how much was sent. */
async function endless(t: Test, port: number, start: string, more: string): Promise<{ first: string; sent: number }> {
  const socket = dial(t, port);
  const answer = outcome(socket);
  let isOver = false;
  void answer.then(() => {
    isOver = true;
  });
  let sent = start.length;
  socket.write(start);
  while (!isOver && sent < 4_000_000) {
    sent += more.length;
    if (!socket.write(more)) await Promise.race([once(socket, 'drain').catch(() => undefined), answer]);
    else await new Promise((resolve) => setImmediate(resolve));
  }
  const { data } = await answer;
  socket.destroy();
  return { first: data.toString('latin1').split('\r\n')[0] ?? '', sent };
}

t.test('clients that do not come to an end', async (t) => {
  const instance = await silent(t);
  const bed = await before(t, instance.port);
  const chunked = post('Transfer-Encoding: chunked\r\n');
  const cases: Record<string, readonly [start: string, more: string, status: number]> = {
    'a field': [`GET / HTTP/1.1\r\n${host}X: `, 'x'.repeat(512), 431],
    'many fields': [`GET / HTTP/1.1\r\n${host}`, 'a: b\r\n', 431],
    'large fields': [`GET / HTTP/1.1\r\n${host}`, `a: ${'b'.repeat(2000)}\r\n`, 431],
    'a target': ['GET /', 'x'.repeat(512), 414],
    'a method': ['', 'X', 501],
    'a chunk extension': [`${chunked}5;`, 'x'.repeat(512), 400],
    'many chunk extensions': [chunked, '1;abcdefgh=ijklmnop\r\nx\r\n', 400],
    'a chunk size': [`${chunked}`, '0', 400],
    'a trailer': [`${chunked}0\r\nX: `, 'x'.repeat(512), 400],
    'many trailers': [`${chunked}0\r\n`, 'abc: defghi\r\n', 431],
    'large trailers': [`${chunked}0\r\n`, `abc: ${'d'.repeat(1000)}\r\n`, 400],
  };
  for (const [name, [start, more, status]] of Object.entries(cases)) {
    const { first, sent } = await endless(t, bed.port, start, more);
    t.match(first, new RegExp(`^HTTP/1.1 ${status} `), `${name}: refused`);
    t.ok(sent < 1_000_000, `${name}: after ${sent} bytes`);
  }
  await nothingIsLeft(bed, instance);
});

t.test('clients that send a byte now and then', async (t) => {
  const clock = new ManualClock();
  const instance = await silent(t);
  const bed = await before(t, instance.port, {}, { clock });
  const received = (): number => bed.plane.links()[0]?.bytes.received ?? 0;
  /** One byte each second; after how many of them it was answered, and how. */
  const drip = async (text: string): Promise<{ seconds: number; first: string }> => {
    const socket = dial(t, bed.port);
    const answer = outcome(socket);
    let over: string | undefined;
    void answer.then(({ data }) => {
      over = data.toString('latin1').split('\r\n')[0];
    });
    let seconds = 0;
    for (const byte of text) {
      const expected = received() + 1;
      socket.write(byte);
      await waitFor('the byte to be read', () => over !== undefined || received() === expected, { everyMs: 1 });
      if (over !== undefined) break;
      await clock.advance(1000);
      seconds += 1;
    }
    await answer;
    socket.destroy();
    return { seconds, first: over ?? '' };
  };
  const slow = await drip(`GET /${'x'.repeat(100)} HTTP/1.1\r\n`);
  t.match(slow, { first: 'HTTP/1.1 408 Request Timeout' }, 'a head is given its time once, and not for each byte');
  t.ok(slow.seconds >= 14 && slow.seconds <= 17, `${slow.seconds} s`);
  const stuck = dial(t, bed.port);
  const answer = outcome(stuck);
  stuck.write(post('Content-Length: 100\r\n', 'abc'));
  await waitFor('the instance to be asked', () => instance.sockets.size === 1);
  await clock.advance(59_000);
  stuck.write('d');
  await waitFor('the byte to be read', () => received() > 0 && active(bed) === 1);
  await clock.advance(62_000);
  t.match((await answer).data.toString(), /^HTTP\/1\.1 408 /, 'nothing comes of a body for a minute');
  stuck.destroy();
  await clock.advance(10_000);
  await nothingIsLeft(bed, instance);
});

t.test('a client that takes its time over the last answer gets all of it', async (t) => {
  const clock = new ManualClock();
  const body = Buffer.alloc(1_500_000, 'slow');
  const sockets = new Set<Socket>();
  const server = createServer((_request, response) => response.end(body));
  server.on('connection', (socket) => sockets.add(socket));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  const bed = await before(t, (server.address() as AddressInfo).port, {}, { clock });
  const socket = dial(t, bed.port);
  socket.write(`GET / HTTP/1.1\r\n${host}Connection: close\r\n\r\n`);
  await once(socket, 'readable');
  // The kernel has taken everything, and the client has not.
  await waitFor('the answer to have left', () => active(bed) === 0);
  for (let passed = 0; passed < 8000; passed += 250) await clock.advance(250);
  const { data, how } = await outcome(socket);
  t.equal(how, 'end');
  t.equal(data.length - data.indexOf('\r\n\r\n') - 4, body.length);
});

t.test('clients that leave an answer half taken', async (t) => {
  const clock = new ManualClock();
  const begun = 'HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n';
  const instance = await startBackend(t, (socket) => {
    socket.once('data', (head: Buffer) => {
      if (head.toString().startsWith('GET /events')) socket.write('HTTP/1.1 200 OK\r\n\r\nan event');
      else socket.write(Buffer.concat([Buffer.from(begun), Buffer.alloc(8_000_000)]));
    });
    socket.on('end', () => socket.end());
  });
  const bed = await before(t, instance.port, {}, { clock });
  const quiet = dial(t, bed.port);
  quiet.on('error', () => undefined);
  quiet.write(`GET /events HTTP/1.1\r\n${host}\r\n`);
  await once(quiet, 'data');
  await clock.advance(60_000);
  t.equal(active(bed), 1, 'an answer may be silent for long');
  // As a browser does whose user has left the page.
  quiet.end();
  await waitFor('its request to end', async () => {
    await clock.advance(1000);
    return active(bed) === 0;
  });
  t.ok(clock.monotonicMs() < 600_000);
  await nothingIsLeft(bed, instance);
  const stuck = dial(t, bed.port);
  stuck.on('error', () => undefined);
  stuck.write(`GET / HTTP/1.1\r\n${host}\r\n`);
  await once(stuck, 'readable');
  await waitFor('it to be stuck', () => (bed.plane.links()[0]?.bytes.sent ?? 0) > 1_000_000);
  await clock.advance(3_700_000);
  await nothingIsLeft(bed, instance);
});

// Clients that vanish

/** Stands for a path of the client's own. */
const mark = '/000000';
/** `wholeAt`: from where on a whole request has been sent. */
const uploads: Record<string, { readonly text: string; readonly wholeAt?: string }> = {
  'a body of known length': { text: post('Content-Length: 12\r\n', 'hello world!', mark) },
  'a chunked body': {
    text: post('Transfer-Encoding: chunked\r\n', '5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nSum: 1\r\n\r\n', mark),
  },
  'two pipelined requests': {
    text: `GET ${mark} HTTP/1.1\r\n${host}\r\n${post('Content-Length: 3\r\n', 'abc')}`,
    wholeAt: '\r\n\r\n',
  },
  'an upgrade': {
    text: `GET ${mark} HTTP/1.1\r\n${host}Connection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst words of another protocol`,
    wholeAt: '\r\n\r\n',
  },
};

/** A server that answers at once, or that never does; both take upgrades, and the first one sends back what comes. */
async function origin(t: Test, answers: boolean): Promise<{ port: number; sockets: Set<Socket>; asked: Set<string> }> {
  const sockets = new Set<Socket>();
  const asked = new Set<string>();
  const server = createServer((request, response) => {
    asked.add(request.url ?? '');
    request.resume();
    request.on('error', () => undefined);
    if (answers) request.on('end', () => response.end('answer'));
  });
  server.on('upgrade', (request: IncomingMessage, socket: Socket) => {
    asked.add(request.url ?? '');
    socket.on('error', () => undefined);
    if (answers) socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
    socket.on('data', (chunk: Buffer) => answers && socket.write(chunk));
    socket.on('end', () => socket.end());
  });
  server.on('clientError', (_error, socket) => socket.destroy());
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, sockets, asked };
}

for (const answers of [true, false]) {
  t.test(
    `clients that vanish at each byte, before an instance that ${answers ? 'answers' : 'is silent'}`,
    async (t) => {
      const instance = await origin(t, answers);
      const bed = await before(t, instance.port);
      let clients = 0;
      for (const [name, { text, wholeAt }] of Object.entries(uploads)) {
        const whole = wholeAt === undefined ? text.length : text.indexOf(wholeAt) + wholeAt.length;
        let count = 0;
        const cuts = Array.from({ length: text.length + 1 }, (_, cut) => cut);
        const headEnd = text.indexOf('\r\n\r\n') + 4;
        const arrived = instance.asked.size;
        await crowd(cuts, async (cut) => {
          for (const waits of [false, true]) {
            for (const how of ['reset', 'end', 'both'] as const) {
              // Whoever only ends its side of a whole request still waits for the answer, and rightly.
              if (how !== 'reset' && ((!answers && cut >= whole) || (waits && how === 'both'))) continue;
              count += 1;
              clients += 1;
              const path = `/${String(clients).padStart(6, '0')}`;
              const socket = connect(bed.port, '127.0.0.1');
              socket.on('error', () => undefined);
              if (how === 'end') socket.resume();
              await once(socket, 'connect');
              const bytes = text.replace(mark, path).slice(0, cut);
              if (cut > 0) await new Promise((resolve) => socket.write(bytes, resolve));
              if (waits && cut >= headEnd)
                await waitFor('it to arrive', () => instance.asked.has(path), { everyMs: 2 });
              if (how === 'end') socket.end();
              else if (how === 'reset') socket.resetAndDestroy();
              else socket.destroy();
            }
          }
        });
        await nothingIsLeft(bed, instance);
        t.pass(`${name}: ${count} clients, ${instance.asked.size - arrived} requests arrived`);
      }
    },
  );
}

// Instances that die

interface Dying {
  readonly method: 'POST' | 'HEAD' | 'GET';
  readonly answer: string;
  readonly status: number;
  readonly body: string;
  /** The end of the connection is the end of the answer. */
  readonly untilClose?: boolean;
}

const dying: Record<string, Dying> = {
  'a body of known length': {
    method: 'POST',
    answer: 'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nA: b\r\n\r\nhello world',
    status: 200,
    body: 'hello world',
  },
  'a chunked body': {
    method: 'POST',
    answer: 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nSum: 1\r\n\r\n',
    status: 200,
    body: 'hello world',
  },
  'until the end': {
    method: 'POST',
    answer: 'HTTP/1.1 200 OK\r\n\r\nhello world',
    status: 200,
    body: 'hello world',
    untilClose: true,
  },
  'informational ones and a final one': {
    method: 'POST',
    answer: 'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello',
    status: 200,
    body: 'hello',
  },
  'nothing new': {
    method: 'POST',
    answer: 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n',
    status: 304,
    body: '',
  },
  'no content': { method: 'POST', answer: 'HTTP/1.1 204 No Content\r\nA: b\r\n\r\n', status: 204, body: '' },
  'to HEAD': { method: 'HEAD', answer: 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n', status: 200, body: '' },
};

interface Told {
  /** `whole`, `cut` (and the client sees that), or `hangs`. */
  readonly how: 'whole' | 'cut' | 'hangs';
  readonly status: number;
  readonly body: string;
}

/** What a client of another make than ours takes the answer for. */
function ask(port: number, method: string, path = '/'): Promise<Told> {
  return new Promise((resolve) => {
    let status = 0;
    let body = '';
    const done = (how: Told['how']): void => {
      clearTimeout(timer);
      request.destroy();
      resolve({ how, status, body });
    };
    const timer = setTimeout(() => done('hangs'), 10_000);
    const headers = method === 'POST' ? { Host: 'db', 'Content-Length': 2 } : { Host: 'db' };
    const request = httpRequest({ port, host: '127.0.0.1', method, path, agent: false, headers });
    request.on('error', () => done('cut'));
    request.on('response', (response: IncomingMessage) => {
      status = response.statusCode ?? 0;
      response.setEncoding('latin1');
      response.on('data', (text: string) => {
        body += text;
      });
      response.on('error', () => done('cut'));
      response.on('end', () => done(response.complete ? 'whole' : 'cut'));
    });
    request.end(method === 'POST' ? 'hi' : undefined);
  });
}

/** As `ask`, with POST: the runtime's own client takes a reset that comes together with data for the end of an answer. */
async function askUntilClose(t: Test, port: number, path: string): Promise<Told> {
  const socket = dial(t, port);
  const answer = outcome(socket);
  socket.write(`POST ${path} HTTP/1.1\r\n${host}Content-Length: 2\r\nConnection: close\r\n\r\nhi`);
  const { data, how } = await answer;
  socket.destroy();
  const [head = '', body = ''] = data.toString('latin1').split('\r\n\r\n');
  return { how: how === 'end' ? 'whole' : 'cut', status: Number(head.split(' ')[1]), body };
}

t.test('instances that die at each byte of their answer', async (t) => {
  // The request's path says which answer it is to be, and how much of it.
  const serve = (socket: Socket): void => {
    let text = '';
    socket.on('end', () => socket.end());
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      const [, kind = '', cut = '0', how = ''] = /^\S+ \/(\d+)\/(\d+)\/(\w+) .*\r\n\r\n(hi)?$/s.exec(text) ?? [];
      const answer = Object.values(dying)[Number(kind)]?.answer;
      if (kind === '' || answer === undefined || (text.startsWith('POST') && !text.endsWith('hi'))) return;
      text = '';
      const piece = Buffer.from(answer.slice(0, Number(cut)), 'latin1');
      const die = (): void => void (how === 'end' ? socket.end() : socket.resetAndDestroy());
      if (piece.length === 0) die();
      else socket.write(piece, die);
    });
  };
  const instance = await startBackend(t, serve);
  const bed = await before(t, instance.port);
  for (const [index, [name, { method, answer, status, body, untilClose }]] of Object.entries(dying).entries()) {
    const wrong: string[] = [];
    const counts = { whole: 0, cut: 0, refused: 0 };
    const cuts = Array.from({ length: answer.length + 1 }, (_, cut) => cut);
    const head = answer.lastIndexOf('\r\n\r\n', untilClose === true ? undefined : answer.length - 1) + 4;
    await crowd(cuts, async (cut) => {
      for (const how of ['end', 'reset']) {
        const path = `/${index}/${cut}/${how}`;
        const told = untilClose === true ? await askUntilClose(t, bed.port, path) : await ask(bed.port, method, path);
        const isAll = cut === answer.length;
        const mayEnd = untilClose === true && how === 'end' && cut >= head;
        const expected = mayEnd ? body.slice(0, cut - head) : body;
        const isWhole = told.how === 'whole' && told.status === status && told.body === expected && (isAll || mayEnd);
        const isTold = told.how === 'whole' && [502, 503, 504].includes(told.status) && !(isAll && how === 'end');
        const isCut = told.how === 'cut' && !(isAll && how === 'end');
        if (isWhole) counts.whole += 1;
        else if (isTold) counts.refused += 1;
        else if (isCut) counts.cut += 1;
        else wrong.push(`${how} at ${cut} of ${answer.length}: ${JSON.stringify(told)}`);
      }
    });
    t.strictSame(wrong, [], `${name}: ${JSON.stringify(counts)}`);
  }
  await nothingIsLeft(bed, instance);
});

t.test('instances that do not come to an end', async (t) => {
  const endlessly: Record<string, readonly [start: string, more: string]> = {
    '/informational': ['', 'HTTP/1.1 100 Continue\r\n\r\n'],
    '/hints': ['', `HTTP/1.1 103 Early Hints\r\nLink: ${'x'.repeat(2000)}\r\n\r\n`],
    '/head': ['HTTP/1.1 200 OK\r\nX: ', 'x'.repeat(1000)],
    '/fields': ['HTTP/1.1 200 OK\r\n', 'a: b\r\n'],
    '/status': ['', 'x'],
    '/reason': ['HTTP/1.1 200 ', 'x'.repeat(1000)],
    '/extensions': ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;', 'x'.repeat(1000)],
    '/trailers': ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n', 'a: bcdefghijklm\r\n'],
    '/size': ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', '0'],
  };
  let sent = 0;
  const instance = await startBackend(t, (socket) => {
    socket.once('data', (chunk: Buffer) => {
      const [start, more] = endlessly[chunk.toString().split(' ')[1] ?? ''] ?? ['', ''];
      const push = (): void => {
        while (!socket.destroyed && sent < 4_000_000) {
          sent += more.length;
          if (!socket.write(more)) return void socket.once('drain', push);
          if (sent % 50 === 0) return void setImmediate(push);
        }
      };
      socket.write(start);
      push();
    });
    socket.on('end', () => socket.end());
  });
  const bed = await before(t, instance.port);
  for (const path of Object.keys(endlessly)) {
    sent = 0;
    const told = await ask(bed.port, 'POST', path);
    const isTold = told.how === 'cut' || (told.how === 'whole' && told.status === 502);
    t.ok(isTold, `${path}: ${told.how} ${told.status}`);
    await nothingIsLeft(bed, instance);
    t.ok(sent < 4_000_000, `${path}: cut off after ${sent} bytes`);
  }
});

t.test('instances that say anything at all', async (t) => {
  let answer = Buffer.alloc(0);
  const instance = await startBackend(t, (socket) => {
    socket.once('data', () => socket.end(answer));
    socket.on('end', () => socket.end());
  });
  const bed = await before(t, instance.port);
  const good = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello';
  const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n';
  const mutated = fc
    .tuple(fc.constantFrom(good, chunked), fc.nat(), fc.uint8Array({ minLength: 1, maxLength: 6 }), fc.boolean())
    .map(([text, at, bytes, replaces]) => {
      const place = at % text.length;
      const end = Buffer.from(text.slice(place + (replaces ? bytes.length : 0)), 'latin1');
      return Buffer.concat([Buffer.from(text.slice(0, place), 'latin1'), bytes, end]);
    });
  const counts: Record<string, number> = {};
  const random = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
  await fc.assert(
    fc.asyncProperty(fc.oneof({ arbitrary: mutated, weight: 4 }, { arbitrary: random, weight: 1 }), async (bytes) => {
      answer = bytes;
      const told = await ask(bed.port, 'POST');
      const key = told.how === 'whole' ? String(told.status) : told.how;
      counts[key] = (counts[key] ?? 0) + 1;
      return told.how !== 'hangs';
    }),
    { numRuns: 500 },
  );
  t.ok((counts['502'] ?? 0) > 50 && (counts['200'] ?? 0) > 10, JSON.stringify(counts));
  await nothingIsLeft(bed, instance);
});
