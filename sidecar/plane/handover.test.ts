import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { LinkDocument } from '../../proxy/link-document.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { temporaryFolder } from '../../test/support/agent.ts';
import { waitFor } from '../../test/support/wait.ts';
import { withFormer } from './merge.ts';
import { closeHandle, type PassedSocket, socketGiver, takeSockets } from './passed-sockets.ts';
import { askQuestion, questionServer } from './questions.ts';
import { SharedListeners } from './shared-listeners.ts';

/** What one sidecar's processes hand to those of the next one. */

const limits = { clock: systemClock, timeoutMs: 5000 };

/** A server that answers each connection with its name. */
async function named(t: Test, name: string, listen: unknown = { port: 0, host: '127.0.0.1' }): Promise<Server> {
  const server = createServer((socket) => socket.on('error', () => undefined).end(name));
  Reflect.apply(server.listen as (...args: unknown[]) => unknown, server, [listen]);
  await once(server, 'listening');
  t.teardown(() => server.close());
  return server;
}

async function listenOn(t: Test, server: Server, path: string): Promise<string> {
  server.listen(path);
  await once(server, 'listening');
  t.teardown(() => server.close());
  return path;
}

function passedBy(server: Server): PassedSocket {
  const { address, port } = server.address() as Endpoint;
  return { endpoint: { address, port }, handle: Object(Reflect.get(server, '_handle')) };
}

async function whoAnswers({ address, port }: Endpoint): Promise<string> {
  const socket = connect(port, address);
  const failed = once(socket, 'error').then(([error]) => String(Reflect.get(Object(error), 'code')));
  const said = once(socket, 'data').then(([data]) => String(data));
  const answer = await Promise.race([said, failed]);
  socket.on('error', () => undefined).destroy();
  for (const promise of [said, failed]) promise.catch(() => undefined);
  return answer;
}

t.test('a socket goes on being listened on by whom it was passed to', async (t) => {
  const path = join(temporaryFolder(t), 'door');
  const givers = await Promise.all(['old', 'old'].map((name) => named(t, name)));
  await listenOn(
    t,
    socketGiver(() => givers.map(passedBy), systemClock),
    path,
  );
  const [first, second] = await takeSockets(path, limits);
  if (first === undefined || second === undefined) throw new Error('two were given');
  t.same(
    [first, second].map(({ endpoint }) => formatEndpoint(endpoint)),
    givers.map((giver) => formatEndpoint(passedBy(giver).endpoint)),
  );
  // Nobody accepts between the two: who connects then waits.
  const { endpoint } = first;
  for (const giver of givers) giver.close();
  const waiting = whoAnswers(endpoint);
  await named(t, 'new', first.handle);
  t.equal(await waiting, 'new');
  closeHandle(second.handle);
  await waitFor('the other one to be closed', async () => (await whoAnswers(second.endpoint)) === 'ECONNREFUSED');

  const again = join(temporaryFolder(t), 'door');
  await listenOn(
    t,
    socketGiver(() => [], systemClock),
    again,
  );
  t.same(await takeSockets(again, limits), [], 'who has none says so');
});

t.test('whoever does not pass sockets as expected is refused', async (t) => {
  const cases: readonly (readonly [string, (socket: Socket) => unknown, RegExp])[] = [
    ['hangs up', (socket) => socket.destroy(), /hung up/],
    ['has no socket with it', (socket) => socket.write('127.0.0.1:80\n'), /something else/],
    ['is endless', (socket) => socket.write('x'.repeat(2_000_000)), /something else/],
    ['says nothing', () => undefined, /did not answer in 200 ms/],
  ];
  for (const [what, act, expected] of cases) {
    const path = join(temporaryFolder(t), 'door');
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket.on('error', () => undefined));
      act(socket);
    });
    await listenOn(t, server, path);
    await t.rejects(
      takeSockets(path, { ...limits, timeoutMs: 200 }),
      { code: 'E_UNREACHABLE', message: expected },
      what,
    );
    for (const socket of sockets) socket.destroy();
  }
  const none = join(temporaryFolder(t), 'door');
  await t.rejects(takeSockets(none, limits), { message: 'ENOENT' });
  rmSync(none, { force: true });
});

t.test('listeners that are adopted are shared at once, and closed when nobody wants them', async (t) => {
  const servers = await Promise.all(['wanted', 'late', 'unwanted'].map((name) => named(t, name)));
  const path = join(temporaryFolder(t), 'door');
  await listenOn(
    t,
    socketGiver(() => servers.map(passedBy), systemClock),
    path,
  );
  const endpoints = servers.map((server) => passedBy(server).endpoint);
  const [wanted, late, unwanted] = endpoints as [Endpoint, Endpoint, Endpoint];
  const sent: string[] = [];
  const listeners = new SharedListeners({
    clock: systemClock,
    held: true,
    send: (slot, endpoint) => sent.push(`${slot} ${formatEndpoint(endpoint)}`),
    refuse: (slot, _, code) => sent.push(`${slot} ${code}`),
  });
  t.teardown(() => listeners.close());
  const other = { address: '127.0.0.1', port: 0 };
  listeners.ask(0, wanted);
  listeners.ask(0, other);
  t.same(sent, [], 'others hold all of them');
  listeners.adopt(await takeSockets(path, limits));
  t.same(sent.splice(0), [`0 ${formatEndpoint(wanted)}`]);
  listeners.ask(1, late);
  t.same(sent.splice(0), [`1 ${formatEndpoint(late)}`]);
  t.same(listeners.boundOf(late), late);
  for (const server of servers) server.close();
  await listeners.letGo();
  t.same(sent, ['0 127.0.0.1:0'], 'what did not come is bound');
  t.equal(listeners.boundOf(unwanted), undefined);
  t.equal(await whoAnswers(unwanted), 'ECONNREFUSED');
});

t.test('a process is asked about what it carries', async (t) => {
  const path = join(temporaryFolder(t), 'door');
  const answers = {
    count: async (filter: { readonly instance?: string }) => (filter.instance === 'a' ? 1 : 3),
    fails: () => Promise.reject(new Error('no')),
  };
  await listenOn(t, questionServer(answers), path);
  t.equal(await askQuestion(path, ['count', { instance: 'a' }], limits), 1);
  t.equal(await askQuestion(path, ['count', {}], limits), 3);
  for (const name of ['fails', 'unknown', 'toString'])
    await t.rejects(askQuestion(path, [name], limits), { code: 'E_UNREACHABLE' }, name);
  await t.rejects(askQuestion(`${path}.no`, ['count'], limits), { code: 'E_UNREACHABLE' });
  const silent = createServer({ allowHalfOpen: true }, (socket) => socket.on('error', () => undefined).unref());
  const there = await listenOn(t, silent, join(temporaryFolder(t), 'door'));
  await t.rejects(askQuestion(there, ['count'], { ...limits, timeoutMs: 50 }), { code: 'E_TIMEOUT' });
});

t.test('what former processes carry counts at the links that there still are', async (t) => {
  const link = {
    service: 'db',
    kind: 'vip',
    address: '240.77.0.5:80',
    connections: { active: 1, total: 10, failed: 0, retried: 0, held: 0 },
    consumers: [{ name: 'host', active: 1, total: 10 }],
    backends: [{ id: 'a', active: 1, total: 10 }],
  } as unknown as LinkDocument;
  const former = {
    ...link,
    connections: { active: 3, total: 900, held: 1 },
    consumers: [
      { name: 'host', active: 1, total: 800 },
      { name: 'web', active: 2, total: 100 },
      { name: 'idle', active: 0, total: 7 },
    ],
    backends: [
      { id: 'a', active: 2, total: 900 },
      { id: 'gone', active: 1, total: 9 },
    ],
  };
  const strange = [null, 7, [null, 'x'], [{ ...link, connections: 'x', consumers: {}, backends: [7] }]];
  const shown = withFormer([link], [[former, { ...former, service: 'gone' }], ...strange]);
  t.match(shown, [
    {
      connections: { active: 4, total: 13, failed: 0, held: 1 },
      consumers: [
        { name: 'host', active: 2, total: 11 },
        { name: 'web', active: 2, total: 2 },
      ],
      backends: [{ id: 'a', active: 3, total: 12 }],
    },
  ]);
  t.equal(shown[0]?.consumers.length, 2);
});
