import { once } from 'node:events';
import { type AddressInfo, connect as connectPlainly, createServer } from 'node:net';
import { connect } from 'node:tls';
import t, { type Test } from 'tap';
import { ManualClock, systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { type Log, silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import { applicationProtocols } from '../../src/pki/desk.ts';
import { makeTestAuthority } from '../../test/support/certificates.ts';
import { waitFor } from '../../test/support/wait.ts';
import { maxHandshakesPerAddress, TunnelDoor } from './door.ts';
import { GatherBuffers } from './frame-writer.ts';
import { maxTold, quietMs, Strangers, tellEveryMs } from './strangers.ts';
import { TunnelMetrics } from './tunnel-metrics.ts';

const own = '0123456789abcdef';
const other = 'fedcba9876543210';
const nameOf = (hostId: string): string => (hostId === other ? 'web-2' : hostId);

/** A door of the host `own` behind a listener of 127.0.0.1. */
async function open(t: Test, credentials: Credentials) {
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, systemClock, metrics);
  const door = new TunnelDoor({
    clock: systemClock,
    log: silentLog,
    conditions,
    nameOf,
    metrics: new TunnelMetrics(metrics, {
      connections: () => [],
      streams: () => 0,
      suspectHosts: () => 0,
      heldBytes: () => 0,
    }),
    buffers: new GatherBuffers(),
    trust: () => ({ credentials, policy: undefined, nowMs: Date.now() }),
    desk: undefined,
    onTunnel: () => false,
  });
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (raw) => door.take(raw));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    door.close();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  const count = async (reason: string): Promise<number> =>
    Number(new RegExp(`turned_away_total{reason="${reason}"} (\\d+)`).exec(await metrics.exposition())?.[1] ?? 0);
  return { port, door, conditions, count };
}

t.test('clients that leave during the handshake hold no place', async (t) => {
  const { port, count, conditions } = await open(t, await (await makeTestAuthority()).issue(own));
  for (let count = 0; count < 2 * maxHandshakesPerAddress; count += 1) {
    // Such as what looks whether a port answers, and shows no certificate.
    const socket = connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
    socket.on('error', () => undefined);
    await once(socket, 'secureConnect');
    socket.destroy();
  }
  await waitFor('all to be told of', async () => (await count('handshake')) + (await count('protocol')) >= 128);
  t.equal(await count('limit'), 0);
  t.strictSame(conditions.list(), []);
});

t.test('who passes for a host of the mesh, and who comes in masses, is told', async (t) => {
  const { port, door, count, conditions } = await open(t, await (await makeTestAuthority()).issue(own));
  const shown = (): readonly string[] => conditions.list().map(({ message }) => message);
  const show = async (shows?: Credentials): Promise<void> => {
    const certificate = shows && { cert: shows.chain, key: shows.key };
    const ALPNProtocols = [applicationProtocols.tunnel];
    const socket = connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols, ...certificate });
    socket.on('error', () => undefined);
    socket.resume();
    await once(socket, 'close');
  };
  const foreign = await makeTestAuthority();
  await show();
  await show(await foreign.issue(other, { mesh: 'elsewhere' }));
  t.equal(await count('certificate'), 2);
  t.strictSame(shown(), [], 'no claim to be one of ours');
  await show(await foreign.issue(other));
  t.match(shown(), [
    /^a caller from 127.0.0.1 calls itself host web-2 \(fedcba9876543210\) and was refused: .+another authority/,
  ]);

  const sockets = Array.from({ length: maxHandshakesPerAddress + 1 }, () =>
    connectPlainly({ port, host: '127.0.0.1' }),
  );
  for (const socket of sockets) socket.on('error', () => undefined);
  await waitFor('the flood to be told of', () => shown().length === 2);
  t.match(shown()[1], /connections from 127.0.0.1 to the tunnel port are turned away: .+64 of this address/);
  door.close();
  t.strictSame(shown(), []);
  for (const socket of sockets) socket.destroy();
});

t.test('of each address it is told once a minute, of few addresses, and for some minutes', async (t) => {
  const clock = new ManualClock();
  let told = 0;
  const log: Log = {
    ...silentLog,
    warn: () => {
      told += 1;
    },
  };
  const conditions = new Conditions(log, clock, new Metrics());
  const strangers = new Strangers({ clock, log, conditions, nameOf });
  for (let n = 0; n < 1000; n += 1) strangers.claimed('10.0.0.9', other, `reason ${n}`);
  t.equal(told, 1);
  t.match(conditions.list(), [{ message: /10\.0\.0\.9 calls itself host web-2 .+ refused: reason 0$/ }]);
  await clock.advance(tellEveryMs);
  for (let n = 0; n < 1000; n += 1) strangers.claimed('10.0.0.9', other, 'reason 0');
  t.equal(told, 2, 'it goes on');
  for (let n = 0; n < 2 * maxTold; n += 1) strangers.flooded(`10.0.1.${n}`, 'too many');
  t.equal(conditions.list().length, maxTold);
  t.equal(told, 1 + maxTold);
  await clock.advance(quietMs - 1);
  t.equal(conditions.list().length, maxTold);
  await clock.advance(1);
  t.strictSame(conditions.list(), []);
  t.equal(clock.pending, 0);
});
