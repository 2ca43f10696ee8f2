import type { Clock } from '../../src/base/clock.ts';
import type { Container } from './container.ts';
import { sigkill } from './signals.ts';

/** A container that still runs this long after its stop timeout has decided to stay. */
const graceMs = 5000;

interface Kill {
  readonly signal: number;
  /** The engine's time of the event. */
  readonly eventMs: number;
  /** How old the event was when it was seen; 0 for one from the future, which is a clock that was set back. */
  readonly ageMs: number;
  /** When that was, by the clock that never jumps. */
  readonly seenMs: number;
}

/**
 * Which containers are on their way out. A kill event begins it when the signal is the container's own stop signal or
 * SIGKILL; other signals mean nothing. It ends with the container, or is taken back when the container still runs 5 s
 * after its stop timeout.
 */
export class Drains {
  static readonly maxUndecided = 1024;
  readonly #clock: Clock;
  readonly #onChange: (id: string) => void;
  readonly #draining = new Map<string, { readonly eventMs: number; readonly cancel: () => void }>();
  /** Kill events of containers that have not been inspected yet. */
  readonly #undecided = new Map<string, Kill>();

  /** `onChange` is called in the same turn in which `isDraining` changes by an event or by time. */
  constructor(clock: Clock, onChange: (id: string) => void) {
    this.#clock = clock;
    this.#onChange = onChange;
  }

  isDraining(id: string): boolean {
    return this.#draining.has(id);
  }

  get size(): number {
    return this.#draining.size;
  }

  /** A kill event; `container` is what is known of it, undefined when it has not been inspected. */
  kill(id: string, signal: number, eventMs: number, container: Container | undefined): void {
    const ageMs = Math.max(0, this.#clock.nowMs() - eventMs);
    const kill: Kill = { signal, eventMs, ageMs, seenMs: this.#clock.monotonicMs() };
    if (container !== undefined) this.#decide(container, kill);
    else {
      this.#undecided.set(id, kill);
      const [oldest] = this.#undecided.keys();
      if (this.#undecided.size > Drains.maxUndecided && oldest !== undefined) this.#undecided.delete(oldest);
    }
  }

  /**
   * Decides about a kill event that came before the container was known, and forgets what was about an earlier run whose
   * end nobody told. To be called before what was inspected is published.
   */
  inspected(container: Container): void {
    const draining = this.#draining.get(container.id);
    if (draining !== undefined && draining.eventMs < Date.parse(container.startedAt)) this.forget(container.id);
    const kill = this.#undecided.get(container.id);
    if (kill === undefined) return;
    this.#undecided.delete(container.id);
    this.#decide(container, kill);
  }

  /** The container has died. */
  forget(id: string): void {
    this.#undecided.delete(id);
    this.#draining.get(id)?.cancel();
    this.#draining.delete(id);
  }

  /** Ends all timers. */
  close(): void {
    for (const { cancel } of this.#draining.values()) cancel();
    this.#draining.clear();
    this.#undecided.clear();
  }

  #decide(container: Container, { signal, eventMs, ageMs, seenMs }: Kill): void {
    if (signal !== container.stopSignal && signal !== sigkill) return;
    // What happened to an earlier run of the container says nothing about this one.
    if (eventMs < Date.parse(container.startedAt)) return;
    // Events that `since` repeats are old.
    const remainingMs = container.stopTimeoutMs + graceMs - ageMs - (this.#clock.monotonicMs() - seenMs);
    if (remainingMs <= 0) return;
    const { id } = container;
    const running = this.#draining.get(id);
    running?.cancel();
    const cancel = this.#clock.after(remainingMs, () => {
      this.#draining.delete(id);
      this.#onChange(id);
    });
    this.#draining.set(id, { eventMs, cancel });
    if (running === undefined) this.#onChange(id);
  }
}
