import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Ipv4Range } from '../../src/model/address.ts';
import { LineWatcher } from './line-watcher.ts';

const firstSuspicionMs = 50;
/** Somebody who undoes our work again and again is answered at this pace. */
const lastSuspicionMs = 5000;

export interface VipWatchOptions {
  readonly table: string;
  /** They may grow. */
  readonly ranges: readonly Ipv4Range[];
  readonly clock: Clock;
  /** How often to look without being told of a change. */
  readonly everyMs: number;
  /** Whether a process id, as the kernel counts, is of a child of ours. */
  readonly isOwn: (pid: number) => boolean;
  /** Something of ours may have been changed by others: compare all of it. */
  readonly onSuspicion: () => void;
  /** It is time to look. */
  readonly onTick: () => void;
}

/**
 * Hears of changes to the table and the route that others make: through monitors of nftables and of routes, which only
 * give a hint, and by the clock, for what they miss.
 */
export class VipWatch {
  readonly #options: VipWatchOptions;
  readonly #backoff = new Backoff(firstSuspicionMs, lastSuspicionMs);
  readonly #watchers: readonly LineWatcher[];
  #cancelSuspicion: (() => void) | undefined;
  #cancelTick: (() => void) | undefined;
  #mentioned = false;
  #closed = false;

  constructor(options: VipWatchOptions) {
    this.#options = options;
    const { clock, table, ranges } = options;
    const ours = new RegExp(` (?:ip|bridge) ${table}( |$)`);
    const onGap = (): void => this.#suspect();
    this.#watchers = [
      new LineWatcher({ command: ['nft', 'monitor'], clock, onGap, onLine: (line) => this.#onNftLine(line, ours) }),
      new LineWatcher({
        command: ['ip', '-4', '-o', 'monitor', 'route'],
        clock,
        onGap,
        onLine: (line) => {
          if (line.startsWith('Deleted') && ranges.some(({ text }) => line.includes(text))) this.#suspect();
        },
      }),
    ];
    this.#scheduleTick();
  }

  /** To be called when a look found all as it should be: the next suspicion is quick again. */
  calm(): void {
    this.#backoff.reset();
  }

  close(): void {
    this.#closed = true;
    this.#cancelSuspicion?.();
    this.#cancelTick?.();
    for (const watcher of this.#watchers) watcher.close();
  }

  /** The lines of a transaction come first, then one that says whose it was. */
  #onNftLine(line: string, ours: RegExp): void {
    const by = /^# new generation \d+ by process (\d+)/.exec(line);
    if (by === null) {
      this.#mentioned ||= ours.test(line);
      return;
    }
    if (this.#mentioned && !this.#options.isOwn(Number(by[1]))) this.#suspect();
    this.#mentioned = false;
  }

  #suspect(): void {
    if (this.#closed || this.#cancelSuspicion !== undefined) return;
    this.#cancelSuspicion = this.#options.clock.after(this.#backoff.nextMs(), () => {
      this.#cancelSuspicion = undefined;
      this.#options.onSuspicion();
    });
  }

  #scheduleTick(): void {
    this.#cancelTick = this.#options.clock.after(this.#options.everyMs, () => {
      if (this.#closed) return;
      this.#scheduleTick();
      this.#options.onTick();
    });
  }
}
