import type { Change } from '../base/feed.ts';
import type { Entry, Store } from '../store/store.ts';

interface Known {
  readonly value: Uint8Array;
  readonly revision: string;
}

/**
 * What the store has under one prefix, as far as we know: from its watch, from our own acknowledged writes, which a watch
 * tells later, and from full reads. Older news never replaces newer.
 */
export class OwnRecords {
  readonly #store: Pick<Store, 'compareRevisions'>;
  #entries = new Map<string, Known>();
  #revision: string | undefined;

  constructor(store: Pick<Store, 'compareRevisions'>) {
    this.#store = store;
  }

  /** Whether the watch has told everything once. */
  get complete(): boolean {
    return this.#revision !== undefined;
  }

  get(key: string): Uint8Array | undefined {
    return this.#entries.get(key)?.value;
  }

  keys(): IterableIterator<string> {
    return this.#entries.keys();
  }

  /** Takes what the watch tells; the keys concerned. A reset counts whatever its revision, the store may be another one. */
  take(change: Change<Entry>): Iterable<string> {
    if (change.kind === 'reset') {
      const keys = new Set(this.#entries.keys());
      this.#replace(change.items);
      this.#revision = change.revision;
      for (const key of this.#entries.keys()) keys.add(key);
      return keys;
    }
    if (this.#revision === undefined || this.#isNewer(change.revision, this.#revision))
      this.#revision = change.revision;
    for (const key of change.deletes) this.deleted(key, change.revision);
    for (const { key, value, revision } of change.puts) this.written(key, value, revision);
    return [...change.deletes, ...change.puts.map(({ key }) => key)];
  }

  /** Takes a full read, unless the watch is already further; the keys that it showed to be different. */
  takeAll(entries: readonly Entry[], revision: string): string[] {
    if (this.#revision !== undefined && this.#isNewer(this.#revision, revision)) return [];
    const before = this.#entries;
    this.#replace(entries);
    const different = [...this.#entries].filter(([key, known]) => before.get(key)?.revision !== known.revision);
    return [...different.map(([key]) => key), ...[...before.keys()].filter((key) => !this.#entries.has(key))];
  }

  written(key: string, value: Uint8Array, revision: string): void {
    const known = this.#entries.get(key);
    if (known === undefined || !this.#isNewer(known.revision, revision)) this.#entries.set(key, { value, revision });
  }

  deleted(key: string, revision: string): void {
    const known = this.#entries.get(key);
    if (known !== undefined && !this.#isNewer(known.revision, revision)) this.#entries.delete(key);
  }

  #replace(entries: readonly Entry[]): void {
    this.#entries = new Map(entries.map(({ key, value, revision }) => [key, { value, revision }]));
  }

  #isNewer(a: string, b: string): boolean {
    return this.#store.compareRevisions(a, b) > 0;
  }
}
