import { isContainerId } from './container.ts';
import { rawField, rawRecord, rawText } from './raw.ts';
import { signalNumber } from './signals.ts';

/** Longer lines are thrown away: an event carries all labels of its container, and nothing else of size. */
export const maxEventLineBytes = 512 * 1024;

/** One event of the engine, as far as it concerns us. */
export type DockerEvent =
  | {
      readonly type: 'container';
      /** `start`, `die`, `kill`, `health_status: healthy`, … */
      readonly action: string;
      readonly id: string;
      readonly timeNano: number;
      /** Of `kill`: the number of the signal that was sent. */
      readonly signal: number | undefined;
    }
  | {
      readonly type: 'network';
      readonly action: string;
      readonly id: string;
      readonly timeNano: number;
      /** Of `connect` and `disconnect`. */
      readonly container: string | undefined;
    };

/** The actions that the engine is asked for; `health_status` stands for all that begin so. */
export const containerActions = [
  'start',
  'restart',
  'die',
  'destroy',
  'kill',
  'pause',
  'unpause',
  'rename',
  'update',
  'oom',
  'health_status',
] as const;
export const networkActions = ['create', 'connect', 'disconnect', 'destroy', 'remove', 'update'] as const;

/** Reads one line of the events stream; undefined when it is not an event of a container or network. Never throws. */
export function parseEvent(line: string): DockerEvent | undefined {
  let document: unknown;
  try {
    document = JSON.parse(line);
  } catch {
    return undefined;
  }
  const raw = rawRecord(document);
  const actor = rawRecord(rawField(raw, 'Actor'));
  const attributes = rawRecord(rawField(actor, 'Attributes'));
  const type = rawField(raw, 'Type');
  const action = rawText(rawField(raw, 'Action')).slice(0, 128);
  const id = rawText(rawField(actor, 'ID')) || rawText(rawField(raw, 'id'));
  const timeNano = rawField(raw, 'timeNano');
  if (typeof timeNano !== 'number' || !Number.isFinite(timeNano) || timeNano < 0 || action === '') return undefined;
  if (type === 'container') {
    if (!isContainerId(id)) return undefined;
    const signal = action === 'kill' ? signalNumber(rawText(rawField(attributes, 'signal'))) : undefined;
    return { type, action, id, timeNano, signal };
  }
  if (type !== 'network' || id === '' || id.length > 64) return undefined;
  const container = rawText(rawField(attributes, 'container'));
  return { type, action, id, timeNano, container: isContainerId(container) ? container : undefined };
}

/** Cuts a stream of bytes into lines, in bounded memory. A line that is too long is dropped and counted once. */
export class LineSplitter {
  readonly #maxBytes: number;
  readonly #onLine: (line: string) => void;
  readonly #onTooLong: () => void;
  #parts: Buffer[] = [];
  #bytes = 0;
  #skipping = false;

  constructor(maxBytes: number, onLine: (line: string) => void, onTooLong: () => void) {
    this.#maxBytes = maxBytes;
    this.#onLine = onLine;
    this.#onTooLong = onTooLong;
  }

  push(chunk: Buffer): void {
    let from = 0;
    for (;;) {
      const end = chunk.indexOf(10, from);
      if (end === -1) break;
      this.#keep(chunk.subarray(from, end));
      this.#finish();
      from = end + 1;
    }
    if (from < chunk.length) this.#keep(chunk.subarray(from));
  }

  #keep(part: Buffer): void {
    if (this.#skipping || part.length === 0) return;
    if (this.#bytes + part.length > this.#maxBytes) {
      this.#skipping = true;
      this.#parts = [];
      this.#bytes = 0;
      this.#onTooLong();
      return;
    }
    this.#parts.push(part);
    this.#bytes += part.length;
  }

  #finish(): void {
    const parts = this.#parts;
    const skipped = this.#skipping;
    this.#parts = [];
    this.#bytes = 0;
    this.#skipping = false;
    if (skipped || parts.length === 0) return;
    const line = (parts.length === 1 && parts[0] !== undefined ? parts[0] : Buffer.concat(parts)).toString('utf8');
    if (line.trim() !== '') this.#onLine(line);
  }
}

/** Remembers the last events by time, action and object, so that what `since` repeats is seen once. */
export class SeenEvents {
  static readonly maxRemembered = 1024;
  readonly #keys = new Set<string>();
  #lastNano = 0;

  /** The time of the newest event; 0 before the first. */
  get lastNano(): number {
    return this.#lastNano;
  }

  /** True when the event is new. */
  add(event: DockerEvent): boolean {
    const subject = event.type === 'network' ? `${event.id} ${event.container ?? ''}` : event.id;
    const key = `${event.timeNano} ${event.action} ${subject}`;
    if (this.#keys.has(key)) return false;
    this.#keys.add(key);
    this.#lastNano = Math.max(this.#lastNano, event.timeNano);
    if (this.#keys.size > SeenEvents.maxRemembered) {
      const [oldest] = this.#keys;
      if (oldest !== undefined) this.#keys.delete(oldest);
    }
    return true;
  }
}
