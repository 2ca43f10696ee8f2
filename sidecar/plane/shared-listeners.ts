import net from 'node:net';
import { getSystemErrorName } from 'node:util';
import type { Clock } from '../../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';

const retryEveryMs = 2;
/** How long those who held an address before may take to let go of it. */
const retryLimitMs = 2000;

/** What node's net module makes and child processes can be sent; it is bound, and whoever gets it listens. */
interface BoundHandle {
  getsockname(out: { port?: number }): number;
  close(): void;
}

interface Shared {
  readonly handle: BoundHandle;
  readonly bound: Endpoint;
}

export interface SharedListenersOptions {
  readonly clock: Clock;
  /** Others hold the addresses until `letGo` is called: workers of the sidecar before. */
  readonly held: boolean;
  /** Hands the handle over; the worker is one that asked. */
  readonly send: (slot: number, endpoint: Endpoint, handle: unknown) => void;
  readonly refuse: (slot: number, endpoint: Endpoint, code: string, message: string) => void;
}

/**
 * The listeners that all workers share: control binds each address once and keeps the handle, but never accepts on it.
 * Connections that come while no worker is there wait in the kernel for the next one.
 */
export class SharedListeners {
  readonly #options: SharedListenersOptions;
  readonly #shared = new Map<string, Shared>();
  /** Workers that wait until the addresses are free. */
  #waiting: { readonly slot: number; readonly endpoint: Endpoint }[] = [];
  #held: boolean;
  #closed = false;

  constructor(options: SharedListenersOptions) {
    this.#options = options;
    this.#held = options.held;
  }

  /** Where the address is bound; undefined while it is not. */
  boundOf(endpoint: Endpoint): Endpoint | undefined {
    return this.#shared.get(formatEndpoint(endpoint))?.bound;
  }

  /** A worker wants to listen. Throws what binding fails with. */
  ask(slot: number, endpoint: Endpoint): void {
    if (this.#closed) throw new BindError('ECANCELED', endpoint);
    if (this.#held) this.#waiting.push({ slot, endpoint });
    else this.#options.send(slot, endpoint, this.#share(endpoint).handle);
  }

  /** Those who held the addresses let go of them now: binds as soon as each is free. */
  async letGo(): Promise<void> {
    this.#held = false;
    const waiting = this.#waiting;
    this.#waiting = [];
    await Promise.all(waiting.map((one) => this.#bindSoon(one)));
  }

  close(): void {
    this.#closed = true;
    for (const { handle } of this.#shared.values()) handle.close();
  }

  async #bindSoon({ slot, endpoint }: { readonly slot: number; readonly endpoint: Endpoint }): Promise<void> {
    const { clock } = this.#options;
    const untilMs = clock.monotonicMs() + retryLimitMs;
    for (;;) {
      try {
        this.ask(slot, endpoint);
        return;
      } catch (error) {
        const code = error instanceof BindError ? error.code : '';
        if (code !== 'EADDRINUSE' || clock.monotonicMs() >= untilMs) {
          this.#options.refuse(slot, endpoint, code, error instanceof Error ? error.message : String(error));
          return;
        }
      }
      await clock.sleep(retryEveryMs);
    }
  }

  #share(endpoint: Endpoint): Shared {
    const key = formatEndpoint(endpoint);
    const known = this.#shared.get(key);
    if (known !== undefined) return known;
    const shared = bind(endpoint);
    this.#shared.set(key, shared);
    return shared;
  }
}

class BindError extends Error {
  readonly code: string;

  constructor(code: string, endpoint: Endpoint) {
    super(`bind ${code} ${formatEndpoint(endpoint)}`);
    this.code = code;
  }
}

/**
 * A socket that is bound and not listened on. node's documented calls only give one that this process listens on, and
 * would have to accept from; what its own cluster module shares between processes is made by this function.
 */
function bind(endpoint: Endpoint): Shared {
  const make: unknown = Reflect.get(net, '_createServerHandle');
  if (typeof make !== 'function') throw new BindError('ENOSYS', endpoint);
  const handle: BoundHandle | number = Reflect.apply(make, net, [
    endpoint.address,
    endpoint.port,
    net.isIPv6(endpoint.address) ? 6 : 4,
  ]);
  if (typeof handle === 'number') throw new BindError(codeOf(handle), endpoint);
  const out: { port?: number } = {};
  // An address that is taken shows only now.
  const failed = handle.getsockname(out);
  if (failed !== 0) {
    handle.close();
    throw new BindError(codeOf(failed), endpoint);
  }
  return { handle, bound: { address: endpoint.address, port: out.port ?? endpoint.port } };
}

function codeOf(errno: number): string {
  return getSystemErrorName(errno);
}
