import type { Change } from '../../src/base/feed.ts';
import type { Entry, Store } from '../../src/store/store.ts';
import { waitFor } from '../support/wait.ts';

/** A consumer of a watch that keeps all it was told and the picture that results. Throws from `ended` what the feed throws. */
export class Follower {
  readonly changes: Change<Entry>[] = [];
  readonly entries = new Map<string, Entry>();
  readonly ended: Promise<void>;
  readonly #abort = new AbortController();

  constructor(store: Store, prefix: string, from?: string) {
    const { signal } = this.#abort;
    this.ended = this.#run(store.watch(prefix, from === undefined ? { signal } : { signal, from }), store);
    this.ended.catch(() => undefined);
  }

  /** The values as text, by key. */
  texts(): Map<string, string> {
    return new Map([...this.entries].map(([key, { value }]) => [key, Buffer.from(value).toString()]));
  }

  /** Waits until the picture is this one, and at least one change was told. */
  async has(wanted: ReadonlyMap<string, string>): Promise<void> {
    const text = JSON.stringify([...wanted].sort());
    await waitFor(
      `a watch that has ${text}`,
      () => {
        return this.changes.length > 0 && JSON.stringify([...this.texts()].sort()) === text;
      },
      { everyMs: 2 },
    );
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await this.ended;
  }

  async #run(feed: AsyncIterable<Change<Entry>>, store: Store): Promise<void> {
    let last: string | undefined;
    for await (const change of feed) {
      if (change.kind === 'delta' && last !== undefined && store.compareRevisions(last, change.revision) >= 0) {
        throw new Error(`a watch went from ${last} to ${change.revision}`);
      }
      last = change.revision;
      this.changes.push(change);
      if (change.kind === 'reset') this.entries.clear();
      else for (const key of change.deletes) this.entries.delete(key);
      for (const entry of change.kind === 'reset' ? change.items : change.puts) this.entries.set(entry.key, entry);
    }
  }
}
