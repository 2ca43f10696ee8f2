import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError } from '../src/base/errors.ts';
import type { PortMap, PortMapping } from './kernel/port-map.ts';

export interface LinkPublisherOptions {
  readonly portMap: PortMap | undefined;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly random: () => number;
  /** All mappings as they should be now. */
  readonly mappings: () => readonly PortMapping[];
  /** The kernel has the mappings of a call of `mappings`. */
  readonly onPublished: () => void;
}

/** Keeps the links' part of the port map as it should be: one change at a time, the latest wins, again when it fails. */
export class LinkPublisher {
  static readonly owner = 'links';
  static readonly retryFirstMs = 250;
  static readonly retryCeilingMs = 10_000;
  static readonly condition = 'link.map';
  readonly #options: LinkPublisherOptions;
  readonly #backoff: Backoff;
  #dirty = false;
  #running: Promise<void> | undefined;
  #cancelRetry: (() => void) | undefined;

  constructor(options: LinkPublisherOptions) {
    this.#options = options;
    this.#backoff = new Backoff(LinkPublisher.retryFirstMs, LinkPublisher.retryCeilingMs, options.random);
  }

  /** Something has changed. Resolves when the kernel has it, or has refused it; never rejects. */
  publish(): Promise<void> {
    if (this.#options.portMap === undefined) {
      this.#options.onPublished();
      return Promise.resolve();
    }
    this.#dirty = true;
    this.#cancelRetry?.();
    this.#running ??= this.#run(this.#options.portMap).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  close(): void {
    this.#cancelRetry?.();
    this.#options.conditions.clear(LinkPublisher.condition);
  }

  async #run(portMap: PortMap): Promise<void> {
    const { conditions, clock, mappings, onPublished } = this.#options;
    // What changes in the same turn goes out together.
    await Promise.resolve();
    while (this.#dirty) {
      this.#dirty = false;
      try {
        await portMap.set(LinkPublisher.owner, mappings());
        this.#backoff.reset();
        conditions.clear(LinkPublisher.condition);
        onPublished();
      } catch (error) {
        conditions.raise(
          LinkPublisher.condition,
          'error',
          `the kernel does not take the virtual addresses' ports: ${describeError(error)}`,
          'look at the conditions of the kernel table; it is tried again',
        );
        if (!this.#dirty) this.#cancelRetry = clock.after(this.#backoff.nextMs(), () => void this.publish());
      }
    }
  }
}
