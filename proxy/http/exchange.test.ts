import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import t, { type Test } from 'tap';
import { type Clock, ManualClock, systemClock } from '../../src/base/clock.ts';
import type { Service } from '../../src/catalog/snapshot.ts';
import { waitFor } from '../../test/support/wait.ts';
import {
  type Bed,
  deadPort,
  dial,
  instanceOf,
  outcome,
  serviceOf,
  startBackend,
  startBed,
} from '../link-plane.fixture.ts';

/** A bed before backends at these ports, which speak HTTP. */
function before(
  t: Test,
  ports: readonly number[],
  fields: Partial<Service> = {},
  clock: Clock = systemClock,
): Promise<Bed> {
  const instances = ports.map((port, index) => instanceOf({ name: `i${index}`, port, protocol: 'http' }));
  return startBed(t, { services: [serviceOf(instances, { protocol: 'http', ...fields })], clock });
}

/** A backend that answers with what the function writes, for each whole head that comes (bodies are the function's). */
async function scripted(t: Test, serve: (socket: Socket, head: string, turn: number) => void): Promise<Backend> {
  const heads: string[] = [];
  const { port, sockets } = await startBackend(t, (socket) => {
    let text = '';
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      for (let end = text.indexOf('\r\n\r\n'); end >= 0; end = text.indexOf('\r\n\r\n')) {
        heads.push(text.slice(0, end + 4));
        text = text.slice(end + 4);
        serve(socket, heads.at(-1) ?? '', heads.length);
      }
    });
    socket.on('end', () => socket.end());
  });
  return { port, sockets, heads };
}

interface Backend {
  readonly port: number;
  readonly sockets: Set<Socket>;
  readonly heads: string[];
}

/** A server of the runtime. */
async function served(t: Test, serve: (request: IncomingMessage, response: ServerResponse) => void): Promise<number> {
  const server = createServer(serve);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return (server.address() as AddressInfo).port;
}

/** Sends the text and gives all that comes until the connection ends; `end` closes our side at once. */
async function talk(t: Test, bed: Bed, text: string, { end = false } = {}): Promise<string> {
  const socket = dial(t, bed.port);
  const answer = outcome(socket);
  socket.write(Buffer.from(text, 'latin1'));
  if (end) socket.end();
  const { data, how } = await answer;
  socket.destroy();
  return how === 'end' ? data.toString('latin1') : `${data.toString('latin1')}<${how}>`;
}

const get = (path = '/', more = ''): string => `GET ${path} HTTP/1.1\r\nHost: db\r\n${more}\r\n`;
const close = 'Connection: close\r\n';
const ok = (body: string, more = ''): string =>
  `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`;

t.test('what an instance gets', async (t) => {
  const backend = await scripted(t, (socket) => socket.write(ok('hi')));
  const bed = await before(t, [backend.port]);
  const fields =
    'Keep-Alive: timeout=5\r\nX-Private: 1\r\nTE: trailers\r\nX-Forwarded-For: 10.0.0.9\r\nCookie: a=b\r\n';
  const answer = await talk(t, bed, get('/a?b', `Connection: close, X-Private\r\n${fields}`));
  t.equal(answer, 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi');
  const [head = ''] = backend.heads;
  t.match(head, /^GET \/a\?b HTTP\/1\.1\r\nHost: db\r\nCookie: a=b\r\nVia: 1\.1 legate\r\n/);
  t.match(head, /\r\nX-Forwarded-For: 10\.0\.0\.9, 127\.0\.0\.1\r\nX-Forwarded-Proto: http\r\n/);
  t.match(head, /\r\nX-Request-Id: [0-9a-f]{32}\r\ntraceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-01\r\n/);
  t.match(head, /\r\nTE: trailers\r\nConnection: TE\r\n\r\n$/);
  t.notMatch(head, /x-private|keep-alive/i, 'what concerns only the hop before stays there');
  const kept = 'X-Request-Id: mine\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n';
  await talk(t, bed, get('/', close + kept));
  t.ok(backend.heads[1]?.includes(kept), 'ids that the client has are its own');
  await talk(t, bed, 'GET http://db/x HTTP/1.0\r\nHost: db\r\n\r\n');
  t.match(backend.heads[2], /^GET \/x HTTP\/1\.1\r\nHost: db\r\n/, 'a whole URI becomes a path');
  await talk(t, bed, 'GET /x HTTP/1.0\r\n\r\n');
  t.match(backend.heads[3], /\r\nHost: db\r\n/, 'who names no host means the service');
});

t.test('connections are kept on both sides', async (t) => {
  const backend = await scripted(t, (socket, _head, turn) =>
    socket.write(ok(String(turn), 'Connection: keep-alive\r\nKeep-Alive: timeout=9\r\n')),
  );
  const bed = await before(t, [backend.port]);
  const answer = await talk(t, bed, get('/1') + get('/2') + get('/3', close));
  const one = (body: number, more = ''): string => ok(String(body), more);
  t.equal(answer, one(1) + one(2) + one(3, close), 'pipelined requests are answered in their order');
  await talk(t, bed, get('/4', close));
  t.equal(backend.sockets.size, 1, 'all over one connection to the instance');
  const old = await talk(
    t,
    bed,
    'GET / HTTP/1.0\r\nHost: db\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\nHost: db\r\n\r\n',
  );
  t.equal(old, one(5, 'Connection: keep-alive\r\n') + one(6, close), 'also those of HTTP/1.0 that ask for it');
  t.equal(bed.plane.links()[0]?.connections.total, 3, 'connections are counted as such');
  await waitFor('nothing runs', () => bed.plane.activeConnections() === 0);
});

t.test('bodies both ways, cut anywhere', async (t) => {
  const port = await served(t, (request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      response.setHeader('Trailer', 'X-Sum');
      response.write(request.headers['transfer-encoding'] ?? request.headers['content-length'] ?? 'none');
      response.write('|');
      response.write(Buffer.concat(chunks));
      response.addTrailers({ 'X-Sum': String(Buffer.concat(chunks).length) });
      response.end();
    });
  });
  const bed = await before(t, [port]);
  const chunked = `POST /a HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nA: b\r\n\r\n`;
  const sized = `PUT /b HTTP/1.1\r\nHost: db\r\nContent-Length: 3\r\n${close}\r\nabc`;
  const text = chunked + sized;
  const whole = await talk(t, bed, text);
  t.match(whole, /chunked\r\n1\r\n\|\r\nb\r\nhello world\r\n0\r\nX-Sum: 11\r\n\r\nHTTP/);
  t.match(whole, /1\r\n3\r\n1\r\n\|\r\n3\r\nabc\r\n0\r\nX-Sum: 3\r\n\r\n$/);
  const plain = (answer: string): string => answer.replaceAll(/\r\nDate: [^\r]*/g, '');
  for (let cut = 1; cut < text.length; cut += 1) {
    const socket = dial(t, bed.port);
    const answer = outcome(socket);
    socket.write(text.slice(0, cut));
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
    socket.write(text.slice(cut));
    const { data } = await answer;
    socket.destroy();
    if (plain(data.toString()) !== plain(whole)) t.equal(plain(data.toString()), plain(whole), `cut at ${cut}`);
  }
  t.pass(`cut at each of ${text.length} places`);
});

t.test('large bodies are whole', async (t) => {
  const size = 20 * 1_048_576 + 17;
  const port = await served(t, (request, response) => {
    if (request.url === '/chunked') response.writeHead(200);
    else response.writeHead(200, { 'Content-Length': size });
    request.pipe(response);
  });
  const bed = await before(t, [port]);
  const sent = Buffer.alloc(size, 'legate carries this ');
  for (const path of ['/sized', '/chunked']) {
    const got = await new Promise<Buffer>((resolve, reject) => {
      const chunks: Buffer[] = [];
      const up = request({ port: bed.port, path, method: 'POST', headers: { Host: 'db' } }, (response) => {
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () => resolve(Buffer.concat(chunks)));
        response.on('error', reject);
      });
      up.on('error', reject);
      up.end(sent);
    });
    t.ok(got.equals(sent), path);
  }
});

t.test('answers of every kind', async (t) => {
  const answers: Record<string, string> = {
    '/204': 'HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n',
    '/304': 'HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n',
    '/103': `HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${ok('x')}`,
    '/chunked': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;e\r\nx\r\n0\r\n\r\n',
  };
  const backend = await scripted(t, (socket, head) => {
    const path = head.split(' ')[1] ?? '';
    if (path === '/close') socket.end('HTTP/1.1 200 OK\r\n\r\nuntil the end');
    else
      socket.write(
        head.startsWith('HEAD') ? 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n' : (answers[path] ?? ok('')),
      );
  });
  const bed = await before(t, [backend.port]);
  const all = ['/204', '/304', '/103'].map((path) => get(path)).join('');
  t.equal(
    await talk(t, bed, `${all}HEAD / HTTP/1.1\r\nHost: db\r\n\r\n${get('/chunked', close)}`),
    [
      'HTTP/1.1 204 No Content\r\n\r\n',
      'HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n',
      `HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${ok('x')}`,
      'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n',
      `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n${close}\r\n1\r\nx\r\n0\r\n\r\n`,
    ].join(''),
  );
  t.equal(await talk(t, bed, get('/close')), `HTTP/1.1 200 OK\r\n${close}\r\nuntil the end`);
  t.equal(
    await talk(t, bed, 'GET /chunked HTTP/1.0\r\n\r\n'),
    `HTTP/1.1 200 OK\r\n${close}\r\nx`,
    'HTTP/1.0 knows no chunks',
  );
  t.equal(await talk(t, bed, 'GET /103 HTTP/1.0\r\n\r\n'), ok('x', close), 'nor early hints');
});

t.test('Expect: 100-continue', async (t) => {
  const port = await served(t, (request, response) => {
    request.resume();
    request.on('end', () => response.end('thanks'));
  });
  const bed = await before(t, [port]);
  const socket = dial(t, bed.port);
  const answer = outcome(socket);
  socket.write(`POST / HTTP/1.1\r\nHost: db\r\nContent-Length: 4\r\nExpect: 100-continue\r\n${close}\r\n`);
  let early = '';
  socket.on('data', (chunk: Buffer) => {
    early += chunk;
  });
  await waitFor('the word to go on', () => early.startsWith('HTTP/1.1 100 Continue\r\n\r\n'));
  socket.write('body');
  t.match((await answer).data.toString(), /100 Continue\r\n\r\nHTTP\/1\.1 200 OK\r\n.*thanks$/s);
});

t.test('upgrades', async (t) => {
  const backend = await scripted(t, (socket, head) => {
    if (!/upgrade: echo/i.test(head)) {
      socket.write(ok('plain'));
      return;
    }
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello');
    socket.removeAllListeners('data');
    socket.on('data', (chunk: Buffer) => socket.write(chunk));
  });
  const bed = await before(t, [backend.port]);
  const socket = dial(t, bed.port);
  const answer = outcome(socket);
  let seen = '';
  socket.on('data', (chunk: Buffer) => {
    seen += chunk;
  });
  socket.write(get('/', 'Connection: Upgrade\r\nUpgrade: echo\r\n'));
  await waitFor('the upgrade', () => seen.includes('hello'));
  socket.write('GET / HTTP/1.1\r\n\r\n');
  await waitFor('the echo', () => seen.endsWith('GET / HTTP/1.1\r\n\r\n'));
  socket.end();
  t.equal((await answer).how, 'end', 'the end of one side is passed on, and that of the other');
  t.match(seen, /^HTTP\/1\.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nhello/);
  const h2c = await talk(
    t,
    bed,
    get('/', 'Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n'),
  );
  t.match(h2c, /plain$/, 'an upgrade to HTTP/2 is not passed on');
  t.notMatch(backend.heads[1], /h2c|settings/i);
  t.match(await talk(t, bed, 'CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n\r\n'), /^HTTP\/1\.1 405 .*Allow: GET/s);
});

t.test('what a client sends behind an upgrade waits for it', async (t) => {
  const backend = await scripted(t, (socket) => {
    socket.removeAllListeners('data');
    socket.on('data', (chunk: Buffer) => socket.write(chunk));
    setTimeout(
      () => socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n'),
      20,
    );
  });
  const bed = await before(t, [backend.port]);
  const words = 'words '.repeat(30_000);
  const answer = await talk(t, bed, `${get('/', 'Connection: Upgrade\r\nUpgrade: echo\r\n')}${words}`, { end: true });
  t.equal(answer.slice(answer.indexOf('\r\n\r\n') + 4), words);
});

t.test('an instance that closes a kept connection while a request is on its way', async (t) => {
  const backend = await scripted(t, (socket) => socket.write(ok('fine')));
  const bed = await before(t, [backend.port]);
  const post = `POST / HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\nhi`;
  const socket = dial(t, bed.port);
  let seen = '';
  socket.on('data', (chunk: Buffer) => {
    seen += chunk;
  });
  for (let turn = 1; turn <= 20; turn += 1) {
    socket.write(post);
    await waitFor('an answer', () => seen.split('HTTP/1.1').length === 1 + turn, { everyMs: 1 });
    // Both at once: the request is read, and only then is it seen that the connection has ended.
    if (turn < 20) for (const kept of backend.sockets) kept.destroy();
  }
  t.notMatch(seen, /502/, 'nobody has read it there: it may be asked again');
  t.match(seen.match(/200 OK/g)?.length, 20);
  t.equal(backend.heads.length, 20);
});

t.test('one empty line before each request, and no more', async (t) => {
  const backend = await scripted(t, (socket) => socket.write(ok('hi')));
  const bed = await before(t, [backend.port]);
  const answers = await talk(t, bed, `\r\n${get()}\r\n${get()}\r\n\r\n${get()}`);
  t.match(answers, /^HTTP\/1\.1 200 .*HTTP\/1\.1 200 .*HTTP\/1\.1 400 /s);
  t.equal(backend.heads.length, 2);
});

t.test('what is refused', async (t) => {
  const backend = await scripted(t, (socket) => socket.write(ok('no')));
  const bed = await before(t, [backend.port]);
  const cases: Record<string, RegExp> = {
    'GET / HTTP/1.1\r\n\r\n': /^HTTP\/1\.1 400 .*legate: no Host\n$/s,
    'GET / HTTP/2.0\r\nHost: db\r\n\r\n': /^HTTP\/1\.1 505 /,
    'POST / HTTP/1.1\r\nHost: db\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n':
      /^HTTP\/1\.1 400 /,
    'POST / HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n':
      /^HTTP\/1\.1 400 .*a chunk without a size/s,
    [get('/', 'Via: 1.1 legate\r\n'.repeat(16))]: /^HTTP\/1\.1 508 .*leads back to itself\n$/s,
  };
  for (const [text, expected] of Object.entries(cases))
    t.match(await talk(t, bed, text), expected, JSON.stringify(text));
  t.match(
    await talk(t, bed, `${get()}GET / HTTP/1.1\nHost: db\n\n`),
    /^HTTP\/1\.1 200 .*HTTP\/1\.1 400 /s,
    'also behind a good one',
  );
  t.match(await talk(t, bed, get('/', `Via: 1.1 legate\r\nVia: 1.1 other\r\n${close}`)), /^HTTP\/1\.1 200 /);
  t.equal(backend.heads.length, 2, 'and only the good one went on');
});

t.test('instances that fail', async (t) => {
  const died = await scripted(t, (socket) => socket.destroy());
  const fine = await scripted(t, (socket) => socket.write(ok('fine')));
  const bed = await before(t, [died.port, await deadPort(), fine.port]);
  for (let turn = 0; turn < 6; turn += 1)
    t.match(await talk(t, bed, get('/', close)), /fine$/, 'the client does not notice');
  const failing = await before(t, [died.port]);
  const post = `POST / HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n${close}\r\nhi`;
  const before1 = died.heads.length;
  t.match(await talk(t, failing, post), /^HTTP\/1\.1 502 Bad Gateway\r\n.*Legate-Reason: /s);
  t.equal(died.heads.length, before1 + 1, 'what may not be done twice is asked once');
  const none = await before(t, [await deadPort()]);
  t.match(await talk(t, none, get('/', close)), /^HTTP\/1\.1 503 .*Retry-After: 1\r\n/s);
  const garbage = await before(t, [(await startBackend(t, (socket) => socket.end('garbage\r\n\r\n'))).port]);
  t.match(await talk(t, garbage, get('/', close)), /^HTTP\/1\.1 502 .*a version other than/s);
});

t.test('an instance that answers with errors of its own is left out for a while', async (t) => {
  const bad = await scripted(t, (socket) =>
    socket.write('HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n'),
  );
  const good = [
    await scripted(t, (socket) => socket.write(ok('good'))),
    await scripted(t, (socket) => socket.write(ok('good'))),
  ];
  const bed = await before(t, [bad.port, ...good.map(({ port }) => port)]);
  let errors = 0;
  for (let turn = 0; turn < 40; turn += 1) {
    const answer = await talk(t, bed, get('/', close));
    if (answer.startsWith('HTTP/1.1 500')) errors += 1;
  }
  t.equal(errors, 5, 'its errors reach the clients, and the fifth in a row is the last');
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="here/i0",end="5xx"}'), 5);
  t.equal(await bed.metric('legate_http_request_seconds_count{service="db",instance="here/i0"}'), 5);
});

t.test('an instance that dies at each byte of its answer', async (t) => {
  const whole = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\nhello';
  const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n';
  let cut = 0;
  let answer = whole;
  const backend = await startBackend(t, (socket) => {
    socket.once('data', () => socket.end(answer.slice(0, cut)));
  });
  const bed = await before(t, [backend.port]);
  for (const text of [whole, chunked]) {
    answer = text;
    const head = text.indexOf('\r\n\r\n') + 4;
    for (cut = 0; cut < text.length; cut += 1) {
      const got = await talk(t, bed, `POST / HTTP/1.1\r\nHost: db\r\nContent-Length: 0\r\n${close}\r\n`);
      if (cut < head) {
        if (!got.startsWith('HTTP/1.1 502 ')) t.match(got, /^HTTP\/1\.1 502 /, `at ${cut}`);
      } else if (!got.endsWith('<ECONNRESET>')) t.match(got, /<ECONNRESET>$/, `at ${cut}`);
    }
  }
  await waitFor('nothing is left', () => bed.plane.activeConnections() === 0 && backend.sockets.size === 0);
  t.pass('the client is always told');
});

t.test('a client that vanishes at each byte of its request', async (t) => {
  const seen = new Set<Socket>();
  const backend = await startBackend(t, (socket) => {
    seen.add(socket);
    socket.resume();
    socket.on('end', () => socket.end());
  });
  const bed = await before(t, [backend.port]);
  const text = `POST /abc HTTP/1.1\r\nHost: db\r\nContent-Length: 12\r\n\r\nhello world!`;
  for (let cut = 0; cut <= text.length; cut += 1) {
    for (const how of ['reset', 'end'] as const) {
      if (how === 'end' && cut === text.length) continue;
      const socket = dial(t, bed.port);
      socket.on('error', () => undefined);
      socket.resume();
      await new Promise<void>((resolve) => socket.write(text.slice(0, cut) || '\r', () => resolve()));
      if (how === 'reset') socket.resetAndDestroy();
      else socket.end();
    }
  }
  await waitFor('nothing is left', () => bed.plane.activeConnections() === 0 && backend.sockets.size === 0, {
    timeoutMs: 20_000,
  });
  t.ok(seen.size > 0, `${seen.size} connections to the instance, none left`);
});

t.test('a slow client holds up its own answer, and nothing else', async (t) => {
  const body = Buffer.alloc(32 * 1_048_576, 'x');
  const port = await served(t, (request, response) => response.end(request.url === '/big' ? body : 'small'));
  const bed = await before(t, [port]);
  const slow = dial(t, bed.port);
  slow.write(get('/big', close));
  await new Promise((resolve) => slow.once('readable', resolve));
  t.match(await talk(t, bed, get('/', close)), /small$/);
  const { data } = await outcome(slow);
  t.equal(data.length - data.indexOf('\r\n\r\n') - 4, body.length);
});

t.test('what a slow client has yet to take is not overwritten by the next answer', async (t) => {
  // Of some size the last piece is just what the kernel does not take any more.
  const sizes = Array.from({ length: 24 }, (_, index) => (index + 1) * 393_216);
  const port = await served(t, (request, response) => {
    const size = Number(request.url?.slice(1));
    response.end(Buffer.alloc(size || 1_000_000, size ? 'slow' : 'next'));
  });
  const bed = await before(t, [port]);
  let wrong = 0;
  for (const size of sizes) {
    const slow = dial(t, bed.port);
    slow.write(get(`/${size}`, close));
    await new Promise((resolve) => slow.once('readable', resolve));
    for (let turn = 0; turn < 3; turn += 1) await talk(t, bed, get('/', close));
    const { data } = await outcome(slow);
    if (!data.subarray(data.indexOf('\r\n\r\n') + 4).equals(Buffer.alloc(size, 'slow'))) wrong += 1;
  }
  t.equal(wrong, 0);
});

t.test('a sidecar that leaves lets requests end, and takes no further ones', async (t) => {
  let answer = (): void => undefined;
  const port = await served(t, (request, response) => {
    if (request.url === '/slow') answer = () => void response.end('at last');
    else response.end('quick');
  });
  const bed = await before(t, [port]);
  const idle = dial(t, bed.port);
  const idleEnds = outcome(idle);
  idle.write(get());
  await new Promise((resolve) => idle.once('data', resolve));
  const busy = dial(t, bed.port);
  const busyEnds = outcome(busy);
  busy.write(get('/slow'));
  await waitFor('the request to arrive', () => bed.plane.activeConnections({ instance: 'here/i0' }) === 1);
  const between = dial(t, bed.port);
  const betweenEnds = outcome(between);
  between.write(get());
  await new Promise((resolve) => between.once('data', resolve));
  const drained = bed.plane.drain(10_000);
  between.write(get());
  t.match(
    (await betweenEnds).data.toString(),
    /^(?:(?!Connection).)*quick.*Connection: close\r\n.*quick$/s,
    'a request on its way is the last',
  );
  between.destroy();
  t.equal((await idleEnds).how, 'end', 'a connection that waits for a request is closed');
  idle.destroy();
  answer();
  const { data, how } = await busyEnds;
  t.equal(how, 'end');
  t.match(data.toString(), /^HTTP\/1\.1 200 OK\r\n.*Connection: close\r\n.*at last/s);
  busy.destroy();
  t.equal(await drained, 0, 'nothing was reset');
});

t.test('what takes too long is ended', async (t) => {
  const clock = new ManualClock();
  const silent = await scripted(t, () => undefined);
  const bed = await before(t, [silent.port], {}, clock);
  const ended = async (text: string, ms: number, arrived = silent.heads.length): Promise<string> => {
    const socket = dial(t, bed.port);
    const all = outcome(socket);
    const received = (): number => bed.plane.links()[0]?.bytes.received ?? 0;
    const expected = received() + text.length;
    if (text !== '') socket.write(text);
    const isThere = (): boolean => received() === expected && silent.heads.length === arrived;
    await waitFor('it to be read', () => bed.plane.activeConnections() === 1 && isThere());
    for (let passed = 0; passed <= ms; passed += 250) await clock.advance(250);
    socket.end();
    const { data } = await all;
    socket.destroy();
    await waitFor('it to be gone', () => bed.plane.activeConnections() === 0);
    return data.toString('latin1').split('\r\n')[0] ?? '';
  };
  t.equal(await ended('GET / HTTP/1.1\r\nHo', 15_000), 'HTTP/1.1 408 Request Timeout', 'a head');
  t.equal(
    await ended('POST / HTTP/1.1\r\nHost: db\r\nContent-Length: 9\r\n\r\nhi', 60_000, 1),
    'HTTP/1.1 408 Request Timeout',
    'a body',
  );
  t.equal(await ended(get(), 61_000, 2), 'HTTP/1.1 504 Gateway Timeout', 'an answer');
  t.equal(await ended('', 75_000), '', 'silence');
});
