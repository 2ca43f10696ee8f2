import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { intents, policyOf } from '../../test/support/policies.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type Bed, dial, otherHost, outcome, serviceOf } from '../link-plane.fixture.ts';
import { at, mesh } from '../tunnel/mesh.fixture.ts';

async function served(t: Test, serve: (request: IncomingMessage, response: ServerResponse) => void): Promise<number> {
  const server = createServer(serve).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

async function talk(t: Test, bed: Bed, text: string): Promise<string> {
  const socket = dial(t, bed.port);
  const answer = outcome(socket);
  socket.write(text);
  const { data } = await answer;
  socket.destroy();
  return data.toString();
}

const request = (path: string): string => `GET ${path} HTTP/1.1\r\nHost: db\r\nConnection: close\r\n\r\n`;

t.test('requests of many clients share the streams of their consumer, and another consumer has its own', async (t) => {
  const body = Buffer.alloc(5_000_000, 'legate');
  const port = await served(t, (request, response) => response.end(request.url === '/large' ? body : request.url));
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', port, { protocol: 'http' })], { protocol: 'http' })]);
  for (let turn = 0; turn < 10; turn += 1) t.match(await talk(t, m.bed, request(`/${turn}`)), new RegExp(`/${turn}$`));
  t.equal(m.tunnels.heads.length, 1, 'one stream for ten connections');
  const large = await talk(t, m.bed, request('/large'));
  t.equal(large.length - large.indexOf('\r\n\r\n') - 4, body.length);
  t.match(m.tunnels.heads[0], { consumer: 'host', service: 'db', instance: 'a' });
  await waitFor('no client is left', () => m.bed.plane.activeConnections() === 0);
});

t.test('a host that refuses is told to the client', async (t) => {
  const port = await served(t, (_request, response) => response.end('hello'));
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', port, { protocol: 'http' })], { protocol: 'http' })]);
  m.policy.set(policyOf({ intents: intents('deny host db') }));
  t.match(await talk(t, m.bed, request('/')), /^HTTP\/1\.1 403 Forbidden\r\n/);
  t.match(m.bed.plane.links()[0]?.denied.total, 1);
});
