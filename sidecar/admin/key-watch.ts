import type { Context } from 'hono';
import { streamSSE } from 'hono/streaming';
import { LegateError } from '../../src/base/errors.ts';
import type { Change } from '../../src/base/feed.ts';
import type { Entry, Store } from '../../src/store/store.ts';
import type { KvChangeDocument, KvResetDocument } from './documents.ts';

/** Watches of keys open at once. */
const maxWatches = 64;
/** Keys under one watched prefix. */
const maxKeys = 10_000;
/** A comment line keeps an idle stream alive through middleboxes, and finds readers that are gone. */
const keepAliveMs = 15_000;

/** Which of the users' keys: one, or all that begin so. `prefix` is where they live in the store. */
export interface Watched {
  readonly store: Store;
  readonly prefix: string;
  readonly key: string;
  readonly recurse: boolean;
}

/**
 * Server-sent events: each is a key as it is now, beginning with what is there. It converges: versions in between may be
 * missing, the last one never is. An absent single key is told as deleted.
 */
export class KeyWatches {
  #open = 0;

  stream(context: Context, watched: Watched): Response {
    if (this.#open >= maxWatches) {
      throw new LegateError('E_IN_USE', `${maxWatches} watches are open already`, { hint: 'end one of them' });
    }
    this.#open += 1;
    return streamSSE(context, async (stream) => {
      const ended = new AbortController();
      stream.onAbort(() => ended.abort());
      const alive = setInterval(() => void stream.write(':\n\n').catch(() => ended.abort()), keepAliveMs);
      const differences = new Differences(watched);
      try {
        for await (const change of watched.store.watch(watched.prefix + watched.key, { signal: ended.signal })) {
          if (change.kind === 'reset') {
            await stream.writeSSE({ event: 'reset', data: JSON.stringify(differences.present(change.items)) });
          }
          for (const document of differences.take(change)) {
            await stream.writeSSE({ event: 'change', data: JSON.stringify(document) });
          }
        }
      } finally {
        clearInterval(alive);
        this.#open -= 1;
      }
    });
  }
}

/** Turns the store's feed into what differs from what was told before. */
class Differences {
  readonly #watched: Watched;
  readonly #told = new Map<string, string>();
  #begun = false;

  constructor(watched: Watched) {
    this.#watched = watched;
  }

  take(change: Change<Entry>): KvChangeDocument[] {
    const out: KvChangeDocument[] = [];
    const isReset = change.kind === 'reset';
    const puts = (isReset ? change.items : change.puts).filter(({ key }) => this.#concerns(key)).slice(0, maxKeys);
    const present = new Set(puts.map(({ key }) => key));
    const gone = isReset ? [...this.#told.keys()].filter((key) => !present.has(key)) : change.deletes;
    for (const key of gone) if (this.#told.delete(key)) out.push({ key: this.#nameOf(key), deleted: true });
    for (const { key, value, revision } of puts) {
      if (this.#told.get(key) === revision) continue;
      if (this.#told.size >= maxKeys && !this.#told.has(key)) continue;
      this.#told.set(key, revision);
      out.push({ key: this.#nameOf(key), value: Buffer.from(value).toString('base64'), revision });
    }
    if (!this.#begun && out.length === 0 && !this.#watched.recurse) {
      out.push({ key: this.#watched.key, deleted: true });
    }
    this.#begun = true;
    return out;
  }

  present(entries: readonly Entry[]): KvResetDocument {
    const keys = entries.filter(({ key }) => this.#concerns(key)).map(({ key }) => this.#nameOf(key));
    return { keys: keys.slice(0, maxKeys) };
  }

  #concerns(key: string): boolean {
    return this.#watched.recurse || key === this.#watched.prefix + this.#watched.key;
  }

  #nameOf(key: string): string {
    return key.slice(this.#watched.prefix.length);
  }
}
