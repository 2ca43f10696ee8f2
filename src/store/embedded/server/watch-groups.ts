import { includes, prefixOf } from './key-range.ts';
import { limits } from './limits.ts';
import type { Interest, StoredEvent } from './watch-events.ts';
import { EventMessage } from './watch-events.ts';
import type { StoreWatch } from './watch-stream.ts';

/** The watches with one interest, and the events that not all of them have been sent. */
export class WatchGroup {
  readonly name: string;
  readonly interest: Interest;
  readonly members = new Set<StoreWatch>();
  /** How many members are not told with the others, because they are behind or ahead. */
  apart = 0;
  /** Events after this revision are kept in `events`. */
  floor: number;
  bytes = 0;
  /** In the order of revisions. Those before `told` were sent to all members but those apart. */
  events: StoredEvent[] = [];
  told = 0;

  constructor(name: string, interest: Interest, floor: number) {
    this.name = name;
    this.interest = interest;
    this.floor = floor;
  }

  get waiting(): boolean {
    return this.told < this.events.length;
  }

  /** Up to which revision those who are not apart have been told everything. */
  settled(head: number): number {
    const next = this.events[this.told];
    return next === undefined ? head : next.revision - 1;
  }

  add(event: StoredEvent): void {
    if (event.isPut ? !this.interest.puts : !this.interest.deletes) return;
    if (this.interest.hidden !== undefined && event.latinKey.startsWith(this.interest.hidden)) return;
    this.events.push(event);
    this.bytes += event.bytes;
  }

  /** Messages of what comes after `position`, up to the event at `end`; a revision is never cut. */
  *messages(position: number, end: number, header: (revision: number) => Buffer): Generator<EventMessage> {
    let parts: Buffer[] = [];
    let size = 0;
    let last = position;
    for (let index = this.#after(position); index < end; index += 1) {
      const event = this.events[index];
      if (event === undefined) break;
      if (size >= limits.eventMessageBytes && event.revision > last) {
        yield new EventMessage(header(last), last, parts);
        parts = [];
        size = 0;
      }
      const part = event.encoded(this.interest.prevKv);
      parts.push(part);
      size += part.length;
      last = event.revision;
    }
    if (parts.length > 0) yield new EventMessage(header(last), last, parts);
  }

  /** Forgets what was told, as far as nobody apart needs it or it is more than may be kept. Returns the bytes freed. */
  trim(full: boolean): number {
    const before = this.bytes;
    const keepNothing = this.apart === 0 || full;
    while (this.told > 0) {
      const over = this.bytes > limits.recentGroupBytes || this.events.length > limits.recentGroupEvents;
      if (!keepNothing && !over) break;
      this.#forgetRevision(this.events[0]?.revision ?? 0);
    }
    return before - this.bytes;
  }

  /** Everything is to be read from history. */
  reset(head: number): void {
    this.events = [];
    this.told = 0;
    this.bytes = 0;
    this.floor = head;
  }

  #forgetRevision(revision: number): void {
    let count = 0;
    while (this.events[count]?.revision === revision) {
      this.bytes -= this.events[count]?.bytes ?? 0;
      count += 1;
    }
    this.events.splice(0, count);
    this.told = Math.max(0, this.told - count);
    this.floor = revision;
  }

  /** The place of the first event after a revision. */
  #after(revision: number): number {
    let low = 0;
    let high = this.events.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.events[middle]?.revision ?? 0) > revision) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Finds the groups that a key concerns without looking at all of them. */
export class GroupIndex {
  readonly #groups = new Map<string, WatchGroup>();
  readonly #exact = new Map<string, Set<WatchGroup>>();
  readonly #prefixes = new Map<string, Set<WatchGroup>>();
  /** How many prefixes there are of each length. */
  readonly #lengths = new Map<number, number>();
  readonly #odd = new Set<WatchGroup>();

  get all(): Iterable<WatchGroup> {
    return this.#groups.values();
  }

  /** Undefined when there are too many odd ranges already. */
  get(interest: Interest, floor: number): WatchGroup | undefined {
    const { range, prevKv, puts, deletes, hidden } = interest;
    const name = JSON.stringify([range.from, range.to, range.single === undefined, prevKv, puts, deletes, hidden]);
    const known = this.#groups.get(name);
    if (known !== undefined) return known;
    const group = new WatchGroup(name, interest, floor);
    const prefix = prefixOf(range);
    if (range.single !== undefined) addTo(this.#exact, range.from, group);
    else if (prefix !== undefined) {
      if (addTo(this.#prefixes, prefix, group))
        this.#lengths.set(prefix.length, (this.#lengths.get(prefix.length) ?? 0) + 1);
    } else if (this.#odd.size >= limits.oddWatches) return undefined;
    else this.#odd.add(group);
    this.#groups.set(name, group);
    return group;
  }

  remove(group: WatchGroup): void {
    if (!this.#groups.delete(group.name)) return;
    const { range } = group.interest;
    const prefix = prefixOf(range);
    if (range.single !== undefined) removeFrom(this.#exact, range.from, group);
    else if (prefix === undefined) this.#odd.delete(group);
    else if (removeFrom(this.#prefixes, prefix, group)) {
      const left = (this.#lengths.get(prefix.length) ?? 1) - 1;
      if (left === 0) this.#lengths.delete(prefix.length);
      else this.#lengths.set(prefix.length, left);
    }
  }

  /** The groups that a key concerns. `key`: text of one character a byte. */
  *of(key: string): Generator<WatchGroup> {
    yield* this.#exact.get(key) ?? [];
    for (const length of this.#lengths.keys()) {
      if (length <= key.length) yield* this.#prefixes.get(key.slice(0, length)) ?? [];
    }
    for (const group of this.#odd) if (includes(group.interest.range, key)) yield group;
  }
}

/** Whether the name is new. */
function addTo(index: Map<string, Set<WatchGroup>>, name: string, group: WatchGroup): boolean {
  const known = index.get(name);
  if (known !== undefined) known.add(group);
  else index.set(name, new Set([group]));
  return known === undefined;
}

/** Whether that was the last of the name. */
function removeFrom(index: Map<string, Set<WatchGroup>>, name: string, group: WatchGroup): boolean {
  const known = index.get(name);
  known?.delete(group);
  return known?.size === 0 && index.delete(name);
}
