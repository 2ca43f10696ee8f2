import type { View } from '../view.ts';
import { limits, times } from './limits.ts';

/** The store at a revision, kept so that the further pages of a read see what the first one saw. */
export interface KeptView {
  readonly view: View;
  readonly revision: number;
  /** How many keys lie between two bounds, as far as an earlier page told. */
  readonly counts: Map<string, number>;
  /** Pages that somebody asked for, by the request; they never change. */
  readonly answers: Map<string, Uint8Array>;
  users: number;
  lastUsedMs: number;
}

/**
 * Views of answers that had more to come. Clients ask for the next page at the revision of the first; when many do so at
 * once, as after a restart, they mostly share revision and pages.
 */
export class KeptViews {
  readonly #kept = new Map<number, KeptView>();
  readonly #timer: NodeJS.Timeout;
  #bytes = 0;

  constructor() {
    this.#timer = setInterval(() => this.#expire(), times.keptViewMs / 4);
    this.#timer.unref();
  }

  get bytes(): number {
    return this.#bytes;
  }

  find(revision: number): KeptView | undefined {
    return this.#kept.get(revision);
  }

  /** Takes over the view; it is closed when it was not used for a while, or others take its place. */
  keep(view: View, revision: number): KeptView {
    const kept: KeptView = {
      view,
      revision,
      counts: new Map(),
      answers: new Map(),
      users: 0,
      lastUsedMs: performance.now(),
    };
    this.#drop(revision);
    this.#kept.set(revision, kept);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > limits.keptViews && oldest !== undefined) this.#drop(oldest);
    return kept;
  }

  /** Remembers a page, unless there is no room. */
  remember(kept: KeptView, name: string, answer: Uint8Array): void {
    if (this.#kept.get(kept.revision) !== kept || this.#bytes + answer.byteLength > limits.keptBytes) return;
    kept.answers.set(name, answer);
    this.#bytes += answer.byteLength;
  }

  async use<T>(kept: KeptView, run: () => Promise<T>): Promise<T> {
    kept.users += 1;
    kept.lastUsedMs = performance.now();
    try {
      return await run();
    } finally {
      kept.users -= 1;
      if (kept.users === 0 && this.#kept.get(kept.revision) !== kept) void kept.view.close();
    }
  }

  /** The store was closed or opened anew. */
  clear(): void {
    for (const revision of [...this.#kept.keys()]) this.#drop(revision);
  }

  close(): void {
    clearInterval(this.#timer);
    this.clear();
  }

  #drop(revision: number): void {
    const kept = this.#kept.get(revision);
    if (kept === undefined) return;
    this.#kept.delete(revision);
    for (const answer of kept.answers.values()) this.#bytes -= answer.byteLength;
    kept.answers.clear();
    if (kept.users === 0) void kept.view.close();
  }

  #expire(): void {
    const beforeMs = performance.now() - times.keptViewMs;
    for (const kept of [...this.#kept.values()]) if (kept.lastUsedMs < beforeMs) this.#drop(kept.revision);
  }
}
