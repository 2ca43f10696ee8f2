/** Figures that only grow. */
export interface Totals {
  readonly received: number;
  readonly sent: number;
  readonly connections: number;
}

interface Sample extends Totals {
  readonly atMs: number;
}

/** How quickly figures grow, averaged over the last seconds; looked at now and then, so that counting costs nothing more. */
export class Rates {
  /** How often the figures are looked at. */
  static readonly everyMs = 2000;
  static readonly samples = 5;
  #samples: Sample[] = [];

  sample(atMs: number, { received, sent, connections }: Totals): void {
    const last = this.#samples.at(-1);
    // What nobody uses costs no memory.
    if (connections === 0 && last === undefined) return;
    if (this.#samples.length === Rates.samples) this.#samples.shift();
    this.#samples.push({ atMs, received, sent, connections });
  }

  /** A second. */
  since(nowMs: number, now: Totals): Totals {
    const first = this.#samples[0] ?? { atMs: nowMs - Rates.everyMs, received: 0, sent: 0, connections: 0 };
    const seconds = Math.max(nowMs - first.atMs, 1) / 1000;
    const per = (grown: number): number => Math.round((grown / seconds) * 10) / 10;
    return {
      received: per(now.received - first.received),
      sent: per(now.sent - first.sent),
      connections: per(now.connections - first.connections),
    };
  }
}
