import { createServer, type TLSSocket } from 'node:tls';
import t, { type Test } from 'tap';
import { makeTestAuthority } from '../../test/support/certificates.ts';
import { waitFor } from '../../test/support/wait.ts';
import { recordingLog } from '../local-plane.fixture.ts';
import { FrameParser } from './frame-parser.ts';
import { headerBytes } from './frames.ts';
import { connectRaw, FrameRecorder } from './raw-peer.test-support.ts';
import { putHead } from './stream-head.ts';
import { makeHost, RecordedEvents, type TestHost, type TestHostOptions, testHead } from './test-support.ts';

const authority = await makeTestAuthority();
const ids = { a: 'aaaaaaaaaaaaaaaa', b: 'bbbbbbbbbbbbbbbb' } as const;
const shown = { a: await authority.issue(ids.a), b: await authority.issue(ids.b) };

async function start(t: Test, options: TestHostOptions): Promise<TestHost> {
  const host = makeHost(options);
  t.teardown(() => host.plane.close());
  await host.plane.start();
  return host;
}

/** A frame by its numbers; the payload in hexadecimal digits. */
function frame(type: number, stream: number, payload: string | Buffer): Buffer {
  const body = typeof payload === 'string' ? Buffer.from(payload, 'hex') : payload;
  const header = Buffer.alloc(headerBytes);
  header.writeUIntBE(body.length, 0, 3);
  header[3] = type;
  header.writeUInt32BE(stream, 4);
  return Buffer.concat([header, body]);
}

/** Version 9, what it grants, and fields that nobody knows yet. */
const laterHello = frame(1, 0, '0009 00100000 01000000 00004000 cafe 0123456789'.replaceAll(' ', ''));
/** The first, the last and others of the types that are kept for later, of the connection and of streams. */
const laterFrames = [0x80, 0xa5, 0xff].flatMap((type) => [
  frame(type, 0, 'c0ffee'),
  frame(type, 1, ''),
  frame(type, 77, '00'),
]);

function laterOpen(stream: number): Buffer {
  const head = Buffer.alloc(2000);
  const end = putHead(head, 0, testHead({ consumer: 'web', service: 'db' }));
  head[0] = 0xff;
  head.write('a field of a later version', end);
  return frame(2, stream, head.subarray(0, end + 500));
}

/** A sidecar of another version, that is dialled: it says what a test wants, and records what it hears. */
async function otherVersion(t: Test, protocols: readonly string[], onTunnel: (socket: TLSSocket) => void) {
  const { chain, key, roots } = shown.b;
  const received = new FrameRecorder();
  const faults: string[] = [];
  const server = createServer(
    { cert: chain, key, ca: [...roots], requestCert: true, rejectUnauthorized: false, ALPNProtocols: [...protocols] },
    (socket) => {
      const parser = new FrameParser(received);
      socket.on('data', (chunk: Buffer) => parser.push(chunk));
      socket.on('error', () => undefined);
      t.teardown(() => socket.destroy());
      onTunnel(socket);
    },
  );
  server.on('tlsClientError', (error) => faults.push(String((error as { code?: unknown }).code)));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => new Promise((resolve) => server.close(resolve)));
  const { port } = server.address() as { port: number };
  return { port, received, faults };
}

t.test('a later version that dials is understood', async (t) => {
  const b = await start(t, { hostId: ids.b, credentials: shown.b });
  const port = b.plane.bound?.port ?? 0;
  const peer = await connectRaw({ port, credentials: shown.a, protocols: ['legate-tunnel/2', 'legate-tunnel/1'] });
  t.teardown(() => peer.socket.destroy());
  t.equal(peer.socket.alpnProtocol, 'legate-tunnel/1', 'the one that both speak');
  peer.socket.write(
    Buffer.concat([laterHello, ...laterFrames, laterOpen(1), frame(4, 1, '68656c6c6f'), ...laterFrames]),
  );
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  t.match(incoming.head, { consumer: 'web', declared: true, service: 'db' }, 'unknown flags and fields are ignored');
  await waitFor('its bytes', () => incoming.events.bytes === 5);
  incoming.stream.write(Buffer.from('world'));
  await waitFor('the answer', () => peer.received.bytes === 5);
  t.match(peer.received.lines[0], /^hello 1 /, 'it says what it speaks itself');
  // A reason that nobody knows yet is a reset all the same.
  peer.socket.write(frame(6, 1, '004d'));
  await waitFor('the reset', () => incoming.events.closedBy);
  t.equal(incoming.events.closedBy?.reason, 'reset');
  t.notOk(peer.closed);
  t.notMatch(peer.received.lines.join(), /goaway/);
});

t.test('a later version that is dialled is understood', async (t) => {
  const later = await otherVersion(t, ['legate-tunnel/2', 'legate-tunnel/1'], (socket) => {
    socket.write(Buffer.concat([laterHello, ...laterFrames.filter((each) => each.readUInt32BE(4) === 0)]));
  });
  const a = await start(t, { hostId: ids.a, credentials: shown.a });
  a.knows({ hostId: ids.b, port: later.port });
  a.plane.want(ids.b, true);
  await waitFor('it is ready', () => a.plane.state(ids.b).state === 'ready');
  const events = new RecordedEvents();
  const stream = a.plane.open(ids.b, testHead(), events);
  if (typeof stream === 'string') throw new Error(stream);
  stream.write(Buffer.from('hi'));
  await waitFor('it hears it', () => later.received.lines.includes('open 1 db') && later.received.bytes === 2);
  t.match(later.received.lines[0], /^hello 1 /);
  stream.reset('reset');
});

t.test('one that shares no version is refused, and both sides say why', async (t) => {
  const { log, lines } = recordingLog('a caller has no protocol in common with this sidecar');
  const b = await start(t, { hostId: ids.b, credentials: shown.b, log });
  const port = b.plane.bound?.port ?? 0;
  for (let each = 0; each < 3; each += 1) {
    const peer = await connectRaw({ port, credentials: shown.a, protocols: ['legate-tunnel/2'] });
    t.match(peer.problem, /NO_APPLICATION_PROTOCOL/);
  }
  await waitFor('the line', () => lines.length > 0);
  t.match(lines, [{ 'client.address': '127.0.0.1', 'tunnel.protocols': /legate-tunnel\/1/, hint: /version/ }]);
  t.equal(lines.length, 1, 'a stranger cannot fill the log');

  const later = await otherVersion(t, ['legate-tunnel/2'], () => undefined);
  const a = await start(t, { hostId: ids.a, credentials: shown.a });
  a.knows({ hostId: ids.b, port: later.port });
  a.plane.want(ids.b, true);
  const condition = await waitFor('the condition', () =>
    a.conditions.list().find(({ id }) => id.startsWith('tunnel.')),
  );
  t.match(condition.message, /does not speak legate-tunnel\/1/);
  t.match(condition.hint, /version/);
  t.match(a.plane.state(ids.b), { state: 'connecting', problem: /does not speak legate-tunnel\/1/ });
  t.match(later.faults[0], /NO_APPLICATION_PROTOCOL/);
});
