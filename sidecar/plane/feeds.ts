import type { Observable } from '../../src/base/feed.ts';
import { Latest } from '../../src/base/feed.ts';
import type { Codec } from './codecs.ts';

/** Values that change as a whole, by name, and how each of them travels. */
export type Codecs = Readonly<Record<string, Codec<unknown>>>;
export type ValueOf<C> = C extends { readonly initial: infer T } ? T : never;
export type Observables<C> = { readonly [K in keyof C]: Observable<ValueOf<C[K]>> };

export interface FeedSenderOptions<T> {
  readonly source: Observable<T>;
  readonly codec: Codec<T>;
  /** Resolves when the other side has taken the part over. */
  readonly send: (part: unknown) => Promise<void>;
}

/**
 * Keeps one value of another process as it is here. One part at a time is under way; whatever changes meanwhile is one
 * change more, so that a process that is slow is sent the latest and nothing is queued for it.
 */
export class FeedSender<T> {
  readonly #options: FeedSenderOptions<T>;
  #sent: T;
  #running: Promise<void> | undefined;
  readonly #unsubscribe: () => void;
  #closed = false;

  constructor(options: FeedSenderOptions<T>) {
    this.#options = options;
    this.#sent = options.codec.initial;
    this.#unsubscribe = options.source.subscribe(() => void this.flush());
  }

  /** Resolves when the other side has what is here now, or is gone. */
  flush(): Promise<void> {
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  close(): void {
    this.#closed = true;
    this.#unsubscribe();
  }

  async #run(): Promise<void> {
    const { source, codec, send } = this.#options;
    try {
      while (!this.#closed && !Object.is(this.#sent, source.value)) {
        const { value } = source;
        for (const part of codec.diff(this.#sent, value)) {
          await send(part);
          if (this.#closed) return;
        }
        this.#sent = value;
      }
    } catch {
      // The other side is gone, and what it had with it: its successor begins anew.
      this.close();
    }
  }
}

/** The values of another process, as they are there. */
export class FeedReceiver<C extends Codecs> {
  readonly #codecs: C;
  readonly #values = new Map<string, Latest<unknown>>();

  constructor(codecs: C) {
    this.#codecs = codecs;
    for (const [name, codec] of Object.entries(codecs)) this.#values.set(name, new Latest<unknown>(codec.initial));
  }

  get<K extends keyof C & string>(name: K): Observable<ValueOf<C[K]>> {
    return this.#held(name) as unknown as Observable<ValueOf<C[K]>>;
  }

  take(name: string, part: unknown): void {
    const held = this.#held(name);
    const codec = this.#codecs[name];
    if (codec === undefined) throw new Error(`there is no ${name}`);
    held.set(codec.apply(held.value, part as never));
  }

  #held(name: string): Latest<unknown> {
    const held = this.#values.get(name);
    if (held === undefined) throw new Error(`there is no ${name}`);
    return held;
  }
}
