import { type Instance, isUsableStatus } from '../model/instance.ts';
import type { Brake } from './snapshot.ts';

/** Turns that lie at most this far apart belong together. */
export const brakeWindowMs = 30_000;
/** How long the brake holds at most. */
export const brakeHoldMs = 600_000;

/** Less than this between the two clocks is rounding; more, and somebody has set the wall clock. */
const clockSlackMs = 1000;

/** One moment on both clocks: the monotonic one decides, the wall clock is for people and for the disk. */
export interface Moment {
  readonly monotonicMs: number;
  readonly wallMs: number;
}

/** An instance that is not usable by itself, and what is remembered of how it came to that. */
export interface Troubled {
  readonly instance: Instance;
  /** Whether this incarnation was ever passing or warning. */
  readonly passed: boolean;
  /** Monotonic; undefined when nobody saw it turn critical or lost. */
  readonly turnedAtMs: number | undefined;
  /** Whether that was its host's loss, and not its own health. */
  readonly byLoss: boolean;
}

/** A service's brake in the form that outlives the process. All times are wall clock, milliseconds. */
export interface SavedBrake {
  /** Those that turned critical or lost: their `<host id>/<name>`, and when. */
  readonly turned: readonly SavedTurn[];
  /**
   * The last time that the brake took hold; `beganMs` is undefined when it holds no longer, `keepsLost` tells whether it
   * keeps lost instances, too.
   */
  readonly episode: (Brake & { readonly beganMs: number | undefined; readonly keepsLost?: boolean }) | undefined;
}

export interface SavedTurn {
  readonly key: string;
  readonly atMs: number;
  readonly passed: boolean;
  readonly byLoss?: boolean;
}

/**
 * Whether the turns of a service with `size` instances are a mass withdrawal: more than half of them turned critical or
 * lost within the window and still are, and of these at least two had passed and are not leaving. Lost ones count only
 * where `countsLost`: when more than one host was lost in that time, since one host's power cut is ordinary failover.
 */
export function isMassWithdrawal(
  troubled: Iterable<Troubled>,
  size: number,
  { nowMs, countsLost }: { readonly nowMs: number; readonly countsLost: boolean },
): boolean {
  let turned = 0;
  let worthKeeping = 0;
  for (const { instance, passed, turnedAtMs } of troubled) {
    if (!counts(instance, countsLost) || turnedAtMs === undefined || nowMs - turnedAtMs > brakeWindowMs) continue;
    turned += 1;
    if (passed && !instance.draining) worthKeeping += 1;
  }
  return turned * 2 > size && worthKeeping >= 2;
}

function counts({ status }: Instance, countsLost: boolean): boolean {
  return status === 'critical' || (status === 'lost' && countsLost);
}

/** What identifies an instance over its changes. */
export function keyOf({ hostId, name }: { readonly hostId: string; readonly name: string }): string {
  return `${hostId}/${name}`;
}

/**
 * The brake on mass withdrawal for one service: remembers who turned critical or lost when, and decides since when and until when
 * those that turned together go on being used. All times come in; nothing here reads a clock or waits.
 *
 * A brake that takes hold again before half of the instances have passed for a whole window goes on with the time that it
 * had left: instances that come and go do not extend it.
 */
export class ServiceBrake {
  readonly #troubled = new Map<string, Troubled>();
  /** The present or last hold, until half of the instances have passed for a while. */
  #episode: { readonly brake: Brake; readonly endsMs: number } | undefined;
  /** Monotonic: when it took hold; undefined while it does not hold. */
  #beganMs: number | undefined;
  /** Whether it keeps lost instances, too: more than one host was lost when it took hold, or within a window after. */
  #keepsLost = false;
  /** Monotonic: since when at least half have passed, after a hold. */
  #calmSinceMs: number | undefined;

  /** Monotonic moment at which the hold ends at the latest; undefined while it does not hold. */
  get endsMs(): number | undefined {
    return this.#beganMs === undefined ? undefined : this.#episode?.endsMs;
  }

  /** Whether there is nothing to remember. */
  get idle(): boolean {
    return this.#troubled.size === 0 && this.#episode === undefined;
  }

  /** Takes note of an instance as it is now, and as it was before; `before` is undefined when it was not known. */
  note(before: Instance | undefined, after: Instance, nowMs: number): void {
    const key = keyOf(after);
    const known = this.#troubled.get(key);
    const last = before ?? known?.instance;
    this.#troubled.delete(key);
    if (last === undefined || last.incarnation !== after.incarnation || isUsableStatus(after.status)) return;
    const passed = isUsableStatus(last.status) || known?.passed === true;
    const turn = turnOf(last, after, known, nowMs);
    if (passed || turn.turnedAtMs !== undefined) this.#troubled.set(key, { instance: after, passed, ...turn });
  }

  /** It is no longer registered. */
  forget(instance: Instance): void {
    this.#troubled.delete(keyOf(instance));
  }

  /**
   * Decides after what was noted, for `size` instances of which `passing` are usable by themselves, when `hostsLost` hosts
   * were lost within the window and still are; the brake while it holds and keeps anybody. To be asked after every change,
   * when a second host is lost, and at `endsMs`.
   */
  judge(
    { size, passing, hostsLost }: { readonly size: number; readonly passing: number; readonly hostsLost: number },
    { monotonicMs: nowMs, wallMs }: Moment,
  ): Brake | undefined {
    const countsLost = hostsLost > 1;
    const halfPass = passing * 2 >= size;
    if (this.#beganMs !== undefined && (halfPass || nowMs >= (this.#episode?.endsMs ?? nowMs))) {
      this.#beganMs = undefined;
      this.#calmSinceMs = halfPass ? nowMs : undefined;
    }
    if (this.#beganMs === undefined) {
      if (this.#calmSinceMs !== undefined && nowMs - this.#calmSinceMs >= brakeWindowMs) this.#episode = undefined;
      if (halfPass) this.#calmSinceMs ??= nowMs;
      else this.#calmSinceMs = undefined;
      this.#keepsLost = false;
      if (this.#isDue(size, nowMs, countsLost)) this.#begin(nowMs, wallMs);
    }
    if (this.#beganMs !== undefined && countsLost) this.#keepsLost = true;
    return this.#beganMs !== undefined && this.#keepsAny() ? this.#episode?.brake : undefined;
  }

  /** Whether it is used although it is critical or lost. */
  keeps(instance: Instance): boolean {
    const troubled = this.#troubled.get(keyOf(instance));
    return troubled !== undefined && this.#isKept(troubled);
  }

  /** For the disk; undefined when a later run would not miss it. */
  saved(now: Moment): SavedBrake | undefined {
    const wallOf = (monotonicMs: number): number => Math.round(now.wallMs - (now.monotonicMs - monotonicMs));
    const turned: SavedBrake['turned'][number][] = [];
    for (const [key, troubled] of this.#troubled) {
      const { passed, turnedAtMs, byLoss } = troubled;
      if (turnedAtMs === undefined || !Number.isFinite(turnedAtMs)) continue;
      if (!this.#isKept(troubled) && now.monotonicMs - turnedAtMs > brakeWindowMs) continue;
      turned.push({ key, atMs: wallOf(turnedAtMs), passed, ...(byLoss && { byLoss }) });
    }
    const beganMs = this.#beganMs === undefined ? undefined : wallOf(this.#beganMs);
    const episode = this.#episode && {
      sinceMs: this.#episode.brake.sinceMs,
      untilMs: sameMoment(this.#episode.brake.untilMs, wallOf(this.#episode.endsMs)),
      beganMs,
      ...(this.#keepsLost && { keepsLost: true }),
    };
    return turned.length === 0 && episode === undefined ? undefined : { turned, episode };
  }

  /**
   * What a former run had saved, as far as it can be true: no moment lies in the future, and no hold is longer than it may
   * be. `find` gives the instance that is registered under a key now.
   */
  static restored(
    { turned, episode }: SavedBrake,
    find: (key: string) => Instance | undefined,
    now: Moment,
  ): ServiceBrake {
    const brake = new ServiceBrake();
    const monotonicOf = (wallMs: number): number => now.monotonicMs - Math.max(0, now.wallMs - wallMs);
    for (const { key, atMs, passed, byLoss = false } of turned) {
      const instance = find(key);
      if (instance === undefined || isUsableStatus(instance.status)) continue;
      brake.#troubled.set(key, { instance, passed, turnedAtMs: monotonicOf(atMs), byLoss });
    }
    if (episode === undefined) return brake;
    const sinceMs = Math.min(episode.sinceMs, now.wallMs);
    const untilMs = Math.min(episode.untilMs, sinceMs + brakeHoldMs);
    const endsMs = now.monotonicMs + (untilMs - now.wallMs);
    brake.#episode = { brake: Object.freeze({ sinceMs, untilMs }), endsMs };
    if (episode.beganMs !== undefined && endsMs > now.monotonicMs) {
      brake.#beganMs = monotonicOf(episode.beganMs);
      brake.#keepsLost = episode.keepsLost === true;
    }
    return brake;
  }

  #isDue(size: number, nowMs: number, countsLost: boolean): boolean {
    return this.#troubled.size * 2 > size && isMassWithdrawal(this.#troubled.values(), size, { nowMs, countsLost });
  }

  #begin(nowMs: number, wallMs: number): void {
    if (this.#episode === undefined) {
      const brake = Object.freeze({ sinceMs: wallMs, untilMs: wallMs + brakeHoldMs });
      this.#episode = { brake, endsMs: nowMs + brakeHoldMs };
    } else if (nowMs >= this.#episode.endsMs) return;
    this.#beganMs = nowMs;
  }

  /** It turned with those that set the brake off, or within a window after that. */
  #isKept({ instance, passed, turnedAtMs }: Troubled): boolean {
    if (this.#beganMs === undefined || turnedAtMs === undefined) return false;
    if (!counts(instance, this.#keepsLost) || instance.draining || !passed) return false;
    return Math.abs(turnedAtMs - this.#beganMs) <= brakeWindowMs;
  }

  #keepsAny(): boolean {
    for (const troubled of this.#troubled.values()) if (this.#isKept(troubled)) return true;
    return false;
  }
}

/** What was told before, unless the wall clock was set meanwhile. */
function sameMoment(toldMs: number, nowMs: number): number {
  return Math.abs(toldMs - nowMs) < clockSlackMs ? toldMs : nowMs;
}

/**
 * When the instance turned critical or lost, where anybody saw it. One that was critical and is lost meanwhile keeps what
 * is known; one that was lost for longer than a window and returns critical turned when it returned.
 */
function turnOf(
  last: Instance,
  after: Instance,
  known: Troubled | undefined,
  nowMs: number,
): Pick<Troubled, 'turnedAtMs' | 'byLoss'> {
  const before = { turnedAtMs: known?.turnedAtMs, byLoss: known?.byLoss === true };
  if (after.status === 'lost') {
    if (before.turnedAtMs !== undefined) return before;
    if (last.status === 'critical') return { turnedAtMs: Number.NEGATIVE_INFINITY, byLoss: false };
    return { turnedAtMs: nowMs, byLoss: true };
  }
  if (after.status !== 'critical') return { turnedAtMs: undefined, byLoss: false };
  if (last.status === 'critical') return before;
  const isOld = before.byLoss && nowMs - (before.turnedAtMs ?? nowMs) > brakeWindowMs;
  return { turnedAtMs: isOld ? nowMs : (before.turnedAtMs ?? nowMs), byLoss: false };
}
