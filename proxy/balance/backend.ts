import { type Dial, formatDial } from '../../src/model/dial.ts';
import type { Instance } from '../../src/model/instance.ts';
import type { EjectionReason } from '../outlier.ts';
import type { AnswerTimes } from '../slowness.ts';
import { hashOfText, mixed } from './hashing.ts';
import { Latency } from './p2c-latency.ts';

/** How far away an instance is: on this host, in its zone, elsewhere. */
export const distances = ['host', 'zone', 'other'] as const;
export type Distance = 0 | 1 | 2;

/**
 * What this host remembers of one instance while its service has a link here: kept from one snapshot to the next by the
 * instance's id, so that counts, turns and ejections survive a change. Plain fields: the relay counts on its hot path.
 */
export class Backend {
  readonly id: string;
  instance: Instance;
  dial: Dial;
  /** How far away it is: 0 on this host, 1 in its zone, 2 elsewhere. */
  distance: Distance;
  /** Connections that run or are being opened. */
  active = 0;
  /** Connections that were opened, ever. */
  total = 0;
  /** Connect failures since the last success. */
  failures = 0;
  /** Answers in a row that were the server's own errors. */
  errors = 0;
  /** Monotonic; undefined when it is not ejected. */
  ejectedUntilMs: number | undefined;
  /** Why it was ejected last. */
  ejectedFor: EjectionReason = 'failures';
  /** How long its answers took in this window; undefined while nobody is ejected for that. */
  times: AnswerTimes | undefined;
  /** Ejections that are not yet forgotten. */
  ejections = 0;
  /** Monotonic; since when it has made up for the last one, once that is over. */
  cleanSinceMs = 0;
  /** From asking to the beginning of the answer: of requests, or of connecting where there are none. */
  readonly latency = new Latency();
  /** The smooth weighted round-robin's credit. */
  credit = 0;
  /** What its place in the order of a hashed key comes from: the same on every host. */
  readonly seed: number;

  constructor(instance: Instance, dial: Dial, distance: Distance) {
    this.id = instance.id;
    this.seed = mixed(hashOfText(instance.id));
    this.instance = instance;
    this.dial = dial;
    this.distance = distance;
  }

  /** What is dialled, for people. */
  get place(): string {
    return formatDial(this.dial, this.instance);
  }
}
