import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Endpoint } from '../../src/model/address.ts';
import { freePort } from '../../test/support/faults.ts';
import { unless } from '../../test/support/needs.ts';
import { waitFor } from '../../test/support/wait.ts';
import {
  type Bed,
  dial,
  instanceOf,
  otherHost,
  outcome,
  ownHost,
  serviceOf,
  startBackend,
  startBed,
} from '../link-plane.fixture.ts';
import { FakeTunnels } from '../tunnel/fake-tunnels.fixture.ts';
import { proxyHeader } from './proxy-header.ts';

/** What the specification says, read from the bytes by hand. */
function parse(bytes: Buffer): { readonly source?: Endpoint; readonly destination?: Endpoint; readonly rest: Buffer } {
  if (bytes.subarray(0, 12).toString('latin1') !== '\r\n\r\n\0\r\nQUIT\n') throw new Error('no signature');
  const [command = 0, family = 0] = bytes.subarray(12, 14);
  const length = bytes.readUInt16BE(14);
  const rest = bytes.subarray(16 + length);
  if (command >> 4 !== 2) throw new Error('not version 2');
  if ((command & 15) === 0) return { rest };
  const size = family === 0x11 ? 4 : family === 0x21 ? 16 : 0;
  if (length !== 2 * size + 4) throw new Error(`${length} bytes of family ${family}`);
  const address = (at: number): string => {
    const part = bytes.subarray(at, at + size);
    if (size === 4) return [...part].join('.');
    return Array.from({ length: 8 }, (_, group) => part.readUInt16BE(2 * group).toString(16)).join(':');
  };
  const end = 16 + 2 * size;
  return {
    source: { address: address(16), port: bytes.readUInt16BE(end) },
    destination: { address: address(16 + size), port: bytes.readUInt16BE(end + 2) },
    rest,
  };
}

t.test('the header, byte by byte', async (t) => {
  const exact = '0d0a0d0a000d0a515549540a2111000c0a4d0001ac110002a02c1538';
  t.equal(
    proxyHeader({ address: '10.77.0.1', port: 41_004 }, { address: '172.17.0.2', port: 5432 }).toString('hex'),
    exact,
  );
  const cases: [Endpoint, Endpoint, Endpoint, Endpoint][] = [
    [
      { address: '255.254.253.252', port: 65_535 },
      { address: '1.2.3.4', port: 1 },
      { address: '255.254.253.252', port: 65_535 },
      { address: '1.2.3.4', port: 1 },
    ],
    [
      { address: '2001:db8::1:0:f', port: 7 },
      { address: '::1', port: 8 },
      { address: '2001:db8:0:0:0:1:0:f', port: 7 },
      { address: '0:0:0:0:0:0:0:1', port: 8 },
    ],
    [
      { address: 'fe80::2%eth0', port: 7 },
      { address: '10.0.0.1', port: 8 },
      { address: 'fe80:0:0:0:0:0:0:2', port: 7 },
      { address: '0:0:0:0:0:0:0:0', port: 8 },
    ],
    [
      { address: '::', port: 0 },
      { address: '1:2:3:4:5:6:7:8', port: 8 },
      { address: '0:0:0:0:0:0:0:0', port: 0 },
      { address: '1:2:3:4:5:6:7:8', port: 8 },
    ],
  ];
  for (const [client, instance, source, destination] of cases) {
    t.same(parse(proxyHeader(client, instance)), { source, destination, rest: Buffer.alloc(0) }, client.address);
  }
  for (const client of [undefined, { address: 'nonsense', port: 1 }]) {
    const header = proxyHeader(client, { address: '10.0.0.1', port: 1 });
    t.equal(header.length, 16);
    t.same(parse(header), { rest: Buffer.alloc(0) }, 'nobody');
  }
});

/** The port of a link, directly or through a tunnel, to an instance at `port` that is told who calls. */
async function linkTo(t: Test, port: number, way: 'direct' | 'tunnel'): Promise<number> {
  const hostId = way === 'direct' ? ownHost : otherHost;
  const services = [serviceOf([instanceOf({ name: 'a', port, hostId })], { proxyProtocol: 'v2' })];
  const tunnels = new FakeTunnels(ownHost);
  const peer = await startBed(t, { services, self: { hostId: otherHost }, links: [] });
  tunnels.join(otherHost, peer.plane.acceptStream);
  const bed: Bed = await startBed(t, { services, tunnels });
  return bed.port;
}

for (const way of ['direct', 'tunnel'] as const) {
  t.test(`an instance hears who calls before the first byte: ${way}`, async (t) => {
    const heard: Buffer[] = [];
    const backend = await startBackend(t, (socket: Socket) => {
      const chunks: Buffer[] = [];
      socket.on('data', (chunk: Buffer) => chunks.push(chunk));
      socket.on('end', () => {
        heard.push(Buffer.concat(chunks));
        socket.end('done');
      });
    });
    const socket = dial(t, await linkTo(t, backend.port, way));
    await once(socket, 'connect');
    const source = { address: socket.localAddress, port: socket.localPort };
    socket.end('question');
    t.equal((await outcome(socket)).data.toString(), 'done');
    const [bytes = Buffer.alloc(0)] = heard;
    t.match(parse(bytes), { source, destination: { address: '127.0.0.1', port: backend.port } });
    t.equal(parse(bytes).rest.toString(), 'question');
  });
}

t.test('HAProxy takes it', { skip: unless('command:haproxy') }, async (t) => {
  const origin = createServer((request, response) => response.end(request.headers['x-forwarded-for']));
  await new Promise<void>((resolve) => origin.listen(0, '127.0.0.1', resolve));
  t.teardown(() => origin.close());
  const directory = await mkdtemp(join(tmpdir(), 'legate-proxy-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const port = await freePort();
  const file = join(directory, 'haproxy.cfg');
  const lines = [
    'defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n option forwardfor',
    `frontend in\n bind 127.0.0.1:${port} accept-proxy\n default_backend out`,
    `backend out\n server one 127.0.0.1:${(origin.address() as AddressInfo).port}\n`,
  ];
  await writeFile(file, lines.join('\n'));
  const child = spawn('haproxy', ['-db', '-f', file], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await waitFor('haproxy', async () => {
    const socket = dial(t, port);
    await once(socket, 'connect');
    socket.destroy();
    return true;
  });
  for (const way of ['direct', 'tunnel'] as const) {
    const link = await linkTo(t, port, way);
    const response = await fetch(`http://127.0.0.1:${link}/`);
    t.equal(await response.text(), '127.0.0.1', way);
  }
});
