import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import t from 'tap';
import { Latest } from '../../src/base/feed.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import type { Host } from '../../src/model/host.ts';
import { intents, policyOf } from '../../test/support/policies.ts';
import { waitFor } from '../../test/support/wait.ts';
import {
  ask,
  blackHole,
  deadPort,
  dial,
  naming,
  otherHost,
  outcome,
  ownHost,
  serviceOf,
  startBackend,
  startBed,
} from '../link-plane.fixture.ts';
import { FakeTunnels } from './fake-tunnels.fixture.ts';
import { at, hostNames, mesh, thirdHost } from './mesh.fixture.ts';

function hashOf(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex');
}

/** All until a clean end. */
async function everything(socket: Socket): Promise<Buffer> {
  const { data, how } = await outcome(socket);
  if (how !== 'end') throw new Error(how);
  return data;
}

t.test('bytes, half-close and the last byte before a close arrive whole in both directions', async (t) => {
  const answer = randomBytes(3_000_000);
  let heard = '';
  const { port } = await startBackend(t, (socket) => {
    void everything(socket).then((question) => {
      heard = hashOf(question);
      // Half-closed by the client: the answer follows, and the end right behind it.
      socket.end(answer);
    });
  });
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', port)])]);
  t.same([...m.tunnels.wanted], [otherHost], 'the tunnel is kept warm');
  for (let each = 0; each < 5; each += 1) {
    const question = randomBytes(2_000_000 + each);
    const socket = dial(t, m.bed.port);
    socket.end(question);
    t.equal(hashOf(await everything(socket)), hashOf(answer));
    t.equal(heard, hashOf(question));
  }
  await m.quiet();
  const [head] = m.tunnels.heads;
  t.match(head, { consumer: 'host', declared: false, service: 'db', instance: 'a', client: { address: '127.0.0.1' } });
  t.match(head?.traceId, /^[0-9a-f]{32}$/);
  t.equal(new Set(m.tunnels.heads.map(({ traceId }) => traceId)).size, 5);
  t.match(m.bed.plane.links(), [
    {
      connections: { active: 0, total: 5, failed: 0, retried: 0 },
      backends: [{ address: 'there via tunnel', via: 'tunnel', near: 'other', tunnel: { state: 'ready' }, total: 5 }],
    },
  ]);
  t.equal(await m.peer.metric('legate_link_incoming_connections_total'), 5);
});

t.test('the tunnel to a lost host stays wanted until its instances are forgotten', async (t) => {
  const { port } = await startBackend(t, (socket) => void socket.end());
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', port)])]);
  m.bed.set({ ...serviceOf([at(otherHost, 'a', port, { status: 'lost' })]), usable: [] });
  await waitFor('it to be left out', () => m.bed.plane.links()[0]?.backends.length === 0);
  t.same([...m.tunnels.wanted], [otherHost]);
  t.match(await outcome(dial(t, m.bed.port)), { how: /RESET|REFUSED/ }, 'and gets no connections');
  m.bed.set(serviceOf([]));
  await waitFor('it not to be wanted', () => m.tunnels.wanted.size === 0);
});

t.test('an application that answers and closes at once is heard to its end, 100 of 100', async (t) => {
  const answer = randomBytes(300_000);
  const { port } = await startBackend(t, (socket) => {
    socket.once('data', () => {
      socket.write(answer, () => socket.destroy());
    });
  });
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', port)])]);
  let whole = 0;
  for (let each = 0; each < 100; each += 1) {
    const socket = dial(t, m.bed.port);
    socket.write('GET');
    const { data, how } = await outcome(socket);
    socket.destroy();
    if (how === 'end' && data.equals(answer)) whole += 1;
  }
  t.equal(whole, 100);
  await m.quiet();
});

t.test(
  'whatever refuses before the first byte is not noticed, and the first bytes go to one instance only',
  async (t) => {
    const heard: string[] = [];
    const listening = (name: string) => (socket: Socket) => {
      socket.on('data', (chunk: Buffer) => {
        heard.push(`${name}:${hashOf(chunk)}`);
        socket.end(name);
      });
    };
    const good = await startBackend(t, listening('good'));
    const dead = await deadPort();
    const question = randomBytes(20_000);
    const answer = async (m: Awaited<ReturnType<typeof mesh>>): Promise<string> => {
      const socket = dial(t, m.bed.port);
      socket.write(question);
      const { data, how } = await outcome(socket);
      socket.destroy();
      return how === 'end' ? data.toString() : how;
    };
    // In each case the first choice refuses: it is nearer.
    const cases: [string, (m: Awaited<ReturnType<typeof mesh>>) => void, RegExp][] = [
      ['unreachable', () => undefined, /there\/a there via tunnel: .*ECONNREFUSED/],
      ['gone', ({ peer }) => peer.set(serviceOf([])), /has no such instance/],
      ['busy', ({ peer }) => void peer.plane.drain(0), /its host is leaving/],
      [
        'lost',
        ({ tunnels }) =>
          tunnels.join(otherHost, () => {
            setImmediate(() => tunnels.lose(otherHost));
            return { opened() {}, data() {}, ended() {}, drained() {}, closed() {} };
          }),
        /the tunnel was lost/,
      ],
    ];
    for (const [what, prepare, problem] of cases) {
      heard.length = 0;
      const service = serviceOf([at(otherHost, 'a', dead), at(thirdHost, 'b', good.port)]);
      const m = await mesh(t, [service], [otherHost, thirdHost]);
      // The first in order is taken first: both are equally far.
      prepare(m);
      t.equal(await answer(m), 'good', what);
      t.same(heard, [`good:${hashOf(question)}`], `${what}: once and whole`);
      const [link] = m.bed.plane.links();
      t.match(link, { connections: { failed: 0, retried: 1 }, bytes: { received: question.length, sent: 4 } }, what);
      t.match(link?.lastError?.message, problem);
      await m.quiet();
    }
  },
);

t.test('more than is kept waits in the kernel, and goes directly where the other one can be dialled', async (t) => {
  let heard = '';
  const good = await startBackend(t, (socket) => {
    void everything(socket).then((question) => {
      heard = hashOf(question);
      socket.end('good');
    });
  });
  const hole = await blackHole(t);
  const question = randomBytes(1_000_000);
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', hole), at(ownHost, 'b', good.port)], { prefer: 'any' })]);
  const socket = dial(t, m.bed.port);
  socket.end(question);
  await waitFor('it is being tried', () => m.tunnels.heads.length === 1);
  t.equal((await outcome(socket)).data.toString(), 'good');
  t.equal(heard, hashOf(question));
  const [near] = m.tunnels.ends;
  t.ok((near?.mostHeld ?? 0) <= 2 * 65_536, `${near?.mostHeld} bytes were kept`);
  await m.quiet();
});

t.test('what policy or grants forbid is refused by the receiving side, and not tried elsewhere', async (t) => {
  const { port } = await startBackend(t, naming('a'));
  const service = serviceOf([at(otherHost, 'a', port), at(thirdHost, 'b', port)]);
  const m = await mesh(t, [service], [otherHost, thirdHost]);
  t.equal(await ask(t, m.bed.port), 'a');
  await m.quiet();
  m.policy.set(policyOf({ intents: intents('deny host db') }));
  t.equal(await ask(t, m.bed.port), 'ECONNRESET');
  t.equal(m.tunnels.heads.length, 2, 'tried once');
  const [link] = m.bed.plane.links();
  t.match(link?.denied, {
    total: 1,
    last: { by: 'host', host: /^(there|third)$/, message: /does not let it in: .*db/ },
  });
  t.equal(await m.bed.metric('legate_link_connections_denied_by_hosts_total'), 1);

  m.policy.set(undefined);
  const quiet = await startBackend(t, () => undefined);
  m.set(serviceOf([at(otherHost, 'a', quiet.port)]));
  const socket = dial(t, m.bed.port);
  const ended = outcome(socket);
  await waitFor('it runs', () => quiet.sockets.size === 1);
  m.policy.set(policyOf({ intents: intents('deny * *') }));
  t.equal((await ended).how, 'ECONNRESET', 'what a new policy forbids is cut by the receiving side');
  t.match(m.bed.plane.links()[0], {
    denied: { total: 2, last: { by: 'host', host: 'there', message: /^there does not let it in: .*deny \* \*/ } },
    connections: { failed: 1 },
  });
  await m.quiet();
});

t.test('a peer gets only what is this host’s own, and usable', async (t) => {
  const { port, sockets } = await startBackend(t, naming('a'));
  const service = serviceOf([
    at(otherHost, 'own', port),
    at(otherHost, 'drained', port, { draining: true }),
    at(thirdHost, 'foreign', port, { reach: 'mesh' }),
  ]);
  const m = await mesh(t, [service, serviceOf([at(otherHost, 'dgram', port)], { name: 'udp', protocol: 'udp' })]);
  const cases: [string, string, string][] = [
    ['db', 'own', 'opened'],
    ['db', 'drained', 'gone'],
    ['db', 'foreign', 'gone'],
    ['db', 'nobody', 'gone'],
    ['nothing', 'own', 'gone'],
    ['udp', 'dgram', 'gone'],
  ];
  for (const [name, instance, expected] of cases) {
    const said = await new Promise<string>((resolve) => {
      const head = {
        consumer: 'web',
        declared: false,
        service: name,
        instance,
        client: { address: '10.0.0.1', port: 1 },
      };
      const opened = m.tunnels.open(
        otherHost,
        { ...head, traceId: '0'.repeat(32) },
        {
          opened: () => resolve('opened'),
          data: () => undefined,
          ended: () => undefined,
          drained: () => undefined,
          closed: (reason) => resolve(String(reason)),
        },
      );
      if (typeof opened !== 'string') t.teardown(() => opened.reset('reset'));
    });
    t.equal(said, expected, `${name} ${instance}`);
  }
  t.ok(sockets.size <= 1);
});

t.test('resets go both ways, and an idle connection is left alone', async (t) => {
  let toReset: Socket | undefined;
  const seen: string[] = [];
  const backend = await startBackend(t, (socket) => {
    toReset = socket;
    socket.on('data', () => socket.write('hello'));
    socket.on('error', (error) => seen.push('code' in error ? String(error.code) : ''));
    socket.on('end', () => seen.push('end'));
  });
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', backend.port)])]);
  const open = async (): Promise<Socket> => {
    const socket = dial(t, m.bed.port);
    socket.on('error', () => undefined);
    socket.write('x');
    t.equal(String((await once(socket, 'data'))[0]), 'hello');
    return socket;
  };
  const first = await open();
  first.resetAndDestroy();
  await waitFor('the application sees the reset', () => seen.length > 0);
  t.same(seen, ['ECONNRESET']);
  const second = await open();
  const ended = outcome(second);
  toReset?.resetAndDestroy();
  t.equal((await ended).how, 'ECONNRESET');
  const third = await open();
  const cut = outcome(third);
  m.tunnels.lose(otherHost);
  t.equal((await cut).how, 'ECONNRESET', 'with its tunnel a stream is lost');
  await m.quiet();
});

t.test('a reader that stalls holds what its credit allows, and nobody else', async (t) => {
  const backend = await startBackend(t, (socket) => {
    socket.once('data', (asked: Buffer) => {
      if (String(asked) === 'all') socket.end(Buffer.alloc(40_000_000, 1));
      else socket.end('small');
    });
  });
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', backend.port)])]);
  const stalled = dial(t, m.bed.port);
  stalled.pause();
  stalled.write('all');
  await waitFor('it is full', () => (m.tunnels.ends[1]?.mostHeld ?? 0) > 262_144);
  for (let each = 0; each < 20; each += 1) {
    const socket = dial(t, m.bed.port);
    socket.write('one');
    t.equal(String((await outcome(socket)).data), 'small');
    socket.destroy();
  }
  t.ok((m.tunnels.ends[1]?.mostHeld ?? 0) <= 3 * 262_144, `${m.tunnels.ends[1]?.mostHeld} bytes`);
  const all = everything(stalled);
  stalled.resume();
  t.equal((await all).length, 40_000_000);
  stalled.destroy();
  await m.quiet();
});

t.test('connections wait a moment for the only tunnel, and no longer', async (t) => {
  const { port } = await startBackend(t, naming('a'));
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', port)])]);
  m.tunnels.set(otherHost, 'connecting', 'connection refused at 10.0.0.2:7711');
  const early = ask(t, m.bed.port);
  await waitFor('it is held', () => m.bed.plane.links()[0]?.connections.held === 1);
  m.tunnels.set(otherHost, 'ready');
  t.equal(await early, 'a');
  m.tunnels.set(otherHost, 'connecting', 'connection refused at 10.0.0.2:7711');
  t.equal(await ask(t, m.bed.port), 'ECONNRESET');
  const [link] = m.bed.plane.links();
  t.match(link, {
    connections: { failed: 1, held: 0 },
    lastError: { message: 'there/a: no tunnel to there: connection refused at 10.0.0.2:7711' },
    backends: [{ tunnel: { state: 'connecting', problem: 'connection refused at 10.0.0.2:7711' } }],
  });
  t.equal(m.tunnels.heads.length, 1, 'nothing was tried without a tunnel');
});

t.test(
  'the nearest that answers: this host, its zone, then others; and anywhere where the service says so',
  async (t) => {
    const [one, two, three] = await Promise.all(['1', '2', '3'].map((name) => startBackend(t, naming(name))));
    const instances = [
      at(thirdHost, 'c', three?.port ?? 0),
      at(otherHost, 'b', two?.port ?? 0),
      at(ownHost, 'a', one?.port ?? 0),
    ];
    const tunnels = new FakeTunnels(ownHost);
    const bed = await startBed(t, { services: [serviceOf(instances)], tunnels, zone: 'east' });
    for (const hostId of [otherHost, thirdHost]) {
      const peer = await startBed(t, { services: [serviceOf(instances)], self: { hostId }, links: [] });
      tunnels.join(hostId, peer.plane.acceptStream);
    }
    const zones = (of: Readonly<Record<string, string>>): void => {
      const before = bed.snapshots.value;
      const hosts = Object.entries(of).map(([id, zone]): [string, Host] => [
        id,
        { id, name: hostNames[id] ?? id, address: '10.0.0.1', version: '1', zone, alive: true, revision: '' },
      ]);
      bed.snapshots.set({ ...before, version: before.version + 1, hosts: before.hosts.with(hosts, []) });
    };
    const answers = async (): Promise<string> => {
      let text = '';
      for (let each = 0; each < 4; each += 1) text += await ask(t, bed.port);
      return [...text].sort().join('');
    };
    zones({ [otherHost]: 'west', [thirdHost]: 'east' });
    t.equal(await answers(), '1111');
    t.match(bed.plane.links(), [{ backends: [{ near: 'zone' }, { near: 'other' }, { near: 'host' }] }]);
    bed.set(serviceOf(instances.filter(({ hostId }) => hostId !== ownHost)));
    t.equal(await answers(), '3333', 'the same zone');
    zones({ [otherHost]: 'east', [thirdHost]: 'west' });
    t.equal(await answers(), '2222', 'zones may change');
    tunnels.set(otherHost, 'connecting');
    t.equal(await answers(), '3333', 'a host without tunnel is left out at once');
    tunnels.set(otherHost, 'suspect');
    t.equal(await answers(), '3333', 'a suspect one is tried last');
    tunnels.set(otherHost, 'ready');
    bed.set(
      serviceOf(
        instances.filter(({ hostId }) => hostId !== ownHost),
        { prefer: 'any' },
      ),
    );
    t.equal(await answers(), '2233');
    bed.set(
      serviceOf([at(ownHost, 'a', await deadPort()), ...instances.slice(0, 2)].sort((a, b) => (a.id < b.id ? -1 : 1))),
    );
    t.equal(await answers(), '2222', 'a failure falls to the next tier');
  },
);

t.test('a single instance is reached at the address that is handed out for it', async (t) => {
  const [one, two] = await Promise.all(['1', '2'].map((name) => startBackend(t, naming(name))));
  const instances = [at(otherHost, 'a', one?.port ?? 0), at(otherHost, 'b', two?.port ?? 0)];
  const entry = (index: number) => ({
    service: 'db',
    address: `127.0.0.${index}`,
    port: instances[index - 2]?.port ?? 0,
  });
  const table = new Latest(PersistentMap.from([['there/a', entry(2)] as const, ['there/b', entry(3)] as const]));
  const tunnels = new FakeTunnels(ownHost);
  const bed = await startBed(t, { services: [serviceOf(instances)], tunnels, instanceAddresses: table });
  const peer = await startBed(t, { services: [serviceOf(instances)], self: { hostId: otherHost }, links: [] });
  tunnels.join(otherHost, peer.plane.acceptStream);
  const mapped = await waitFor('both', () => (bed.portMap.last.length === 2 ? bed.portMap.last : undefined));
  for (const { address, port, privatePort } of mapped) {
    const index = Number(address.at(-1)) - 1;
    t.equal(port, instances[index - 1]?.port);
    for (let each = 0; each < 3; each += 1) t.equal(await ask(t, privatePort, address), String(index), address);
  }
  t.equal(bed.plane.links().length, 1, 'they are no links of their own');
  bed.set(serviceOf(instances.slice(1)));
  await waitFor('one is gone', () => bed.portMap.last.length === 1);
  table.set(PersistentMap.empty());
  await waitFor('none', () => bed.portMap.last.length === 0);
});

t.test('with park connections wait for an instance, and the mapping stays', async (t) => {
  const park = { parkMs: 20_000, vip: '127.0.0.1' };
  const { port } = await startBackend(t, naming('a'));
  const instance = at(ownHost, 'a', port);
  const bed = await startBed(t, { services: [serviceOf([], park)] });
  await waitFor('the mapping', () => bed.portMap.last.length === 1);
  t.equal(bed.plane.links()[0]?.state, 'holding');
  const first = ask(t, bed.port);
  const second = ask(t, bed.port);
  await waitFor('both wait', () => bed.plane.links()[0]?.connections.held === 2);
  t.equal(await bed.metric('legate_link_held_connections'), 2);
  bed.set(serviceOf([instance], park));
  t.same(await Promise.all([first, second]), ['a', 'a']);
  // Where the instance seems to be there, it is tried again and again.
  const dead = await deadPort();
  bed.set(serviceOf([at(ownHost, 'a', dead)], park));
  const third = ask(t, bed.port);
  await waitFor('it waits', () => bed.plane.links()[0]?.connections.held === 1);
  await startBackend(t, naming('back'), dead);
  t.equal(await third, 'back');
  bed.set(serviceOf([], { vip: '127.0.0.1', parkMs: 300 }));
  t.equal(await ask(t, bed.port), 'ECONNRESET', 'and no longer than that');
  bed.set(serviceOf([], { vip: '127.0.0.1' }));
  await waitFor('no mapping', () => bed.portMap.last.length === 0);
  const listen = bed.plane.links().find(({ kind }) => kind === 'listen');
  t.match(listen, { state: 'refusing', connections: { failed: 1 } });
});

t.test('instances that drain keep what runs, and are counted with what others brought', async (t) => {
  const backend = await startBackend(t, (socket) => void socket.pipe(socket));
  const m = await mesh(t, [serviceOf([at(otherHost, 'a', backend.port)])]);
  const socket = dial(t, m.bed.port);
  socket.write('1');
  await once(socket, 'data');
  t.equal(m.peer.plane.activeConnections({ instance: 'there/a' }), 1);
  t.equal(m.peer.plane.activeConnections({ service: 'db' }), 1);
  t.equal(m.bed.plane.activeConnections({ instance: 'there/a' }), 1);
  m.set(serviceOf([at(otherHost, 'a', backend.port, { draining: true })]));
  socket.write('2');
  t.equal(String((await once(socket, 'data'))[0]), '2');
  const drained = m.peer.plane.drain(10_000);
  socket.write('3');
  t.equal(String((await once(socket, 'data'))[0]), '3', 'also while its host leaves');
  socket.destroy();
  t.equal(await drained, 0, 'which waits for it');
  await m.quiet();
});
