import { closeAfterMs, pingEveryMs, suspectAfterMs, tickMs } from './limits.ts';

/** Notices that a peer has fallen silent: one ping at a time, and what its answer, or any other word, says. */
export class Silence {
  readonly #role: 'dialled' | 'accepted';
  #heardMs: number;
  #askedMs: number | undefined;
  #asked = 0;
  #tickedMs: number;
  suspect = false;
  roundTripMs: number | undefined;
  /** When the ping that is out was sent, for its round trip. */
  #sentMs = 0;
  #outstanding = false;

  constructor(role: 'dialled' | 'accepted', nowMs: number) {
    this.#role = role;
    this.#heardMs = nowMs;
    this.#tickedMs = nowMs;
  }

  silentMs(nowMs: number): number {
    return nowMs - this.#heardMs;
  }

  /** Any bytes came; whether it was suspect until now. */
  heard(nowMs: number): boolean {
    this.#heardMs = nowMs;
    this.#askedMs = undefined;
    const was = this.suspect;
    this.suspect = false;
    return was;
  }

  /** A ping goes out: its number, or undefined while one is out already. */
  asked(nowMs: number): number | undefined {
    if (this.#outstanding) {
      this.#askedMs ??= nowMs;
      return undefined;
    }
    this.#outstanding = true;
    this.#askedMs = nowMs;
    this.#sentMs = nowMs;
    this.#asked = (this.#asked + 1) >>> 0;
    return this.#asked;
  }

  /** Whether the answer is to the ping that is out. */
  answered(number: number, nowMs: number): boolean {
    if (!this.#outstanding || number !== this.#asked) return false;
    this.#outstanding = false;
    this.#askedMs = undefined;
    this.roundTripMs = nowMs - this.#sentMs;
    return true;
  }

  tick(nowMs: number): 'ping' | 'changed' | 'dead' | undefined {
    const pausedMs = nowMs - this.#tickedMs - tickMs;
    this.#tickedMs = nowMs;
    // This process was held up itself: the answer may wait to be read.
    if (pausedMs > tickMs && this.#askedMs !== undefined) this.#askedMs = Math.min(nowMs, this.#askedMs + pausedMs);
    if (this.#askedMs === undefined) {
      return this.silentMs(nowMs) >= pingEveryMs[this.#role] ? 'ping' : undefined;
    }
    const waitedMs = nowMs - this.#askedMs;
    if (waitedMs >= closeAfterMs) return 'dead';
    if (waitedMs < suspectAfterMs || this.suspect) return undefined;
    this.suspect = true;
    return 'changed';
  }
}
