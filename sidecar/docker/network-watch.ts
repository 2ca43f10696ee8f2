import { isDeepStrictEqual } from 'node:util';
import { Latest, type Observable } from '../../src/base/feed.ts';
import type { DockerNetwork } from './network.ts';

/** The engine's networks, read again when asked; however often that is, one request runs and at most one follows. */
export class NetworkWatch {
  readonly #fetch: (signal: AbortSignal) => Promise<readonly DockerNetwork[]>;
  readonly #all = new Latest<readonly DockerNetwork[]>([]);
  #byId: ReadonlyMap<string, DockerNetwork> = new Map();
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(fetch: (signal: AbortSignal) => Promise<readonly DockerNetwork[]>) {
    this.#fetch = fetch;
  }

  get all(): Observable<readonly DockerNetwork[]> {
    return this.#all;
  }

  get byId(): ReadonlyMap<string, DockerNetwork> {
    return this.#byId;
  }

  /** Resolves when the networks are known as they are now or later. */
  refresh(signal: AbortSignal): Promise<void> {
    if (this.#running === undefined) {
      this.#running = this.#read(signal).finally(() => {
        this.#running = undefined;
      });
      return this.#running;
    }
    // What is being read may be older than the reason for asking.
    this.#next ??= this.#running
      .catch(() => undefined)
      .then(() => {
        this.#next = undefined;
        return this.refresh(signal);
      });
    return this.#next;
  }

  async #read(signal: AbortSignal): Promise<void> {
    const networks = await this.#fetch(signal);
    if (isDeepStrictEqual(networks, this.#all.value)) return;
    this.#byId = new Map(networks.map((network) => [network.id, network]));
    this.#all.set(networks);
  }
}
