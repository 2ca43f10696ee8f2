/**
 * An immutable map from text to values in which a change costs what changed: the entries are spread over 1,024 buckets
 * by a hash of the key, and a new version shares every bucket that it did not touch. At 10,000 entries a change copies
 * one array of 1,024 references and one bucket of about ten. Two versions are compared by skipping shared buckets.
 */
const bucketCount = 1024;

type Bucket<V> = ReadonlyMap<string, V>;

// biome-ignore lint/suspicious/noExplicitAny: one shared empty bucket stands for every value type.
const emptyBucket: Bucket<any> = new Map();

function bucketOf(key: string): number {
  let hash = 2166136261;
  for (let index = 0; index < key.length; index += 1) {
    hash ^= key.charCodeAt(index);
    hash = Math.imul(hash, 16777619);
  }
  return (hash ^ (hash >>> 15)) & (bucketCount - 1);
}

export class PersistentMap<V> implements Iterable<readonly [string, V]> {
  readonly #buckets: readonly Bucket<V>[];
  readonly size: number;

  private constructor(buckets: readonly Bucket<V>[], size: number) {
    this.#buckets = buckets;
    this.size = size;
  }

  static empty<V>(): PersistentMap<V> {
    return new PersistentMap<V>(new Array<Bucket<V>>(bucketCount).fill(emptyBucket), 0);
  }

  static from<V>(entries: Iterable<readonly [string, V]>): PersistentMap<V> {
    return PersistentMap.empty<V>().with(entries, []);
  }

  get(key: string): V | undefined {
    return this.#buckets[bucketOf(key)]?.get(key);
  }

  has(key: string): boolean {
    return this.#buckets[bucketOf(key)]?.has(key) ?? false;
  }

  /** A new version with `puts` set and `deletes` removed (puts win). The same object when nothing differs. */
  with(puts: Iterable<readonly [string, V]>, deletes: Iterable<string>): PersistentMap<V> {
    let buckets: Bucket<V>[] | undefined;
    const own = new Map<number, Map<string, V>>();
    let size = this.size;
    const writable = (index: number): Map<string, V> => {
      let bucket = own.get(index);
      if (bucket === undefined) {
        bucket = new Map(this.#buckets[index]);
        own.set(index, bucket);
        buckets ??= [...this.#buckets];
        buckets[index] = bucket;
      }
      return bucket;
    };
    const current = (index: number): Bucket<V> => own.get(index) ?? this.#buckets[index] ?? emptyBucket;
    for (const key of deletes) {
      const index = bucketOf(key);
      if (!current(index).has(key)) continue;
      writable(index).delete(key);
      size -= 1;
    }
    for (const [key, value] of puts) {
      const index = bucketOf(key);
      const bucket = current(index);
      if (bucket.has(key)) {
        if (Object.is(bucket.get(key), value)) continue;
      } else size += 1;
      writable(index).set(key, value);
    }
    return buckets === undefined ? this : new PersistentMap(buckets, size);
  }

  *[Symbol.iterator](): IterableIterator<readonly [string, V]> {
    for (const bucket of this.#buckets) yield* bucket;
  }

  *keys(): IterableIterator<string> {
    for (const [key] of this) yield key;
  }

  *values(): IterableIterator<V> {
    for (const [, value] of this) yield value;
  }

  /**
   * What differs from `previous`: for each key its old and new value, undefined where absent. Costs a comparison of
   * 1,024 references plus the buckets that differ.
   */
  *changesSince(previous: PersistentMap<V>): IterableIterator<{
    readonly key: string;
    readonly before: V | undefined;
    readonly after: V | undefined;
  }> {
    for (let index = 0; index < bucketCount; index += 1) {
      const before = previous.#buckets[index] ?? emptyBucket;
      const after = this.#buckets[index] ?? emptyBucket;
      if (before === after) continue;
      for (const [key, value] of after) {
        const old = before.get(key);
        if (!Object.is(old, value)) yield { key, before: old, after: value };
      }
      for (const [key, value] of before) if (!after.has(key)) yield { key, before: value, after: undefined };
    }
  }
}
