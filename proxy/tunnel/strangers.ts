import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import type { Log } from '../../src/base/log.ts';
import { printable, truncate } from '../../src/base/text.ts';

/** Addresses of which is told at a time; further ones are only counted by the metrics. */
export const maxTold = 20;
/** Between two lines in the log, and two changes of what status says, about one address. */
export const tellEveryMs = 60_000;
/** What is said of an address is over after so long without another of its connections turned away. */
export const quietMs = 5 * 60_000;
const prefix = 'tunnel.stranger.';

export interface StrangersOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly conditions: Conditions;
  readonly nameOf: (hostId: string) => string;
}

interface Told {
  message: string;
  hint: string;
  /** Monotonic. */
  toldMs: number;
  /** Turned away since it was told last. */
  more: number;
  cancel: () => void;
}

/**
 * Tells of callers who are no hosts of the mesh and act as if they were, and of those who come in masses. Anybody can bring
 * either about, so that each address is told of once a minute, and only so many addresses.
 */
export class Strangers {
  readonly #options: StrangersOptions;
  readonly #told = new Map<string, Told>();

  constructor(options: StrangersOptions) {
    this.#options = options;
  }

  /** Somebody showed a certificate that names a host of this mesh, and that is not accepted: why, for people. */
  claimed(address: string, hostId: string, problem: string): void {
    const name = this.#options.nameOf(hostId);
    const host = name === hostId ? `host ${hostId}` : `host ${name} (${hostId})`;
    const message = `a caller from ${at(address)} calls itself ${host} and was refused: ${problem}`;
    const hint = `if it is that host, legate ca status there says more; else somebody passes for it: keep ${at(address)} away from this port`;
    this.#tell(`claim.${at(address)}`, { message, hint, address });
  }

  /** Somebody has more connections than are taken: which, for people. */
  flooded(address: string, problem: string): void {
    const message = `connections from ${at(address)} to the tunnel port are turned away: ${problem}`;
    const hint = `find out what runs at ${at(address)}; if it is none of yours, keep it away from this port`;
    this.#tell(`flood.${at(address)}`, { message, hint, address });
  }

  close(): void {
    for (const name of [...this.#told.keys()]) this.#end(name);
  }

  #tell(name: string, { message, hint, address }: { message: string; hint: string; address: string }): void {
    const { clock, log, conditions } = this.#options;
    const nowMs = clock.monotonicMs();
    const known = this.#told.get(name);
    if (known === undefined && this.#told.size >= maxTold) return;
    const told = known ?? { message, hint, toldMs: nowMs, more: 0, cancel: () => undefined };
    this.#told.set(name, told);
    told.cancel();
    told.cancel = clock.after(quietMs, () => this.#end(name));
    told.more += 1;
    if (known !== undefined && nowMs - known.toldMs < tellEveryMs) return;
    // The condition itself is logged when it begins and when it says something else.
    if (known?.message === message) {
      log.warn('connections to the tunnel port go on being turned away', {
        'client.address': at(address),
        'tunnel.problem': message,
        'tunnel.connections': told.more,
      });
    }
    Object.assign(told, { message, hint, toldMs: nowMs, more: 0 });
    conditions.raise(prefix + name, 'warning', message, hint, { 'client.address': at(address) });
  }

  #end(name: string): void {
    this.#told.get(name)?.cancel();
    if (this.#told.delete(name)) this.#options.conditions.clear(prefix + name);
  }
}

function at(address: string): string {
  return printable(truncate(address, 60));
}
