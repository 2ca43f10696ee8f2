import type { CounterCell } from '../src/base/metrics.ts';
import type { Service, Snapshot } from '../src/catalog/snapshot.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Basis } from './answer.ts';
import type { Template } from './template.ts';
import { headerLength } from './wire/constants.ts';
import type { QueryScan } from './wire/query.ts';

/** Encoded answers kept at most: sets of two places each. */
const setCount = 4096;
const places = 2;
export const maxCachedAnswers = setCount * places;

/** Answers longer than this are encoded each time, so that the cache has a bound in octets too. */
const maxCachedOctets = 16_384;

interface Entry {
  readonly hash: number;
  readonly askerClass: number;
  readonly template: Template;
  readonly service: Service;
  readonly listener: Basis['listener'];
  uses: number;
  /** The snapshot in which the service was last seen unchanged. */
  seen: Snapshot;
  /** Counts answers of its code. */
  readonly answered: CounterCell;
}

/**
 * Encoded answers by question and class of asker. An entry holds as long as the catalog has the same object for the
 * service that it was made of, so that a change flushes what it concerns and nothing else. A full set gives up its older
 * place: bounded by construction.
 */
export class AnswerCache {
  readonly #entries = new Array<Entry | undefined>(setCount * places).fill(undefined);
  readonly #listenerOf: (service: string) => Endpoint | undefined;
  #size = 0;

  constructor(listenerOf: (service: string) => Endpoint | undefined) {
    this.#listenerOf = listenerOf;
  }

  get size(): number {
    return this.#size;
  }

  clear(): void {
    if (this.#size > 0) this.#entries.fill(undefined);
    this.#size = 0;
  }

  find(packet: Buffer, scan: QueryScan, askerClass: number, snapshot: Snapshot): Entry | undefined {
    const first = (scan.hash & (setCount - 1)) * places;
    for (let index = first; index < first + places; index += 1) {
      const entry = this.#entries[index];
      if (entry === undefined || entry.hash !== scan.hash || entry.askerClass !== askerClass) continue;
      if (!sameQuestion(entry.template, packet, scan)) continue;
      if (entry.uses > 0 && this.#holds(entry, snapshot)) {
        entry.uses -= 1;
        return entry;
      }
      this.#entries[index] = undefined;
      this.#size -= 1;
      return undefined;
    }
    return undefined;
  }

  put(
    scan: QueryScan,
    askerClass: number,
    snapshot: Snapshot,
    template: Template,
    basis: Basis,
    answered: CounterCell,
  ): void {
    if (template.bytes.length > maxCachedOctets) return;
    const first = (scan.hash & (setCount - 1)) * places;
    const { service, listener, uses } = basis;
    // The newest stands first; when both places are taken, the older one goes.
    const older = this.#entries[first];
    if (older === undefined || this.#entries[first + 1] === undefined) this.#size += 1;
    if (older !== undefined) this.#entries[first + 1] = older;
    this.#entries[first] = { hash: scan.hash, askerClass, template, service, listener, uses, seen: snapshot, answered };
  }

  #holds(entry: Entry, snapshot: Snapshot): boolean {
    if (entry.seen !== snapshot) {
      if (snapshot.services.get(entry.service.name) !== entry.service) return false;
      entry.seen = snapshot;
    }
    return entry.listener === undefined || this.#listenerOf(entry.service.name)?.address === entry.listener.address;
  }
}

/** Whether the packet asks what the template answers; letters count in either case, type and class as they are. */
function sameQuestion(template: Template, packet: Buffer, scan: QueryScan): boolean {
  const { bytes, questionEnd } = template;
  if (questionEnd !== scan.questionEnd) return false;
  for (let index = headerLength; index < questionEnd - 4; index += 1) {
    const octet = packet[index] ?? 0;
    if ((octet >= 65 && octet <= 90 ? octet + 32 : octet) !== bytes[index]) return false;
  }
  return bytes[questionEnd - 3] === (scan.type & 255) && bytes[questionEnd - 4] === scan.type >> 8;
}
