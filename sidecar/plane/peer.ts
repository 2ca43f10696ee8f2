import type { Clock } from '../../src/base/clock.ts';
import { describeError, type ErrorCode, errorCodes, LegateError, systemCode } from '../../src/base/errors.ts';

/** What carries messages to another process of this sidecar, in order. Values arrive as structured clones. */
export interface Wire {
  /** `handle`: a listening handle that travels along. What cannot be sent any more is dropped. */
  send(message: unknown, handle?: unknown): void;
  onMessage(listener: (message: unknown, handle: unknown) => void): void;
  /** The other side is gone. Called back once. */
  onClose(listener: () => void): void;
}

type Args<F> = F extends (...args: infer A) => unknown ? A : never;
type Result<F> = F extends (...args: never[]) => infer R ? Awaited<R> : never;

/** An error as it travels. */
interface SentError {
  readonly message: string;
  readonly code: string | undefined;
  readonly hint: string | undefined;
}

/** Both sides are the same program, so that what arrives has the form that was sent. */
type Message =
  | { readonly kind: 'call'; readonly id: number; readonly name: string; readonly args: readonly unknown[] }
  | { readonly kind: 'tell'; readonly name: string; readonly args: readonly unknown[] }
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'failure'; readonly id: number; readonly error: SentError };

interface Waiting {
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
  readonly cancelTimeout: () => void;
}

/**
 * One end of a channel between control and a worker: calls by name that are answered, and things told that are not. `Mine`
 * is what this side does when it is asked, `Theirs` what the other one does: one function more is one line in its table.
 */
export class Peer<Mine extends object, Theirs extends object> {
  /** Calls of this side that wait for an answer. */
  static readonly maxWaiting = 4096;
  readonly #wire: Wire;
  readonly #clock: Clock;
  readonly #mine: Mine;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #closed = false;

  constructor({ wire, clock, mine }: { readonly wire: Wire; readonly clock: Clock; readonly mine: Mine }) {
    this.#wire = wire;
    this.#clock = clock;
    this.#mine = mine;
    wire.onMessage((message, handle) => this.#take(message as Message, handle));
    wire.onClose(() => this.#end());
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Rejects with what the other side threw, or with E_CLOSED when it is gone. */
  call<K extends keyof Theirs & string>(name: K, ...args: Args<Theirs[K]>): Promise<Result<Theirs[K]>> {
    return this.#call(undefined, name, args);
  }

  /** As `call`; rejects with E_TIMEOUT when there is no answer in time. */
  callWithin<K extends keyof Theirs & string>(
    timeoutMs: number,
    name: K,
    ...args: Args<Theirs[K]>
  ): Promise<Result<Theirs[K]>> {
    return this.#call(timeoutMs, name, args);
  }

  /** Expects no answer. */
  tell<K extends keyof Theirs & string>(name: K, ...args: Args<Theirs[K]>): void {
    if (!this.#closed) this.#wire.send({ kind: 'tell', name, args } satisfies Message);
  }

  /** Tells with a listening handle, which the other side gets as the argument after these. */
  tellWith<K extends keyof Theirs & string>(handle: unknown, name: K, ...args: readonly unknown[]): void {
    if (!this.#closed) this.#wire.send({ kind: 'tell', name, args } satisfies Message, handle);
  }

  #call<T>(timeoutMs: number | undefined, name: string, args: readonly unknown[]): Promise<T> {
    if (this.#closed) return Promise.reject(new LegateError('E_CLOSED', 'the other process is gone'));
    if (this.#waiting.size >= Peer.maxWaiting) {
      return Promise.reject(
        new LegateError('E_TIMEOUT', `${Peer.maxWaiting} calls wait for the other process already`),
      );
    }
    this.#lastId += 1;
    const id = this.#lastId;
    return new Promise<T>((resolve, reject) => {
      const late = (): void => {
        this.#waiting.delete(id);
        reject(new LegateError('E_TIMEOUT', `the other process did not answer ${name} in ${timeoutMs} ms`));
      };
      const cancelTimeout = timeoutMs === undefined ? () => undefined : this.#clock.after(timeoutMs, late);
      this.#waiting.set(id, { resolve, reject, cancelTimeout });
      this.#wire.send({ kind: 'call', id, name, args } satisfies Message);
    });
  }

  #take(message: Message, handle: unknown): void {
    if (message.kind === 'tell') {
      this.#run(message.name, handle === undefined ? message.args : [...message.args, handle]);
      return;
    }
    if (message.kind === 'call') {
      const { id } = message;
      Promise.resolve()
        .then(() => this.#run(message.name, message.args))
        .then(
          (value) => this.#answer({ kind: 'answer', id, value }),
          (error: unknown) => this.#answer({ kind: 'failure', id, error: sentError(error) }),
        );
      return;
    }
    const waiting = this.#waiting.get(message.id);
    if (waiting === undefined) return;
    this.#waiting.delete(message.id);
    waiting.cancelTimeout();
    if (message.kind === 'answer') waiting.resolve(message.value as never);
    else waiting.reject(receivedError(message.error));
  }

  #run(name: string, args: readonly unknown[]): unknown {
    const run = Object.hasOwn(this.#mine, name) ? Reflect.get(this.#mine, name) : undefined;
    if (typeof run !== 'function') throw new Error(`this process has no ${name}`);
    return Reflect.apply(run, undefined, args);
  }

  #answer(message: Message): void {
    if (!this.#closed) this.#wire.send(message);
  }

  #end(): void {
    this.#closed = true;
    for (const { reject, cancelTimeout } of this.#waiting.values()) {
      cancelTimeout();
      reject(new LegateError('E_CLOSED', 'the other process ended'));
    }
    this.#waiting.clear();
  }
}

function sentError(error: unknown): SentError {
  if (error instanceof LegateError) return { message: error.message, code: error.code, hint: error.hint };
  return { message: describeError(error), code: systemCode(error), hint: undefined };
}

function receivedError({ message, code, hint }: SentError): Error {
  if (code !== undefined && Object.hasOwn(errorCodes, code)) {
    return new LegateError(code as ErrorCode, message, hint === undefined ? {} : { hint });
  }
  return Object.assign(new Error(message), code === undefined ? {} : { code });
}
