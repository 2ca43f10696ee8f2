import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  type ClientHttp2Session,
  connect,
  createServer,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { intents, policyOf } from '../../test/support/policies.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, otherHost, serviceOf } from '../link-plane.fixture.ts';
import { at, mesh, thirdHost } from '../tunnel/mesh.fixture.ts';

/** An instance that gives back what it gets. */
async function echo(t: Test) {
  const sessions = new Set<ServerHttp2Session>();
  let open = 0;
  const server = createServer();
  server.on('session', (session) => {
    sessions.add(session);
    session.on('error', () => undefined);
    session.on('close', () => sessions.delete(session));
  });
  server.on('stream', (stream: ServerHttp2Stream) => {
    open += 1;
    stream.on('close', () => {
      open -= 1;
    });
    stream.on('error', () => undefined);
    stream.respond({ ':status': 200 }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-last': 'word' }));
    stream.pipe(stream);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, sessions, open: () => open };
}

function client(t: Test, bed: Bed): ClientHttp2Session {
  const session = connect(`http://127.0.0.1:${bed.port}`);
  session.on('error', () => undefined);
  t.teardown(() => session.destroy());
  return session;
}

function post(session: ClientHttp2Session, body: Buffer) {
  const stream = session.request({ ':method': 'POST', ':path': '/' });
  const hash = createHash('sha256');
  let status = 0;
  let last: unknown;
  let size = 0;
  stream.on('response', (headers) => {
    status = Number(headers[':status']);
  });
  stream.on('trailers', (trailers) => {
    last = trailers['x-last'];
  });
  stream.on('data', (chunk: Buffer) => {
    size += chunk.length;
    hash.update(chunk);
  });
  stream.on('error', () => undefined);
  let sent = 0;
  const write = (): void => {
    while (sent < body.length) {
      const more = stream.write(body.subarray(sent, sent + 65_536));
      sent += 65_536;
      if (!more) return;
    }
    stream.end();
  };
  stream.on('drain', write);
  write();
  return new Promise<{ status: number; size: number; digest: string; last: unknown; code: number }>((resolve) =>
    stream.on('close', () => resolve({ status, size, digest: hash.digest('hex'), last, code: stream.rstCode ?? -1 })),
  );
}

const protocol = 'http2';

t.test('streams of many clients share the tunnel stream of their consumer', async (t) => {
  const instance = await echo(t);
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', instance.port, { protocol })], { protocol })]);
  const body = Buffer.alloc(5_000_000, 'legate carries this ');
  const digest = createHash('sha256').update(body).digest('hex');
  const sessions = [client(t, m.bed), client(t, m.bed)];
  const answers = await Promise.all(
    sessions.flatMap((session) => [
      post(session, body),
      post(session, Buffer.from('x')),
      post(session, Buffer.from('y')),
    ]),
  );
  for (const { status, code, last } of answers) t.match({ status, code, last }, { status: 200, code: 0, last: 'word' });
  t.equal(answers[0]?.digest, digest);
  t.equal(answers[3]?.digest, digest);
  t.equal(m.tunnels.heads.length, 1, 'one stream of the tunnel for six requests of two clients');
  t.match(m.tunnels.heads[0], { consumer: 'host', service: 'db', instance: 'a' });
  for (const session of sessions) session.close();
  await waitFor('no client is left', () => m.bed.plane.activeConnections() === 0);
  t.equal(instance.open(), 0);
});

t.test('a host that refuses', async (t) => {
  const instance = await echo(t);
  const services = [serviceOf([at(otherHost, 'a', instance.port, { protocol })], { protocol })];
  const m = await mesh(t, services);
  m.policy.set(policyOf({ intents: intents('deny host db') }));
  t.match(await post(client(t, m.bed), Buffer.from('x')), { status: 403, code: 0 });
  t.equal(m.bed.plane.links()[0]?.denied.total, 1);
});

t.test('a tunnel that is lost', async (t) => {
  const one = await echo(t);
  const two = await echo(t);
  const instances = [at(otherHost, 'a', one.port, { protocol }), at(thirdHost, 'b', two.port, { protocol })];
  const m = await mesh(t, [serviceOf(instances, { protocol })], [otherHost, thirdHost]);
  const session = client(t, m.bed);
  for (let turn = 0; turn < 4; turn += 1) t.match(await post(session, Buffer.from('x')), { status: 200 });
  const held = session.request({ ':method': 'POST', ':path': '/' });
  held.on('error', () => undefined);
  const closed = new Promise((resolve) => held.on('close', resolve));
  held.write('half');
  await once(held, 'data');
  m.tunnels.lose(one.open() === 1 ? otherHost : thirdHost);
  await closed;
  t.not(held.rstCode, 0, 'half an answer is no whole one');
  for (let turn = 0; turn < 4; turn += 1)
    t.match(await post(session, Buffer.from('x')), { status: 200 }, 'the other goes on');
  await waitFor('nothing is left', () => one.open() + two.open() === 0);
});
