import { createServer, type Server, type Socket } from 'node:net';
import { getSystemErrorName } from 'node:util';
import type { Clock } from '../../src/base/clock.ts';
import { LegateError } from '../../src/base/errors.ts';
import { type Endpoint, formatEndpoint, parseEndpoint } from '../../src/model/address.ts';
import { type RawPipe, rawPipes } from './raw-pipe.ts';

/** How long whoever asked for sockets may take to read them. */
const readLimitMs = 5000;
/** So often one process gives its sockets away at most: each time costs it a little that is never freed. */
const maxTakers = 64;
const maxSockets = 4096;
const maxCharacters = 1_048_576;

/** A listening socket on its way from one process to another, under the address that it was asked for with. */
export interface PassedSocket {
  readonly endpoint: Endpoint;
  readonly handle: object;
}

/** Gives what `list` has to whoever connects to the server, once it listens on a path that only this user reaches. */
export function socketGiver(list: () => readonly PassedSocket[], clock: Clock): Server {
  // Nothing is read by Node's own socket, whose descriptor is to be another one's.
  const server = createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', () => undefined).unref();
    give(socket, list().slice(0, maxSockets), clock);
  });
  server.maxConnections = maxTakers;
  return server;
}

/**
 * Node accepts connections as pipes that carry no sockets. So a pipe that does is opened on the same descriptor, and
 * closes it; the accepted one is never read, written or closed, for its descriptor may be another file's by then.
 */
function give(accepted: Socket, sockets: readonly PassedSocket[], clock: Clock): void {
  const pipes = rawPipes();
  const pipe = pipes?.pipe();
  const fd = Number(Reflect.get(Object(Reflect.get(accepted, '_handle')), 'fd'));
  if (pipes === undefined || pipe === undefined || !(fd > 2) || pipe.open(fd) !== 0) {
    accepted.destroy();
    return;
  }
  const close = closing(pipe);
  clock.after(readLimitMs, close);
  // The other side closes when it has everything: what it has not yet read is lost when this one closes first.
  pipe.onread = (bytes) => {
    if (bytes === undefined) close();
  };
  pipe.readStart();
  const write = (text: string, handle?: object): void => {
    const done = (status: number): void => void (status < 0 && close());
    const request = pipes.writing(done);
    const failed = handle ? pipe.writeUtf8String(request, text, handle) : pipe.writeUtf8String(request, text);
    if (failed !== 0) close();
  };
  for (const { endpoint, handle } of sockets) write(`${formatEndpoint(endpoint)}\n`, handle);
  write('.\n');
}

/** What the process at `path` listens on. Rejects with E_UNREACHABLE and why when it does not tell. */
export function takeSockets(
  path: string,
  { clock, timeoutMs }: { readonly clock: Clock; readonly timeoutMs: number },
): Promise<readonly PassedSocket[]> {
  const pipes = rawPipes();
  if (pipes === undefined) return Promise.reject(unavailable('this version of Node passes no sockets'));
  return new Promise((resolve, reject) => {
    const pipe = pipes.pipe();
    const close = closing(pipe);
    const taking = new Taking();
    const end = (problem?: string): void => {
      if (!close()) return;
      cancel();
      if (problem === undefined) resolve(taking.taken);
      else {
        taking.drop();
        reject(unavailable(problem));
      }
    };
    const cancel = clock.after(timeoutMs, () => end(`it did not answer in ${timeoutMs} ms`));
    pipe.onread = (bytes) => {
      const handle = pipe.pendingHandle;
      pipe.pendingHandle = undefined;
      if (bytes === undefined) end('it hung up');
      else if (!taking.take(Buffer.from(bytes).toString('latin1'), handle)) end('it sent something else');
      else if (taking.done) end();
    };
    const failed = pipe.connect(
      pipes.connecting((status) => (status < 0 ? end(getSystemErrorName(status)) : void pipe.readStart())),
      path,
    );
    // A path that is too long shows at once.
    if (typeof failed === 'number' && failed < 0) end(getSystemErrorName(failed));
  });
}

/** What has arrived: a line for each socket, which comes with the line or before it, and a dot. */
class Taking {
  taken: PassedSocket[] = [];
  done = false;
  readonly #handles: object[] = [];
  #text = '';
  #characters = 0;

  /** False for what is not in that form. */
  take(text: string, handle: unknown): boolean {
    if (typeof handle === 'object' && handle !== null) this.#handles.push(handle);
    this.#characters += text.length;
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '.') {
        this.done = this.#handles.length === 0;
        return this.done;
      }
      const endpoint = parseEndpoint(line);
      const next = this.#handles.shift();
      if (next === undefined) return false;
      if (endpoint === undefined) {
        closeHandle(next);
        return false;
      }
      this.taken.push({ endpoint, handle: next });
    }
    return this.taken.length <= maxSockets && this.#characters <= maxCharacters;
  }

  drop(): void {
    for (const handle of [...this.#handles, ...this.taken.map((each) => each.handle)]) closeHandle(handle);
    this.taken = [];
  }
}

/** Closes a socket of Node's inside. */
export function closeHandle(handle: object): void {
  const close: unknown = Reflect.get(handle, 'close');
  if (typeof close === 'function') Reflect.apply(close, handle, []);
}

/** Closes a pipe once; true when this did it. */
function closing(pipe: RawPipe): () => boolean {
  let open = true;
  return () => {
    if (!open) return false;
    open = false;
    pipe.close();
    return true;
  };
}

function unavailable(why: string): LegateError {
  return new LegateError('E_UNREACHABLE', why);
}
