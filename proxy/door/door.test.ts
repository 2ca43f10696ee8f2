import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, copyFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { connect as connectHttp2, createServer as createHttp2Server } from 'node:http2';
import { type AddressInfo, type Socket, connect as tcpConnect } from 'node:net';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import t, { type Test } from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { CertificateFiles } from '../../src/model/link.ts';
import { temporaryFolder } from '../../test/support/agent.ts';
import { makeTestAuthority, type TestAuthority, writeDoorFiles } from '../../test/support/certificates.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, deadPort, instanceOf, outcome, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';
import { lookEveryMs, warnBeforeMs } from './certificates.ts';
import { Handshakes } from './handshakes.ts';

const folder = temporaryFolder(t);
const authority: TestAuthority = await makeTestAuthority();
const dayMs = 86_400_000;

function issue(
  name: string,
  names: readonly string[],
  more: { notBeforeMs?: number; notAfterMs?: number } = {},
): Promise<CertificateFiles> {
  return writeDoorFiles(authority, folder, name, { names, notAfterMs: Date.now() + 90 * dayMs, ...more });
}

const web = await issue('web', ['web.example']);

interface House {
  readonly bed: Bed;
  readonly port: number;
}

interface HouseOptions {
  readonly protocol?: 'http' | 'http2' | 'grpc' | 'tcp';
  readonly port?: number;
  readonly tls?: readonly CertificateFiles[];
  readonly clock?: ManualClock;
}

/** A door before one instance. */
async function house(t: Test, { protocol = 'http', port = 1, tls = [web], clock }: HouseOptions = {}): Promise<House> {
  const links = [{ service: 'db', listen: { address: '127.0.0.1', port: 0 }, tls }];
  const services = [serviceOf([instanceOf({ name: 'i0', port, protocol })], { protocol })];
  const bed = await startBed(t, { services, links, ...(clock && { clock }) });
  return { bed, port: bed.port };
}

async function served(t: Test, server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return (server.address() as AddressInfo).port;
}

/** A TLS client that has shaken hands, or the error's code. */
async function client(
  t: Test,
  port: number,
  options: ConnectionOptions & { allowHalfOpen?: boolean } = {},
): Promise<TLSSocket> {
  const defaults = { host: '127.0.0.1', port, ca: authority.root, servername: 'web.example' };
  const socket = connect({ ...defaults, checkServerIdentity: () => undefined, ...options });
  t.teardown(() => socket.destroy());
  await once(socket, 'secureConnect');
  return socket;
}

async function problem(t: Test, port: number, options: ConnectionOptions = {}): Promise<string> {
  try {
    const socket = await client(t, port, options);
    // In TLS 1.3 a client is done before the server is.
    const { how } = await outcome(socket);
    return how;
  } catch (error) {
    return error instanceof Error && 'code' in error ? String(error.code) : String(error);
  }
}

const get = (path: string, more = ''): string => `GET ${path} HTTP/1.1\r\nHost: web.example\r\n${more}\r\n`;
const close = 'Connection: close\r\n';

function failures(bed: Bed, reason: string): Promise<number> {
  return bed.metric(`legate_link_tls_handshake_failures_total{reason="${reason}"}`);
}

function faults(bed: Bed): string[] {
  return bed.conditions
    .list()
    .map(({ id, severity, message }) => `${severity} ${id.replace('.127.0.0.1:0', '')} ${message}`);
}

t.test('HTTP/1.1 over TLS', async (t) => {
  const body = randomBytes(3_000_000);
  const heads: string[][] = [];
  const port = await served(
    t,
    createServer((request, response) => {
      heads.push(request.rawHeaders);
      if (request.url === '/big') response.end(body);
      else if (request.url === '/hash') {
        const hash = createHash('sha256');
        request.on('data', (chunk: Buffer) => hash.update(chunk));
        request.on('end', () => response.end(hash.digest('hex')));
      } else response.end('hello');
    }),
  );
  const { bed, port: door } = await house(t, { port });
  const given =
    'X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: evil\r\nForwarded: for=1.1.1.1\r\n' +
    'X-Forwarded-Port: 1\r\nx-forwarded-user: root\r\nX-Real-IP: 1.1.1.1\r\nX-Real-It: kept\r\n' +
    'X_Forwarded_For: 1.1.1.1\r\nx-forwarded_proto: http\r\nX_Real_IP: 1.1.1.1\r\n';

  const socket = await client(t, door, { ALPNProtocols: ['h2', 'http/1.1'] });
  t.equal(socket.alpnProtocol, 'http/1.1');
  t.equal(socket.getProtocol(), 'TLSv1.3');
  socket.write(get('/a', `${given}X-Request-Id: mine\r\n`) + get('/b') + get('/c', close));
  const { data, how } = await outcome(socket);
  t.equal(how, 'end');
  t.equal(
    data.toString().match(/hello/g)?.length,
    3,
    'pipelined requests are answered, and the connection ends in order',
  );
  const said = Object.fromEntries(
    (heads[0] ?? []).flatMap((name, at, all) => (at % 2 === 0 ? [[name, all[at + 1]]] : [])),
  );
  t.match(said, { 'X-Forwarded-For': '127.0.0.1', 'X-Forwarded-Proto': 'https', 'X-Request-Id': 'mine' });
  t.notMatch(
    Object.keys(said).join(),
    /x-forwarded-(host|port|user)|(^|,)forwarded|x-real-ip|_/i,
    'the outside is not believed',
  );
  t.equal(said['X-Real-It'], 'kept');

  // The read buffers of an instance's connection are used again: what the client takes slowly must stay as it was.
  const slow = await client(t, door, { maxVersion: 'TLSv1.2' });
  t.equal(slow.getProtocol(), 'TLSv1.2');
  slow.write(get('/big') + get('/big', close));
  const chunks: Buffer[] = [];
  for await (const chunk of slow) {
    chunks.push(chunk);
    if (chunks.length % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const whole = Buffer.concat(chunks);
  const first = whole.indexOf('\r\n\r\n') + 4;
  t.ok(whole.subarray(first, first + body.length).equals(body), 'the body is the one that was sent');
  t.ok(whole.subarray(-body.length).equals(body), 'and so is the next one');

  const upload = await client(t, door);
  upload.write(`PUT /hash HTTP/1.1\r\nHost: web.example\r\n${close}Content-Length: ${body.length}\r\n\r\n`);
  upload.write(body);
  const { data: answer } = await outcome(upload);
  t.match(answer.toString(), createHash('sha256').update(body).digest('hex'));

  const half = await client(t, door, { allowHalfOpen: true });
  half.end(get('/d'));
  t.match((await outcome(half)).data.toString(), /hello/, 'who ends its side still gets the answer');
  half.destroy();

  const resumed = await client(t, door);
  const [session] = (await once(resumed, 'session')) as [Buffer];
  const again = await client(t, door, { session });
  t.ok(again.isSessionReused(), 'who comes again is known');

  t.match(bed.plane.links(), [{ tls: { names: ['web.example'] }, state: 'open', problem: null }]);
  t.match(bed.plane.links()[0]?.consumers, [{ name: 'host' }]);
  for (const each of [resumed, again]) each.destroy();
  await waitFor('all are gone', () => bed.plane.activeConnections() === 0);
  t.equal(await bed.metric('legate_link_tls_handshakes_count'), 0);
  const done = async (): Promise<boolean> => (await bed.metric('legate_link_tls_handshakes_total')) >= 5;
  await waitFor('handshakes are counted', done);
  t.strictSame(faults(bed), []);
});

t.test('another protocol after an upgrade', async (t) => {
  const server = createServer();
  server.on('upgrade', (_request, socket: Socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
    socket.pipe(socket);
  });
  const { bed, port: door } = await house(t, { port: await served(t, server) });
  const socket = await client(t, door, { allowHalfOpen: true });
  socket.write(get('/', 'Connection: Upgrade\r\nUpgrade: echo\r\n'));
  const [head] = (await once(socket, 'data')) as [Buffer];
  t.match(head.toString(), /^HTTP\/1\.1 101 /);
  const bytes = randomBytes(1_000_000);
  const answer = outcome(socket);
  socket.end(bytes);
  const { data, how } = await answer;
  t.equal(how, 'end');
  t.ok(data.equals(bytes), 'all that was sent before the end comes back');
  socket.destroy();
  await waitFor('nothing is left', () => bed.plane.activeConnections() === 0);
});

t.test('instances are told the address of the client', async (t) => {
  const heads: Buffer[] = [];
  const { port } = await startBackend(t, (socket) => {
    socket.on('data', (chunk: Buffer) => {
      heads.push(chunk);
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok');
    });
  });
  const links = [{ service: 'db', listen: { address: '127.0.0.1', port: 0 }, tls: [web] }];
  const instances = [instanceOf({ name: 'i0', port, protocol: 'http' })];
  const bed = await startBed(t, { services: [serviceOf(instances, { protocol: 'http', proxyProtocol: 'v2' })], links });
  const socket = await client(t, bed.port);
  const answer = once(socket, 'data');
  socket.write(get('/'));
  await answer;
  const all = Buffer.concat(heads);
  t.equal(
    all.toString('hex', 0, 16),
    '0d0a0d0a000d0a515549540a2111000c',
    'a header of the PROXY protocol, TCP over IPv4',
  );
  t.equal(all.readUInt16BE(24), socket.localPort, 'from the port that the client has');
});

t.test('an instance that dies in the middle of an answer is seen to', async (t) => {
  const { port, sockets } = await startBackend(t, (socket) => {
    socket.once('data', () => {
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf');
      setImmediate(() => socket.resetAndDestroy());
    });
  });
  const { bed, port: door } = await house(t, { port });
  const socket = await client(t, door);
  socket.write(get('/'));
  const { how } = await outcome(socket);
  t.equal(how, 'ECONNRESET', 'half an answer ends with a reset');
  await waitFor('nothing is left', () => bed.plane.activeConnections() === 0 && sockets.size === 0);
});

t.test('clients that go at any moment leave nothing behind', async (t) => {
  const { port, sockets } = await startBackend(t, (socket) => {
    socket.on('data', () => socket.write(`HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n${'x'.repeat(200_000)}`));
    socket.on('end', () => socket.end());
  });
  const { bed, port: door } = await house(t, { port });
  // The first flight of a real client.
  const hello = await new Promise<Buffer>((resolve) => {
    void startBackend(t, (socket) => socket.once('data', resolve)).then((trap) => {
      const lost = connect({ port: trap.port, host: '127.0.0.1' });
      lost.on('error', () => undefined);
      t.teardown(() => lost.destroy());
    });
  });
  for (const [index, bytes] of [0, 1, 5, 60, hello.length - 1, hello.length].entries()) {
    for (const how of ['end', 'reset', 'destroy'] as const) {
      const socket = tcpConnect(door, '127.0.0.1');
      socket.on('error', () => undefined).resume();
      await once(socket, 'connect');
      socket.write(hello.subarray(0, bytes));
      await new Promise((resolve) => setTimeout(resolve, index));
      if (how === 'end') socket.end();
      else if (how === 'reset') socket.resetAndDestroy();
      else socket.destroy();
      await once(socket, 'close');
    }
  }
  for (let count = 0; count < 20; count += 1) {
    const socket = await client(t, door);
    socket.on('error', () => undefined);
    socket.write(get('/').slice(0, count % 2 === 0 ? 20 : 1000));
    if (count % 4 === 3) await once(socket, 'data').catch(() => undefined);
    if (count % 3 === 0) socket.destroy();
    else if (count % 3 === 1) socket.end();
    else tcpOf(socket)?.resetAndDestroy();
    socket.destroy();
  }
  await waitFor('nothing is left', () => bed.plane.activeConnections() === 0 && sockets.size === 0);
  t.equal(await bed.metric('legate_link_tls_handshakes_count'), 0);
  t.equal(await failures(bed, 'gone'), 18);
});

/** What a TLS client goes over. */
function tcpOf(socket: TLSSocket): Socket | undefined {
  const parent: unknown = Reflect.get(socket, '_parent');
  return parent instanceof Object && 'resetAndDestroy' in parent ? (parent as Socket) : undefined;
}

t.test('HTTP/2 over TLS', async (t) => {
  const server = createHttp2Server((request, response) => {
    response.setHeader('seen', JSON.stringify(request.headers));
    response.end('two');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => server.close());
  const { bed, port: door } = await house(t, { protocol: 'http2', port: (server.address() as AddressInfo).port });
  const socket = await client(t, door, { ALPNProtocols: ['http/1.1', 'h2'] });
  t.equal(socket.alpnProtocol, 'h2');
  const session = connectHttp2('https://web.example', { createConnection: () => socket });
  const stream = session.request({ ':path': '/', 'x-forwarded-for': '1.1.1.1', forwarded: 'for=1.1.1.1' });
  const [headers] = (await once(stream, 'response')) as [Record<string, string>];
  const seen = JSON.parse(headers.seen ?? '{}');
  t.match(seen, { 'x-forwarded-for': '127.0.0.1', 'x-forwarded-proto': 'https', ':scheme': 'https' });
  t.notOk('forwarded' in seen);
  stream.resume();
  await once(stream, 'end');
  session.close();
  await once(session, 'close');

  t.match(await problem(t, door, { ALPNProtocols: ['http/1.1'] }), /NO_APPLICATION_PROTOCOL|ECONNRESET/);
  t.match(await problem(t, door), /ECONNRESET|end/, 'HTTP/2 is for those who ask for it');
  t.equal(await failures(bed, 'protocol'), 2);

  const cut = await client(t, door, { ALPNProtocols: ['h2'] });
  const lost = connectHttp2('https://web.example', { createConnection: () => cut });
  lost.on('error', () => undefined);
  await once(lost, 'remoteSettings');
  await bed.plane.close();
  await waitFor('it is cut', () => cut.destroyed);
});

t.test('the certificate is chosen by the name that is asked for', async (t) => {
  const port = await served(
    t,
    createServer((_request, response) => response.end()),
  );
  const tls = [
    await issue('one', ['one.example']),
    await issue('two', ['two.example', '*.wild.example']),
    await issue('three', ['*.wild.example', 'Three.Example']),
  ];
  const { port: door } = await house(t, { port, tls });
  for (const [servername, expected] of [
    ['one.example', 'one'],
    ['two.example', 'two'],
    ['TWO.example', 'two'],
    ['a.wild.example', 'two'],
    ['a.b.wild.example', 'one'],
    ['three.example', 'three'],
    ['wild.example', 'one'],
    ['nobody.example', 'one'],
    ['__proto__', 'one'],
    ['', 'one'],
  ] as const) {
    const socket = await client(t, door, { servername });
    t.equal(socket.getPeerCertificate().subject.CN, expected, `${servername} gets ${expected}`);
    socket.destroy();
  }
});

t.test('who speaks no TLS, or too little of it', async (t) => {
  const clock = new ManualClock();
  const { port } = await startBackend(t, (socket) => socket.destroy());
  const { bed, port: door } = await house(t, { port, clock });
  const talk = async (bytes: string | Buffer): Promise<string> => {
    const socket = tcpConnect(door, '127.0.0.1');
    const answer = outcome(socket);
    socket.write(bytes);
    const { data, how } = await answer;
    socket.destroy();
    return how === 'end' ? data.toString('latin1') : `<${how}>`;
  };
  t.match(await talk(get('/')), /^HTTP\/1\.1 400 Bad Request\r\n.*\r\n\r\nthis port speaks HTTPS\n$/s);
  t.match(await talk(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nsecret=42`), /^HTTP\/1\.1 400 /);
  t.equal(await failures(bed, 'clear'), 2);
  t.notMatch(await talk('SSH-2.0-OpenSSH_9.2\r\n'), /HTTP/);
  await talk(randomBytes(4000));
  await talk(Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'));
  await talk(Buffer.concat([Buffer.from([0x16, 3, 1, 0xff, 0xff]), randomBytes(0xffff)]));
  const version = await failures(bed, 'version');
  t.equal((await failures(bed, 'garbage')) + version, 4);

  t.match(
    await problem(t, door, { maxVersion: 'TLSv1.1', minVersion: 'TLSv1', ciphers: 'DEFAULT@SECLEVEL=0' }),
    /ERR_SSL/,
  );
  t.ok((await failures(bed, 'version')) > version);
  t.match(await problem(t, door, { ca: [] }), /UNABLE_TO_VERIFY|SELF_SIGNED/);
  await waitFor('it said so', async () => (await failures(bed, 'refused')) + (await failures(bed, 'gone')) > 0);

  const silent = tcpConnect(door, '127.0.0.1');
  const half = tcpConnect(door, '127.0.0.1');
  half.write(Buffer.from([0x16, 3, 1, 2]));
  const ends = Promise.all([outcome(silent), outcome(half)]);
  await waitFor('both have begun', async () => (await bed.metric('legate_link_tls_handshakes_count')) === 2);
  await clock.advance(Handshakes.limitMs);
  for (const { data } of await ends) t.equal(data.length, 0);
  t.equal(await failures(bed, 'time'), 2);

  const again = await client(t, door, { maxVersion: 'TLSv1.2' });
  again.on('error', () => undefined);
  const refused = await new Promise<Error | null>((resolve) => {
    again.once('error', resolve);
    again.renegotiate({}, resolve);
  });
  t.ok(refused instanceof Error, 'nobody negotiates again');
});

t.test('too many handshakes: the oldest gives way', async (t) => {
  const clock = new ManualClock();
  const metrics = new Metrics();
  const handshakes = new Handshakes({ clock, metrics, onIdle: () => undefined });
  const failed: string[] = [];
  let number = 0;
  const one = (): Socket => {
    number += 1;
    const ends = { remoteAddress: '192.0.2.1', remotePort: number, localAddress: '192.0.2.2', localPort: 443 };
    const closed: (() => void)[] = [];
    const once = (_event: string, run: () => void): void => void closed.push(run);
    const destroy = (): void => {
      for (const run of closed.splice(0)) run();
    };
    return { ...ends, once, destroy } as unknown as Socket;
  };
  const begin = (name: string): Socket => {
    const raw = one();
    handshakes.begin(raw, { secured: () => undefined, failed: (why) => failed.push(`${name} ${why}`) });
    return raw;
  };
  const gone = begin('gone');
  for (let count = 1; count < Handshakes.max; count += 1) begin(`${count}`);
  t.strictSame(failed, []);
  gone.destroy();
  begin('a');
  begin('b');
  t.strictSame(failed, ['gone gone', '1 limit']);
  t.equal(handshakes.size, Handshakes.max);
  await clock.advance(Handshakes.limitMs);
  t.equal(handshakes.size, 0);
  t.equal(failed.length, Handshakes.max + 2);
});

t.test('certificates are read again', async (t) => {
  const clock = new ManualClock(Date.now());
  const { port } = await startBackend(t, (socket) => {
    socket.on('data', () => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'));
    socket.on('end', () => socket.end());
  });
  const tls = [await issue('old', ['turn.example']), await issue('side', ['side.example'])];
  const [turn = web, side = web] = tls;
  const { bed, port: door } = await house(t, { port, tls, clock });
  const cnOf = async (servername: string): Promise<string> => {
    const socket = await client(t, door, { servername });
    const { CN } = socket.getPeerCertificate().subject;
    socket.destroy();
    return String(CN);
  };
  const look = async (what: string, done: () => boolean | Promise<boolean>): Promise<void> => {
    await waitFor(what, async () => {
      await clock.advance(lookEveryMs);
      return done();
    });
  };
  t.equal(await cnOf('turn.example'), 'old');
  const running = await client(t, door);
  const answers: string[] = [];
  running.on('data', (chunk: Buffer) => answers.push(chunk.toString()));

  const fresh = await issue('new', ['turn.example', 'more.example']);
  copyFileSync(fresh.cert, turn.cert);
  await look('half of it is a fault', () => faults(bed).length > 0);
  t.match(faults(bed), [
    /^error link\.tls\.db\.certificate\.0 .*old\.key is no key of the certificate in .*; the certificate of before stays, until /,
  ]);
  t.equal(await cnOf('turn.example'), 'old');
  copyFileSync(fresh.key, turn.key);
  await look('all of it', () => faults(bed).length === 0);
  t.equal(await cnOf('turn.example'), 'new');
  t.equal(await cnOf('nobody.example'), 'new', 'also as the first one');
  t.match(bed.plane.links(), [{ tls: { names: ['turn.example', 'more.example', 'side.example'] } }]);
  running.write(get('/'));
  await waitFor('what ran goes on', () => answers.join('').includes('ok'));

  for (const [what, spoil, fault] of [
    ['open to others', () => chmodSync(side.key, 0o640), /side\.key can be read by others than its owner/],
    ['gone', () => rmSync(side.key), /side\.key does not exist/],
    ['garbage', () => writeFileSync(side.cert, 'nothing'), /side\.(crt does not begin with|key does not exist)/],
  ] as const) {
    spoil();
    await look(what, () => faults(bed).some((each) => fault.test(each)));
    t.equal(await cnOf('side.example'), 'side', `${what}: the one of before stays`);
  }
  await issue('side', ['side.example'], { notAfterMs: clock.nowMs() + warnBeforeMs + dayMs });
  await look('a whole one', () => faults(bed).length === 0);
  clock.jumpWall(2 * dayMs);
  await look('its end comes near', () => faults(bed).length > 0);
  t.match(faults(bed), [/^warning .*certificate\.1 the certificate of db at 127\.0\.0\.1:0 in .*side\.crt ends at /]);
  clock.jumpWall(warnBeforeMs);
  await look('it has ended', () => faults(bed).some((each) => each.startsWith('error')));
  t.match(faults(bed), [/^error .*side\.crt has ended at .*: clients refuse it/]);
  await bed.plane.close();
  t.strictSame(faults(bed), []);
});

t.test('a certificate out of its time replaces none that holds', async (t) => {
  const startMs = Date.now();
  const clock = new ManualClock(startMs);
  const { port } = await startBackend(t, (socket) => socket.destroy());
  const used = await issue('used', ['use.example'], { notAfterMs: startMs + 20 * dayMs });
  const { bed, port: door } = await house(t, { port, tls: [used], clock });
  const put = async (name: string, life: { notBeforeMs?: number; notAfterMs?: number }): Promise<void> => {
    const fresh = await issue(name, ['use.example'], life);
    copyFileSync(fresh.cert, used.cert);
    copyFileSync(fresh.key, used.key);
  };
  /** What is shown once something else is said of it. */
  const shown = async (fault: RegExp | undefined): Promise<string> => {
    await waitFor(`it is said: ${fault}`, async () => {
      await clock.advance(lookEveryMs);
      return fault === undefined ? faults(bed).length === 0 : faults(bed).some((each) => fault.test(each));
    });
    // The clock of this test is not the client's.
    const socket = await client(t, door, { servername: 'use.example', rejectUnauthorized: false });
    const { CN } = socket.getPeerCertificate().subject;
    socket.destroy();
    return String(CN);
  };
  const day = (ms: number): string => new Date(ms).toISOString().slice(0, 10);
  t.equal(await shown(undefined), 'used');
  await put('ended', { notBeforeMs: startMs - 9 * dayMs, notAfterMs: startMs - dayMs });
  const stays = `; the certificate of before stays, until ${day(startMs + 20 * dayMs)}`;
  t.equal(await shown(new RegExp(`^error .* has ended at ${day(startMs - dayMs)}.*${stays}`)), 'used');
  await put('early', { notBeforeMs: startMs + 2 * dayMs, notAfterMs: startMs + 30 * dayMs });
  t.equal(await shown(new RegExp(`^error .* holds only from ${day(startMs + 2 * dayMs)}.*${stays}`)), 'used');
  clock.jumpWall(3 * dayMs);
  t.equal(await shown(undefined), 'early', 'once it is its time it is taken, though the files have not changed');
  await put('late', { notBeforeMs: startMs + 90 * dayMs, notAfterMs: startMs + 99 * dayMs });
  t.equal(await shown(/holds only from .*stays/), 'early');
  clock.jumpWall(40 * dayMs);
  t.equal(
    await shown(/holds only from .*: clients refuse it until then$/),
    'late',
    'where none holds, the files decide',
  );
});

t.test('a door that cannot open', async (t) => {
  const none = { cert: `${folder}/none.crt`, key: `${folder}/none.key` };
  const clock = new ManualClock();
  const { bed, port: door } = await house(t, { tls: [none], clock });
  t.match(faults(bed), [/^error link\.tls\.db\.certificate\.0 a certificate of db at .*none\.crt does not exist/]);
  t.match(await problem(t, door), /ECONNRESET/);
  t.equal(await failures(bed, 'unready'), 1);
  t.match(bed.plane.links(), [{ tls: { names: [], notAfter: null } }]);

  const plain = await house(t, { protocol: 'tcp' });
  t.match(faults(plain.bed), [
    /^error link\.tls\.db\.protocol nobody gets in to db at .*: TLS leads to HTTP only, and the service is tcp/,
  ]);
  t.match(plain.bed.plane.links(), [{ state: 'refusing', problem: /TLS leads to HTTP only/ }]);
  t.match(await problem(t, plain.port), /ECONNRESET/);
  plain.bed.set(
    serviceOf([instanceOf({ name: 'i0', port: await deadPort(), protocol: 'http' })], { protocol: 'http' }),
  );
  await waitFor('it may be opened', () => faults(plain.bed).length === 0);
  const socket = await client(t, plain.port);
  socket.write(get('/', close));
  t.match((await outcome(socket)).data.toString(), /^HTTP\/1\.1 503 /);
  plain.bed.set();
  const nobody = await client(t, plain.port);
  nobody.write(get('/', close));
  t.match((await outcome(nobody)).data.toString(), /^HTTP\/1\.1 503 /, 'a service that nobody knows has no instance');
});
