import { readdirSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Bed, instanceOf, serviceOf } from '../../proxy/link-plane.fixture.ts';
import { waitFor } from './wait.ts';

/** Very many requests through one link, of which many are aborted by either side; what of them is left afterwards. */

/** What a process holds while nothing goes on. */
export interface Held {
  readonly descriptors: number;
  /** Sockets of the event loop, listening ones included. */
  readonly sockets: number;
  /** After collection. */
  readonly heapMegabytes: number;
}

export interface SoakReport {
  readonly requests: number;
  readonly answers: number;
  readonly connections: number;
  /** Answers that were complete and not what was to come: the worst that could be. */
  readonly wrong: number;
  readonly before: Held;
  readonly after: Held;
}

const instances = 4;
const clients = 48;
/** How the instances treat a request, by its path; the more often it stands here the likelier. */
const treatments = [
  ...Array.from({ length: 24 }, () => ['/sized', '/pieces']).flat(),
  ...Array.from({ length: 4 }, () => ['/large', '/hints']).flat(),
  ...['/last', '/end', '/dies', '/resets', '/half-head', '/half-body', '/half-chunk', '/holds', '/late', '/garbage'],
];
const ends = '!';
const large = 'x'.repeat(20_000);
const sized = (body: string, more = ''): string =>
  `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`;

/** The same numbers each time. */
function dice(seed: number): (sides: number) => number {
  let state = seed;
  return (sides) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * sides);
  };
}

function treat(socket: Socket, path: string): void {
  switch (path) {
    case '/sized':
      socket.write(sized(`body${ends}`));
      break;
    case '/pieces':
      socket.write(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n1\r\n${ends}\r\n0\r\n\r\n`);
      break;
    case '/large':
      socket.write(sized(`${large}${ends}`));
      break;
    case '/hints':
      socket.write(`HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${sized(`body${ends}`)}`);
      break;
    case '/last':
      socket.end(sized(`body${ends}`, 'Connection: close\r\n'));
      break;
    case '/end':
      socket.end(`HTTP/1.1 200 OK\r\n\r\nbody${ends}`);
      break;
    case '/late':
      setTimeout(() => socket.write(sized(`body${ends}`)), 5);
      break;
    case '/dies':
      socket.end();
      break;
    case '/resets':
      socket.resetAndDestroy();
      break;
    case '/half-head':
      socket.end('HTTP/1.1 200 OK\r\nConte');
      break;
    case '/half-body':
      socket.write('HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbod', () => socket.resetAndDestroy());
      break;
    case '/half-chunk':
      socket.end('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbo');
      break;
    case '/garbage':
      socket.write('what is this?\r\n\r\n');
      break;
    case '/up':
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
      socket.removeAllListeners('data');
      socket.on('data', (chunk) => socket.write(chunk));
      break;
    // `/holds`: no answer, until the client has had enough of it.
  }
}

/** Reads requests whose bodies have no empty line inside, and answers as their paths say. */
function serve(socket: Socket): void {
  let text = '';
  socket.on('error', () => undefined);
  socket.on('end', () => socket.end());
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
    for (;;) {
      const head = text.indexOf('\r\n\r\n') + 4;
      if (head === 3) return;
      const first = text.slice(0, head).toLowerCase();
      const length = /content-length: (\d+)/.exec(first)?.[1] ?? '0';
      const end = first.includes('chunked') ? text.indexOf('0\r\n\r\n', head) + 5 : head + Number(length);
      if (end < head || text.length < end) return;
      text = text.slice(end);
      treat(socket, first.split(' ')[1] ?? '');
    }
  });
}

class Soak {
  requests = 0;
  answers = 0;
  connections = 0;
  wrong = 0;
  readonly #port: number;
  readonly #roll: (sides: number) => number;

  constructor(port: number, seed: number) {
    this.#port = port;
    this.#roll = dice(seed);
  }

  /** Runs until so many requests were made in all. */
  async until(requests: number): Promise<void> {
    const run = async (): Promise<void> => {
      while (this.requests < requests) await this.#connection(this.#roll(16) === 0 ? 'upgrade' : 'requests');
    };
    await Promise.all(Array.from({ length: clients }, run));
  }

  #request(path: string): string {
    const head = (method: string, more = ''): string => `${method} ${path} HTTP/1.1\r\nHost: db\r\n${more}\r\n`;
    switch (this.#roll(5)) {
      case 0:
        return `${head('POST', 'Content-Length: 5\r\n')}hello`;
      case 1:
        return `${head('PUT', 'Transfer-Encoding: chunked\r\n')}5;a=b\r\nhello\r\n0\r\n\r\n`;
      default:
        return head('GET');
    }
  }

  async #connection(kind: 'upgrade' | 'requests'): Promise<void> {
    this.connections += 1;
    const socket = connect({ port: this.#port, host: '127.0.0.1', localAddress: `127.0.1.${1 + this.#roll(16)}` });
    const heard = new Heard(socket);
    // The runtime never says that one is closed which was reset while it connected.
    await heard.connected;
    if (kind === 'upgrade') {
      this.requests += 1;
      socket.write('GET /up HTTP/1.1\r\nHost: db\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwords');
      if (this.#roll(4) > 0) await heard.next(/words/);
    } else {
      for (let left = 1 + this.#roll(40); left > 0 && !heard.isOver; left -= 1) {
        const next = await this.#exchange(socket, heard);
        if (next === 'reset') socket.resetAndDestroy();
        if (next !== 'goes on') break;
      }
    }
    if (this.#roll(3) === 0) socket.end();
    else if (this.#roll(2) === 0) socket.resetAndDestroy();
    else socket.destroy();
    await heard.closed;
  }

  /** One request, or some pipelined ones. Whoever only ends its side waits for the answer, so from what has none we part by a reset. */
  async #exchange(socket: Socket, heard: Heard): Promise<'goes on' | 'over' | 'reset'> {
    const count = this.#roll(10) === 0 ? 3 : 1;
    const paths = Array.from({ length: count }, () => treatments[this.#roll(treatments.length)] ?? '/sized');
    this.requests += count;
    const bytes = paths.map((path) => this.#request(path)).join('');
    if (this.#roll(40) === 0) {
      // Gone in the middle of it, or before the answer.
      socket.write(bytes.slice(0, this.#roll(bytes.length + 1)));
      if (this.#roll(2) === 0) await new Promise((resolve) => setImmediate(resolve));
      return paths.includes('/holds') ? 'reset' : 'over';
    }
    socket.write(bytes);
    if (paths.includes('/holds')) {
      await new Promise((resolve) => setTimeout(resolve, this.#roll(20)));
      return 'reset';
    }
    for (const path of paths) {
      const text = await heard.next(/!(?:\r\n0\r\n\r\n)?|\r\n\r\nlegate: [^\n]*\n/);
      if (text === undefined) return 'over';
      this.answers += 1;
      const isOurs = text.includes('\r\n\r\nlegate: ');
      if (!isOurs && (!text.includes(path === '/large' ? 'xxx' : 'body') || path.startsWith('/half'))) this.wrong += 1;
    }
    return 'goes on';
  }
}

/** What a client hears. */
class Heard {
  readonly closed: Promise<void>;
  readonly connected: Promise<void>;
  isOver = false;
  #text = '';
  #wake: (() => void) | undefined;

  constructor(socket: Socket) {
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      this.#text += chunk.toString('latin1');
      this.#wake?.();
    });
    this.connected = new Promise((resolve) => socket.once('connect', resolve).once('close', () => resolve()));
    this.closed = new Promise((resolve) => {
      socket.on('close', () => {
        this.isOver = true;
        this.#wake?.();
        resolve();
      });
    });
  }

  /** All up to the end of this, or undefined when the connection ended before. */
  async next(until: RegExp): Promise<string | undefined> {
    for (;;) {
      const found = until.exec(this.#text);
      if (found !== null) {
        const end = found.index + found[0].length;
        const text = this.#text.slice(0, end);
        this.#text = this.#text.slice(end);
        return text;
      }
      if (this.isOver) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}

/** Makes this many requests, after a tenth as many for warming up. Whatever is left behind that can be waited for fails. */
export async function soak(requests: number, say: (line: string) => void = () => undefined): Promise<SoakReport> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const open = new Set<Socket>();
  const servers = await Promise.all(Array.from({ length: instances }, () => startServer(open)));
  const members = servers.map(({ port }, at) => instanceOf({ name: `i${at}`, port, protocol: 'http' }));
  const bed = new Bed({ services: [serviceOf(members, { protocol: 'http' })] });
  await bed.plane.start();
  const timer = setInterval(() => say(`${load.requests} requests, ${load.answers} answers`), 15_000);
  const load = new Soak(bed.port, 7);
  /** Once all is over, and connections to instances that are kept have had their time. */
  const held = async (): Promise<Held> => {
    const quiet = async (): Promise<boolean> =>
      bed.plane.activeConnections() === 0 &&
      (bed.plane.links()[0]?.backends ?? []).every(({ active }) => active === 0) &&
      (await bed.metric('legate_http_idle_connections')) === 0 &&
      open.size === 0;
    await waitFor('nothing to be left', quiet, { timeoutMs: 30_000, everyMs: 100 });
    for (let turn = 0; turn < 4; turn += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      collect();
    }
    const resources = process.getActiveResourcesInfo().filter((name) => /TCP|Pipe/.test(name));
    return {
      descriptors: readdirSync('/proc/self/fd').length,
      sockets: resources.length,
      heapMegabytes: Math.round(process.memoryUsage().heapUsed / 100_000) / 10,
    };
  };
  try {
    await load.until(Math.ceil(requests / 10));
    const before = await held();
    const start = { requests: load.requests, answers: load.answers, connections: load.connections };
    await load.until(load.requests + requests);
    const after = await held();
    return {
      requests: load.requests - start.requests,
      answers: load.answers - start.answers,
      connections: load.connections - start.connections,
      wrong: load.wrong,
      before,
      after,
    };
  } finally {
    clearInterval(timer);
    for (const socket of open) socket.destroy();
    await bed.plane.close();
    for (const { server } of servers) server.close();
  }
}

async function startServer(open: Set<Socket>): Promise<{ server: ReturnType<typeof createServer>; port: number }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket);
    socket.on('close', () => open.delete(socket));
    serve(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { server, port: (server.address() as AddressInfo).port };
}
