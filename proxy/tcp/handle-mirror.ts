import { type ChildProcess, fork, type SendHandle } from 'node:child_process';
import type { Server } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../../src/base/clock.ts';

export interface MirrorRequest {
  readonly id: number;
  readonly copies: number;
}

/** What `server.listen()` takes in place of an address. Owned by whoever asked for it. */
export interface ListeningHandle {
  close(): void;
}

interface Pending {
  readonly copies: ListeningHandle[];
  readonly wanted: number;
  readonly done: (copies: ListeningHandle[]) => void;
  readonly cancel: () => void;
}

/**
 * Gives further handles on a listening socket of this process. The event loop accepts one connection per handle and turn,
 * so a burst of hundreds waits for as many turns; with eight handles, for an eighth. The runtime cannot duplicate a
 * descriptor, but passing one to another process does: a helper process, started when first needed and ended when idle,
 * sends it back. Without the helper, or when it dies, everything works as before, only slower in bursts.
 */
export class HandleMirror {
  /** How long the helper may take for one request, its start included. */
  static readonly answerMs = 5000;
  /** How long the helper stays without being asked. */
  static readonly idleMs = 30_000;
  readonly #clock: Clock;
  readonly #pending = new Map<number, Pending>();
  #child: ChildProcess | undefined;
  #cancelIdle: (() => void) | undefined;
  #lastId = 0;
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The helper's process id while it runs. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Up to `wanted` further handles on the server's socket; fewer, or none, when the helper fails. Never rejects. */
  copies(server: Server, wanted: number): Promise<ListeningHandle[]> {
    // The documented form passes a server, which would begin to accept in the helper; its bare handle does not.
    const handle = '_handle' in server ? server._handle : null;
    if (this.#closed || handle === null || wanted < 1) return Promise.resolve([]);
    return new Promise((done) => {
      this.#lastId += 1;
      const id = this.#lastId;
      const cancel = this.#clock.after(HandleMirror.answerMs, () => this.#settle(id));
      this.#pending.set(id, { copies: [], wanted, done, cancel });
      this.#cancelIdle?.();
      const request: MirrorRequest = { id, copies: wanted };
      try {
        this.#child ??= this.#start();
        this.#child.send(request, handle as SendHandle, (error) => {
          if (error !== null) this.#settle(id);
        });
      } catch {
        this.#settle(id);
      }
    });
  }

  /** Ends the helper; requests under way are answered with what came. */
  close(): void {
    this.#closed = true;
    this.#stop();
  }

  #start(): ChildProcess {
    const script = fileURLToPath(new URL('./handle-mirror-child.js', import.meta.url));
    const child = fork(script, { stdio: ['ignore', 'ignore', 'ignore', 'ipc'], execArgv: ['--max-semi-space-size=1'] });
    child.unref();
    child.channel?.unref();
    child.on('message', (message, handle) =>
      this.#received(message as MirrorRequest, handle as ListeningHandle | undefined),
    );
    child.on('error', () => this.#gone(child));
    child.on('exit', () => this.#gone(child));
    return child;
  }

  #received({ id }: MirrorRequest, handle: ListeningHandle | undefined): void {
    if (handle === undefined) return;
    const pending = this.#pending.get(id);
    if (pending === undefined) {
      handle.close();
      return;
    }
    pending.copies.push(handle);
    if (pending.copies.length === pending.wanted) this.#settle(id);
  }

  #settle(id: number): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    pending.cancel();
    pending.done(pending.copies);
    if (this.#pending.size > 0) return;
    this.#cancelIdle?.();
    this.#cancelIdle = this.#clock.after(HandleMirror.idleMs, () => this.#stop());
  }

  #gone(child: ChildProcess): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    for (const id of [...this.#pending.keys()]) this.#settle(id);
  }

  #stop(): void {
    const child = this.#child;
    this.#cancelIdle?.();
    if (child === undefined) return;
    this.#gone(child);
    this.#cancelIdle?.();
    if (child.connected) child.disconnect();
  }
}
