import type { Clock } from '../base/clock.ts';

/** A host without a sign of life for so long is no longer of the mesh: catalogs ignore it, and its records are deleted. */
export const lostLimitMs = 24 * 3_600_000;

export interface LostHostsOptions {
  readonly clock: Clock;
  /** These have been lost for too long. */
  readonly onExpired: (hostIds: readonly string[]) => void;
}

/**
 * For how long hosts have been lost, as far as this host saw it: only time that passed while the store answered counts, in
 * this process and, by what is saved, in those before. No two clocks are compared and no wall clock is read, so that one
 * which is a day off, here or there, ends nobody; a sidecar that is often down only takes longer to forget a host.
 */
export class LostHosts {
  readonly #options: LostHostsOptions;
  /** What `#elapsedMs` said when the host was lost, less what was counted of it before. */
  readonly #beganMs = new Map<string, number>();
  readonly #expired = new Set<string>();
  /** Counted up to the last pause. */
  #countedMs = 0;
  /** Monotonic; undefined in a pause. */
  #sinceMs: number | undefined;
  #cancel: (() => void) | undefined;
  /** On the scale of `#elapsedMs`. */
  #dueMs = Number.POSITIVE_INFINITY;

  constructor(options: LostHostsOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#beganMs.size;
  }

  /** Whether there is anything to count. */
  get counts(): boolean {
    return this.#beganMs.size > this.#expired.size;
  }

  /** Those that have been lost for too long. */
  get expired(): ReadonlySet<string> {
    return this.#expired;
  }

  /** By host id: for how long it was seen lost, milliseconds. */
  saved(): Map<string, number> {
    const nowMs = this.#elapsedMs();
    return new Map([...this.#beganMs].map(([hostId, beganMs]) => [hostId, Math.round(nowMs - beganMs)]));
  }

  /** Takes over what a former run had counted. */
  restore(lostForMs: ReadonlyMap<string, number>): void {
    for (const [hostId, ms] of lostForMs) {
      this.#beganMs.set(hostId, this.#elapsedMs() - ms);
      if (ms >= lostLimitMs) this.#expired.add(hostId);
    }
    this.#await();
  }

  /** Notes whether a host is lost; true when it had been forgotten and has returned, or is gone altogether. */
  note(hostId: string, isLost: boolean): boolean {
    if (!isLost) return this.#beganMs.delete(hostId) && this.#expired.delete(hostId);
    if (this.#beganMs.has(hostId)) return false;
    this.#beganMs.set(hostId, this.#elapsedMs());
    this.#await();
    return false;
  }

  /** Counts from now on, or pauses: while the store is away nobody can show that he lives. */
  count(on: boolean): void {
    if (on === (this.#sinceMs !== undefined)) return;
    this.#countedMs = this.#elapsedMs();
    this.#sinceMs = on ? this.#options.clock.monotonicMs() : undefined;
    this.#await();
  }

  #elapsedMs(): number {
    return this.#countedMs + (this.#sinceMs === undefined ? 0 : this.#options.clock.monotonicMs() - this.#sinceMs);
  }

  /** Waits for the first that will have been lost for too long. */
  #await(): void {
    let dueMs = Number.POSITIVE_INFINITY;
    if (this.#sinceMs !== undefined) {
      for (const [hostId, beganMs] of this.#beganMs) {
        if (!this.#expired.has(hostId)) dueMs = Math.min(dueMs, beganMs + lostLimitMs);
      }
    }
    if (dueMs === this.#dueMs) return;
    this.#cancel?.();
    this.#cancel = undefined;
    this.#dueMs = dueMs;
    if (dueMs === Number.POSITIVE_INFINITY) return;
    this.#cancel = this.#options.clock.after(Math.max(0, Math.ceil(dueMs - this.#elapsedMs())), () => this.#expire());
  }

  #expire(): void {
    this.#dueMs = Number.POSITIVE_INFINITY;
    const nowMs = this.#elapsedMs();
    const hostIds: string[] = [];
    for (const [hostId, beganMs] of this.#beganMs) {
      if (nowMs - beganMs >= lostLimitMs && !this.#expired.has(hostId)) hostIds.push(hostId);
    }
    for (const hostId of hostIds) this.#expired.add(hostId);
    this.#await();
    if (hostIds.length > 0) this.#options.onExpired(hostIds);
  }
}
