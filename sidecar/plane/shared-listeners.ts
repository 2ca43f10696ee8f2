import net from 'node:net';
import { getSystemErrorName } from 'node:util';
import type { Clock } from '../../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { closeHandle, type PassedSocket } from './passed-sockets.ts';

const retryEveryMs = 2;
/** How long those who held an address before may take to let go of it. */
const retryLimitMs = 2000;

interface Shared {
  /** What node's net module makes and child processes can be sent; it is bound, and whoever gets it listens. */
  readonly handle: object;
  readonly bound: Endpoint;
}

export interface SharedListenersOptions {
  readonly clock: Clock;
  /** Others hold the addresses until `letGo` is called: workers of the sidecar before. What `adopt` brings is free. */
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
  /** Those of the sidecar before that no worker has asked for yet. */
  readonly #unasked = new Set<string>();
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

  /** Whether a worker waits for an address that others hold. */
  get isAwaited(): boolean {
    return this.#waiting.length > 0;
  }

  /** A worker wants to listen. Throws what binding fails with. */
  ask(slot: number, endpoint: Endpoint): void {
    if (this.#closed) throw new BindError('ECANCELED', endpoint);
    const key = formatEndpoint(endpoint);
    if (this.#held && !this.#shared.has(key)) this.#waiting.push({ slot, endpoint });
    else {
      this.#unasked.delete(key);
      this.#options.send(slot, endpoint, this.#share(endpoint).handle);
    }
  }

  /**
   * Takes over sockets that the workers of the sidecar before listen on, and goes on listening on them: whoever connects
   * meanwhile waits in the kernel for whichever process accepts next.
   */
  adopt(sockets: readonly PassedSocket[]): void {
    for (const { endpoint, handle } of sockets) {
      const key = formatEndpoint(endpoint);
      const bound = this.#closed || this.#shared.has(key) ? -1 : boundTo(handle, endpoint);
      if (typeof bound === 'number') closeHandle(handle);
      else {
        this.#shared.set(key, { handle, bound });
        this.#unasked.add(key);
      }
    }
    if (this.#closed) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { slot, endpoint } of waiting) this.ask(slot, endpoint);
  }

  /** Those who held the addresses let go of them now: binds as soon as each is free that did not come by `adopt`. */
  async letGo(): Promise<void> {
    this.#held = false;
    // What nobody listens on any more is to be refused.
    for (const key of this.#unasked) {
      const shared = this.#shared.get(key);
      if (shared !== undefined) closeHandle(shared.handle);
      this.#shared.delete(key);
    }
    this.#unasked.clear();
    const waiting = this.#waiting;
    this.#waiting = [];
    await Promise.all(waiting.map((one) => this.#bindSoon(one)));
  }

  close(): void {
    this.#closed = true;
    for (const { handle } of this.#shared.values()) closeHandle(handle);
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
  const handle: unknown = Reflect.apply(make, net, [
    endpoint.address,
    endpoint.port,
    net.isIPv6(endpoint.address) ? 6 : 4,
  ]);
  if (typeof handle !== 'object' || handle === null) throw new BindError(codeOf(Number(handle)), endpoint);
  // An address that is taken shows only now.
  const bound = boundTo(handle, endpoint);
  if (typeof bound === 'number') {
    closeHandle(handle);
    throw new BindError(codeOf(bound), endpoint);
  }
  return { handle, bound };
}

/** Where a handle is bound that was asked for with `endpoint`; a negative number says why it is not. */
function boundTo(handle: object, endpoint: Endpoint): Endpoint | number {
  const look: unknown = Reflect.get(handle, 'getsockname');
  const out: { port?: number } = {};
  const failed: unknown = typeof look === 'function' ? Reflect.apply(look, handle, [out]) : Number.NaN;
  if (failed !== 0) return Number(failed) || -1;
  return { address: endpoint.address, port: out.port ?? endpoint.port };
}

function codeOf(errno: number): string {
  return getSystemErrorName(errno);
}
