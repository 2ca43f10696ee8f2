import type { Clock } from '../src/base/clock.ts';

interface Suspicion {
  /** Monotonic: until then its instances are tried last. */
  untilMs: number;
  /** How often in a row it was found silent. */
  times: number;
}

/**
 * Other hosts that did not answer at all (no word within the time for an attempt, or no route): their instances are tried
 * last for a while, whatever the service, so that only the first connection pays for a host that lost power, and not one
 * for each instance. Each time the while is twice as long, as long as nothing there answers; one connection forgives all. A
 * refusal is an answer: the host lives. Only links know of it: names and other hosts see what its lease says.
 */
export class Suspects {
  static readonly firstMs = 2000;
  /** Short, because the first try after it costs its client a second at most, and a host that is back wants work. */
  static readonly maxMs = 15_000;
  /** Hosts that are known at a time; of more the first is forgotten. */
  static readonly maxHosts = 1000;
  /** Counts the changes, for those who keep lists by it. */
  version = 0;
  readonly #clock: Clock;
  readonly #selfId: string;
  readonly #hosts = new Map<string, Suspicion>();

  constructor({ clock, selfId }: { readonly clock: Clock; readonly selfId: string }) {
    this.#clock = clock;
    this.#selfId = selfId;
  }

  /** How many hosts are suspect now. */
  get count(): number {
    const nowMs = this.#clock.monotonicMs();
    let count = 0;
    for (const { untilMs } of this.#hosts.values()) if (untilMs > nowMs) count += 1;
    return count;
  }

  /** A host did not answer. Those who tried it while it was suspect already tell nothing new. */
  silent(hostId: string): void {
    if (hostId === this.#selfId) return;
    const nowMs = this.#clock.monotonicMs();
    const known = this.#hosts.get(hostId);
    if (known !== undefined && known.untilMs > nowMs) return;
    const times = (known?.times ?? 0) + 1;
    const first = this.#hosts.keys().next();
    if (known === undefined && this.#hosts.size >= Suspects.maxHosts && first.done !== true) {
      this.#hosts.delete(first.value);
    }
    const lastsMs = Math.min(Suspects.firstMs * 2 ** (times - 1), Suspects.maxMs);
    this.#hosts.set(hostId, { untilMs: nowMs + lastsMs, times: Math.min(times, 16) });
    this.version += 1;
  }

  /** It answered, or its lease is back. */
  forgive(hostId: string): void {
    if (this.#hosts.delete(hostId)) this.version += 1;
  }

  /** Monotonic: until when its instances are tried last; undefined when they are not. */
  untilMs(hostId: string): number | undefined {
    const untilMs = this.#hosts.get(hostId)?.untilMs;
    return untilMs === undefined || untilMs <= this.#clock.monotonicMs() ? undefined : untilMs;
  }

  /** Whether it is another host, of which no word comes but by the network. */
  isOther(hostId: string): boolean {
    return hostId !== this.#selfId;
  }
}
