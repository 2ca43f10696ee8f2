/**
 * The one shape in which changes travel: first everything (`reset`), then differences (`delta`). Start, reconnect,
 * missed events and a replaced source are therefore one path. A feed converges: it may skip versions in between, never
 * the last one. Items carry their own key; `deletes` names keys.
 */
export type Revision = string;

export type Change<T> =
  | { readonly kind: 'reset'; readonly items: readonly T[]; readonly revision: Revision }
  | {
      readonly kind: 'delta';
      readonly puts: readonly T[];
      readonly deletes: readonly string[];
      readonly revision: Revision;
    };

export type Feed<T> = AsyncIterable<Change<T>>;

/**
 * Hands every change of a feed to `take`, one after the other, until the feed ends or `take` gives false. While it waits
 * for the next it holds nothing of the last, as the variable of a loop would: a reset may be most of what a process has.
 */
export async function eachChange<T>(
  feed: Feed<T>,
  // biome-ignore lint/suspicious/noConfusingVoidType: most takers have nothing to say.
  take: (change: Change<T>) => boolean | void | Promise<boolean | void>,
): Promise<void> {
  const iterator = feed[Symbol.asyncIterator]();
  try {
    while (await takeNext(iterator, take));
  } finally {
    await iterator.return?.();
  }
}

async function takeNext<T>(
  iterator: AsyncIterator<Change<T>>,
  // biome-ignore lint/suspicious/noConfusingVoidType: as above.
  take: (change: Change<T>) => boolean | void | Promise<boolean | void>,
): Promise<boolean> {
  const next = await iterator.next();
  return next.done !== true && (await take(next.value)) !== false;
}

/**
 * The writing end of a feed: the producer pushes without waiting, and what the consumer has not yet taken is merged by
 * key, so that the queue never holds more than one version of each item. One consumer.
 */
export class FeedQueue<T> implements Feed<T> {
  readonly #keyOf: (item: T) => string;
  #reset = false;
  #puts = new Map<string, T>();
  #deletes = new Set<string>();
  #revision: Revision = '';
  #pending = false;
  #ended = false;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(keyOf: (item: T) => string) {
    this.#keyOf = keyOf;
  }

  /** Keys that wait to be taken. */
  get size(): number {
    return this.#puts.size + this.#deletes.size;
  }

  push(change: Change<T>): void {
    if (this.#ended) return;
    if (change.kind === 'reset') {
      this.#reset = true;
      this.#deletes.clear();
      this.#puts = new Map(change.items.map((item) => [this.#keyOf(item), item]));
    } else {
      for (const key of change.deletes) {
        this.#puts.delete(key);
        if (!this.#reset) this.#deletes.add(key);
      }
      for (const item of change.puts) {
        const key = this.#keyOf(item);
        this.#deletes.delete(key);
        this.#puts.set(key, item);
      }
    }
    this.#revision = change.revision;
    this.#pending = true;
    this.#wake?.();
  }

  /** Ends the feed after what was pushed; with an error, the consumer's loop throws it. */
  end(failure?: unknown): void {
    this.#ended = true;
    this.#failure = failure;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Change<T>, void, undefined> {
    for (;;) {
      if (this.#pending) yield this.#take();
      else if (this.#ended) {
        if (this.#failure !== undefined) throw this.#failure;
        return;
      } else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    }
  }

  #take(): Change<T> {
    const revision = this.#revision;
    const change: Change<T> = this.#reset
      ? { kind: 'reset', items: [...this.#puts.values()], revision }
      : { kind: 'delta', puts: [...this.#puts.values()], deletes: [...this.#deletes], revision };
    this.#reset = false;
    this.#pending = false;
    this.#puts = new Map();
    this.#deletes = new Set();
    return change;
  }
}

/** A value that changes as a whole; readers see the current one, listeners hear of the latest. */
export interface Observable<T> {
  readonly value: T;
  /** Calls `listener` after each change, not for the present value. The returned function ends it. */
  subscribe(listener: (value: T) => void): () => void;
}

/**
 * Holds the current value and tells listeners once per microtask turn, with the latest value only: a listener may miss
 * versions in between. A listener must not throw; one that does ends the process as a broken invariant.
 */
export class Latest<T> implements Observable<T> {
  #value: T;
  #scheduled = false;
  readonly #listeners = new Set<(value: T) => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get value(): T {
    return this.#value;
  }

  set(value: T): void {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      for (const listener of [...this.#listeners]) listener(this.#value);
    });
  }

  subscribe(listener: (value: T) => void): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }
}
