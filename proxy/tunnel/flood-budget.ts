import { ProtocolFault } from './frames.ts';
import { floodBurst, floodPerSecond } from './limits.ts';

/**
 * What a peer may spend on frames that cost the receiver more than their sender: openings, resets, pings, empty and tiny
 * bodies, frames for streams that have ended. It fills again by and by; who overdraws it is cut off. No sidecar comes near
 * it: at 40,000 requests a second a tenth of what is filled in is used.
 */
export class FloodBudget {
  readonly #nowMs: () => number;
  #left = floodBurst;
  #filledMs: number;

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
    this.#filledMs = nowMs();
  }

  spend(cost: number, what: string): void {
    this.#left -= cost;
    if (this.#left >= 0) return;
    const nowMs = this.#nowMs();
    this.#left = Math.min(floodBurst, this.#left + ((nowMs - this.#filledMs) / 1000) * floodPerSecond);
    this.#filledMs = nowMs;
    if (this.#left < 0) throw new ProtocolFault('flood', `a flood, at last of ${what}`);
  }
}
