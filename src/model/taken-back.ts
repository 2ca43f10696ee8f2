import type { Weights } from './routes.ts';

/** That a side of a split was taken back to 0 by the rollout guard of a host, and what that host had seen. */
export interface TakenBack {
  readonly tag: string;
  /** What it had until then. */
  readonly weight: number;
  /** Whose verdict it was. */
  readonly hostId: string;
  /** Wall clock, milliseconds. */
  readonly atMs: number;
  /** Of that host's requests to the side, within the guard's window. */
  readonly requests: number;
  readonly errors: number;
  /** The side that it was compared with, and its requests within the same time. */
  readonly against: string;
  readonly againstRequests: number;
  readonly againstErrors: number;
}

/** The weights once a side is taken back. */
export function withoutSide(weights: Weights, tag: string): Weights {
  return { ...weights, [tag]: 0 };
}

/** Whether a guard may take the side back: it has weight, and another one has as much at least. */
export function mayTakeBack(weights: Weights, tag: string): boolean {
  const weight = Object.hasOwn(weights, tag) ? (weights[tag] ?? 0) : 0;
  return weight > 0 && Object.entries(weights).some(([other, each]) => other !== tag && each >= weight);
}

/** `canary=5 stable=95`, as `legate split` takes it. */
export function weightsText(weights: Weights): string {
  return Object.entries(weights)
    .map(([tag, weight]) => `${tag}=${weight}`)
    .join(' ');
}
