import { isDeepStrictEqual } from 'node:util';
import { Coalesced } from '../../src/base/coalesced.ts';
import { Latest, type Observable } from '../../src/base/feed.ts';
import type { DockerNetwork } from './network.ts';

/** The engine's networks, read again when asked; however often that is, one request runs and at most one follows. */
export class NetworkWatch {
  readonly #fetch: (signal: AbortSignal) => Promise<readonly DockerNetwork[]>;
  readonly #all = new Latest<readonly DockerNetwork[]>([]);
  #byId: ReadonlyMap<string, DockerNetwork> = new Map();
  readonly #reads = new Coalesced((signal: AbortSignal) => this.#read(signal));

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
    return this.#reads.run(signal);
  }

  async #read(signal: AbortSignal): Promise<void> {
    const networks = await this.#fetch(signal);
    if (isDeepStrictEqual(networks, this.#all.value)) return;
    this.#byId = new Map(networks.map((network) => [network.id, network]));
    this.#all.set(networks);
  }
}
