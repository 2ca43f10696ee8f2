import type { StoreAccess } from '../access.ts';
import type { Gate } from './gate.ts';
import { includes, latinOf } from './key-range.ts';
import { limits } from './limits.ts';
import { concerns, EventMessage, encodeEvent, type Interest } from './watch-events.ts';
import type { WatchGroup } from './watch-groups.ts';

/** What changed after a revision, as far as history says; shared by all who asked at the same time. */
export interface Round {
  /** The last revision that it knows of. */
  readonly revision: number;
  readonly compacted: number;
  /** Keys with the last revision that wrote them; undefined when history does not say, or they are too many. */
  readonly changed: ReadonlyMap<string, number> | undefined;
  readonly encoded: Map<string, { readonly event: Buffer; readonly isPut: boolean } | undefined>;
  encodedBytes: number;
}

const sliceKeys = 128;
const maxRoundBytes = 16 * 1024 * 1024;

/**
 * Reads history for watches that are behind. When many ask at once, as after a restart, one walk through history serves
 * all of them, and each event is read and encoded once. History says which keys changed and when last, so versions in
 * between are left out; the last one always comes.
 */
export class CatchUp {
  readonly #access: StoreAccess;
  readonly #gate: Gate;
  readonly #headerField: (revision: number) => Buffer;
  #waiting: { from: number; readonly groups: Set<WatchGroup>; readonly round: Promise<Round> } | undefined;

  constructor(options: {
    readonly access: StoreAccess;
    readonly gate: Gate;
    readonly headerField: (revision: number) => Buffer;
  }) {
    this.#access = options.access;
    this.#gate = options.gate;
    this.#headerField = options.headerField;
  }

  /** Rejects while the store cannot be read. */
  round(from: number, group: WatchGroup): Promise<Round> {
    if (this.#waiting !== undefined) {
      this.#waiting.from = Math.min(this.#waiting.from, from);
      this.#waiting.groups.add(group);
      return this.#waiting.round;
    }
    const groups = new Set([group]);
    const round = this.#gate.run(() => {
      const begun = this.#waiting?.from ?? from;
      this.#waiting = undefined;
      return this.#walk(begun, groups);
    });
    this.#waiting = { from, groups, round };
    return round;
  }

  /** Messages of what a round knows after `position`, in the order of revisions. */
  async *messages(round: Round, position: number, interest: Interest): AsyncGenerator<EventMessage> {
    const keys = [...(round.changed ?? [])]
      .filter(([key, revision]) => revision > position && concerns(interest, latinOf(key)))
      .sort((a, b) => a[1] - b[1]);
    let parts: Buffer[] = [];
    let size = 0;
    let last = position;
    for (let from = 0; from < keys.length; from += sliceKeys) {
      const slice = keys.slice(from, from + sliceKeys);
      await this.#encode(round, slice);
      for (const [key, revision] of slice) {
        if (size >= limits.eventMessageBytes && revision > last) {
          yield new EventMessage(this.#headerField(last), last, parts);
          parts = [];
          size = 0;
        }
        const found = round.encoded.get(key);
        if (found !== undefined && (found.isPut ? interest.puts : interest.deletes)) {
          parts.push(found.event);
          size += found.event.length;
        }
        last = revision;
      }
      if (round.encodedBytes > maxRoundBytes) {
        round.encoded.clear();
        round.encodedBytes = 0;
      }
    }
    if (parts.length > 0) yield new EventMessage(this.#headerField(last), last, parts);
  }

  async #walk(from: number, groups: ReadonlySet<WatchGroup>): Promise<Round> {
    const view = this.#access.view();
    try {
      const head = (await view.head()) ?? this.#access.head();
      const { revision, compacted } = head;
      const base = { revision, compacted, encoded: new Map(), encodedBytes: 0 };
      // Those who want what is compacted are told so; the others share what is left.
      const start = Math.max(from, compacted);
      const ranges = [...groups].map(({ interest }) => interest.range);
      const isWanted = (key: string): boolean => {
        const latin = latinOf(key);
        return ranges.some((range) => includes(range, latin));
      };
      const { signal } = new AbortController();
      return { ...base, changed: await view.changedSince(start, isWanted, signal) };
    } catch (error) {
      throw this.#access.readError(error);
    } finally {
      await view.close();
    }
  }

  /**
   * Encodes what is not yet: a key whose record is newer than the round comes with a later one, and one that is gone was
   * deleted at that revision or later.
   */
  async #encode(round: Round, slice: readonly (readonly [string, number])[]): Promise<void> {
    const missing = slice.filter(([key]) => !round.encoded.has(key));
    if (missing.length === 0) return;
    const view = this.#access.view();
    try {
      const records = await view.recordsOf(missing.map(([key]) => key));
      for (const [index, [key, revision]] of missing.entries()) {
        const record = records[index];
        if (record !== undefined && record.revision > revision) round.encoded.set(key, undefined);
        else {
          const event = encodeEvent(key, revision, record, undefined);
          round.encoded.set(key, { event, isPut: record !== undefined });
          round.encodedBytes += event.length + key.length;
        }
      }
    } catch (error) {
      throw this.#access.readError(error);
    } finally {
      await view.close();
    }
  }
}
