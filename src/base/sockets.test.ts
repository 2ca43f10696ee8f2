import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import t from 'tap';
import { LegateError } from './errors.ts';
import { bindUdp, explainListenError, holderOf, listenTcp } from './sockets.ts';

const self = { pid: process.pid };

t.test('who holds a tcp port', async (t) => {
  for (const [listened, asked] of [
    ['127.0.0.1', '127.0.0.1'],
    ['0.0.0.0', '127.0.0.1'],
    ['127.0.0.1', '0.0.0.0'],
    ['::1', '::1'],
    ['::1', '0:0:0:0:0:0:0:1'],
  ] as const) {
    const server = createServer();
    const port = await listenTcp(server, { address: listened, port: 0 });
    t.match(await holderOf({ address: asked, port }, 'tcp'), self, `${asked} against ${listened}`);
    t.equal(await holderOf({ address: asked, port }, 'udp'), undefined, 'not over udp');
    if (listened === '127.0.0.1') t.equal(await holderOf({ address: '127.0.0.2', port }, 'tcp'), undefined);
    await new Promise((resolve) => server.close(resolve));
    t.equal(await holderOf({ address: asked, port }, 'tcp'), undefined, 'nobody once it is closed');
  }
});

t.test('a taken port names its holder', async (t) => {
  const first = createServer();
  const port = await listenTcp(first, { address: '127.0.0.1', port: 0 });
  t.teardown(() => first.close());
  await t.rejects(listenTcp(createServer(), { address: '127.0.0.1', port }), {
    code: 'E_IN_USE',
    message: new RegExp(`^127\\.0\\.0\\.1:${port}/tcp is held by \\S+ \\(pid ${process.pid}\\)$`),
    hint: /^stop \S+ or choose another address or port$/,
  });
  const socket = createSocket('udp4');
  const udpPort = await bindUdp(socket, { address: '127.0.0.1', port: 0 });
  t.teardown(() => socket.close());
  const second = createSocket('udp4');
  t.teardown(() => second.close());
  await t.rejects(bindUdp(second, { address: '127.0.0.1', port: udpPort }), {
    code: 'E_IN_USE',
    message: new RegExp(`:${udpPort}/udp is held by \\S+ \\(pid ${process.pid}\\)`),
  });
});

t.test('every failure to listen is explained', async (t) => {
  const failure = (code: string) => Object.assign(new Error(`listen ${code}`), { code });
  const endpoint = { address: '127.0.0.1', port: 1 };
  for (const [code, expected] of [
    ['EADDRINUSE', { code: 'E_IN_USE', message: '127.0.0.1:1/udp is held by another process', hint: /ss -lnup/ }],
    ['EACCES', { code: 'E_PERMISSION', message: /^no right to bind port 1 /, hint: /CAP_NET_BIND_SERVICE/ }],
    ['EADDRNOTAVAIL', { code: 'E_NOT_FOUND', message: /^127\.0\.0\.1 is not an address of this host/ }],
    ['EMFILE', { code: 'E_PERMISSION', message: 'cannot listen on 127.0.0.1:1/udp: listen EMFILE' }],
  ] as const) {
    const explained = await explainListenError(failure(code), endpoint, 'udp');
    t.ok(explained instanceof LegateError);
    t.match(explained, expected, code);
  }
  await t.rejects(listenTcp(createServer(), { address: '203.0.113.9', port: 0 }), { code: 'E_NOT_FOUND' });
});
