import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, createServer as listen, type Server, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { dial, instanceOf, outcome, serviceOf, startBed } from '../link-plane.fixture.ts';
import { SharedReads } from './shared-reads.ts';

async function portOf(t: Test, server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return (server.address() as AddressInfo).port;
}

t.test('all accepted sockets read into one buffer, and are otherwise sockets as any other', async (t) => {
  const reads = new SharedReads();
  const accepted: Socket[] = [];
  const chunks: Buffer[] = [];
  const server = listen({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    accepted.push(socket);
    // This runtime has the places that the buffer is put into; another one would do without, more slowly.
    t.ok(reads.attach(socket, (chunk) => chunks.push(chunk)));
    socket.on('end', () => socket.end('bye'));
    socket.resume();
  });
  const port = await portOf(t, server);
  for (const text of ['first', 'second']) {
    const socket = connect(port, '127.0.0.1');
    t.teardown(() => socket.destroy());
    socket.end(text);
    const [answer] = (await once(socket, 'data')) as [Buffer];
    t.equal(answer.toString(), 'bye', 'an end is told');
  }
  const [first, second] = chunks;
  t.equal(first?.buffer, second?.buffer);
  t.equal(second?.toString(), 'second');
  t.equal(first?.toString(), 'secon', 'what was read before is overwritten');
});

t.test('a paused socket is not read, and loses nothing', async (t) => {
  const reads = new SharedReads();
  let text = '';
  const server = listen({ pauseOnConnect: true }, (socket) => {
    reads.attach(socket, (chunk) => {
      text += chunk.toString('latin1');
      socket.pause();
      setImmediate(() => socket.resume());
    });
    socket.resume();
  });
  const socket = connect(await portOf(t, server), '127.0.0.1');
  const sent = 'x'.repeat(3 * SharedReads.bytes);
  socket.end(sent);
  await once(socket.resume(), 'close');
  t.equal(text.length, sent.length);
});

t.test('clients whose requests come in pieces do not get in the way of each other', async (t) => {
  const bodies = new Map<string | undefined, string>();
  const read = async (request: IncomingMessage): Promise<string> => {
    let body = '';
    for await (const chunk of request) body += String(chunk);
    return body;
  };
  const backend = createServer((request, response) => {
    void read(request).then((body) => {
      bodies.set(request.url, body);
      response.end(request.url);
    });
  });
  const port = await portOf(t, backend);
  t.teardown(() => backend.closeAllConnections());
  const services = [serviceOf([instanceOf({ name: 'a', port, protocol: 'http' })], { protocol: 'http' })];
  const bed = await startBed(t, { services });
  const size = 1000;
  const texts = ['/a', '/b', '/c'].map((path, index) => {
    const letter = String.fromCharCode(0x61 + index);
    const head = `POST ${path} HTTP/1.1\r\nHost: db\r\nX-Field: ${letter.repeat(200)}\r\nContent-Length: ${size}\r\n\r\n`;
    return `${head}${letter.repeat(size)}GET ${path}/next HTTP/1.1\r\nHost: db\r\nConnection: close\r\n\r\n`;
  });
  const sockets = texts.map(() => dial(t, bed.port));
  const answers = sockets.map((socket) => outcome(socket));
  await Promise.all(sockets.map((socket) => once(socket, 'connect')));
  // In turns, so that what one has sent is overwritten by what the others send before it goes on.
  const step = 97;
  const longest = Math.max(...texts.map((text) => text.length));
  for (let at = 0; at < longest; at += step) {
    for (const [index, socket] of sockets.entries()) {
      const piece = texts[index]?.slice(at, at + step) ?? '';
      if (piece !== '') await new Promise((resolve) => socket.write(piece, resolve));
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  for (const [index, path] of ['/a', '/b', '/c'].entries()) {
    const { data } = (await answers[index]) ?? { data: '' };
    t.match(data.toString('latin1'), new RegExp(`\\r\\n\\r\\n${path}HTTP/1\\.1 200[^]*\\r\\n\\r\\n${path}/next$`));
    t.equal(bodies.get(path), String.fromCharCode(0x61 + index).repeat(size));
    t.equal(bodies.get(`${path}/next`), '');
  }
});
