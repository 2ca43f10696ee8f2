import type { Clock } from '../base/clock.ts';
import type { Observable } from '../base/feed.ts';
import type { DeclaredPorts } from '../model/link.ts';

/**
 * How long the record that was made for a declared link outlives the last container that declares it: longer than it
 * takes to replace a container, or to hear from Docker after a start.
 */
export const awaitedGraceMs = 60_000;

export interface DeclaredServicesOptions {
  /** Undefined: containers declare nothing. */
  readonly declared: Observable<DeclaredPorts> | undefined;
  readonly clock: Clock;
  /** The service is to be looked at. */
  readonly onDue: (name: string) => void;
}

/** The services that containers of this host declare links to, and what becomes of those that were made for no more. */
export class DeclaredServices {
  readonly #options: DeclaredServicesOptions;
  /** Services that nobody may care for any more, with what cancels the look at them. */
  readonly #leaving = new Map<string, () => void>();
  #seen: DeclaredPorts | undefined;
  #unsubscribe: (() => void) | undefined;

  constructor(options: DeclaredServicesOptions) {
    this.#options = options;
  }

  has(name: string): boolean {
    return this.#options.declared?.value.has(name) ?? false;
  }

  /** The port to give a service that has none yet: the smallest that is declared. */
  portOf(name: string): number | undefined {
    return this.#options.declared?.value.get(name)?.[0];
  }

  start(): void {
    const { declared, onDue } = this.#options;
    if (declared === undefined) return;
    this.#unsubscribe = declared.subscribe((ports) => this.#look(ports));
    this.#seen = declared.value;
    for (const name of declared.value.keys()) onDue(name);
  }

  /** Looks at the service again when the time of grace is over. */
  later(name: string): void {
    if (this.#leaving.has(name)) return;
    const cancel = this.#options.clock.after(awaitedGraceMs, () => {
      this.#leaving.delete(name);
      this.#options.onDue(name);
    });
    this.#leaving.set(name, cancel);
  }

  close(): void {
    this.#unsubscribe?.();
    for (const cancel of this.#leaving.values()) cancel();
    this.#leaving.clear();
  }

  #look(ports: DeclaredPorts): void {
    const before = this.#seen ?? ports;
    this.#seen = ports;
    for (const { key, after } of ports.changesSince(before)) {
      if (after === undefined) {
        this.later(key);
        continue;
      }
      this.#leaving.get(key)?.();
      this.#leaving.delete(key);
      this.#options.onDue(key);
    }
  }
}
