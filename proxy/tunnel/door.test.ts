import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { connect } from 'node:tls';
import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { createLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { makeTestAuthority } from '../../test/support/certificates.ts';
import { waitFor } from '../../test/support/wait.ts';
import { maxHandshakesPerAddress, TunnelDoor } from './door.ts';
import { GatherBuffers } from './frame-writer.ts';
import { TunnelMetrics } from './tunnel-metrics.ts';

t.test('clients that leave during the handshake hold no place', async (t) => {
  const credentials = await (await makeTestAuthority()).issue('0123456789abcdef');
  const metrics = new Metrics();
  const door = new TunnelDoor({
    clock: systemClock,
    log: createLog('error', { write: () => undefined }),
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
  for (let count = 0; count < 2 * maxHandshakesPerAddress; count += 1) {
    // Such as what looks whether a port answers, and shows no certificate.
    const socket = connect({ port, host: '127.0.0.1', rejectUnauthorized: false });
    socket.on('error', () => undefined);
    await once(socket, 'secureConnect');
    socket.destroy();
  }
  const count = async (reason: string): Promise<number> =>
    Number(new RegExp(`turned_away_total{reason="${reason}"} (\\d+)`).exec(await metrics.exposition())?.[1] ?? 0);
  await waitFor('all to be told of', async () => (await count('handshake')) + (await count('protocol')) >= 128);
  t.equal(await count('limit'), 0);
});
