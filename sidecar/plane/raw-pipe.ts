/**
 * The pipe of Node that carries sockets between processes, which its documented calls only make between a process and its
 * children. Everything that is taken from Node's inside for it is here.
 */
export interface RawPipe {
  open(fd: number): number;
  connect(request: object, path: string): number;
  readStart(): number;
  writeUtf8String(request: object, text: string, handle?: object): number;
  close(): void;
  /** Called with what was read, or with undefined at the end. */
  onread: (bytes: ArrayBuffer | undefined) => void;
  /** The socket that came with what is read now. */
  pendingHandle: unknown;
}

/** A request that Node's inside answers. */
interface RawRequest {
  oncomplete: (status: number) => void;
}

type Make<T> = new (type?: number) => T;

export interface RawPipes {
  pipe(): RawPipe;
  connecting(done: (status: number) => void): object;
  writing(done: (status: number) => void): object;
}

/** Undefined where this Node does not have it. */
export function rawPipes(): RawPipes | undefined {
  try {
    const Pipe = inside<Make<RawPipe>>('pipe_wrap', 'Pipe');
    const Connecting = inside<Make<RawRequest>>('pipe_wrap', 'PipeConnectWrap');
    const Writing = inside<Make<RawRequest>>('stream_wrap', 'WriteWrap');
    const type = Number(Reflect.get(inside<object>('pipe_wrap', 'constants'), 'IPC'));
    const request = (Made: Make<RawRequest>) => (done: (status: number) => void) =>
      Object.assign(new Made(), { oncomplete: done });
    return { pipe: () => new Pipe(type), connecting: request(Connecting), writing: request(Writing) };
  } catch {
    return undefined;
  }
}

function inside<T>(module: string, name: string): T {
  const binding: unknown = Reflect.get(process, 'binding');
  if (typeof binding !== 'function') throw new Error('not in this version');
  const found: unknown = Reflect.get(Reflect.apply(binding, process, [module]), name);
  if (found === undefined || found === null) throw new Error(`${module} has no ${name}`);
  return found as T;
}
