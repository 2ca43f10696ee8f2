import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { LegateError, systemCode } from '../../src/base/errors.ts';
import type { Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import type { Topology } from '../../src/model/topology.ts';

const namePort = 53;
const firstRetryMs = 500;
const lastRetryMs = 30_000;
/** An interface that has just come up may not have its address yet; it is no fault before so many tries. */
const quietTries = 3;

/** A name server that listens. */
export interface NameServer {
  readonly endpoint: Endpoint;
  close(): Promise<void>;
}

export interface BridgeNameServersOptions {
  readonly topology: Observable<Topology>;
  /** Starts a name server, over udp and tcp; `purpose` is for people: `bridge docker0`. */
  readonly listen: (endpoint: Endpoint, purpose: string) => Promise<NameServer>;
  /** What a failure to listen means; `explainListenError`. */
  readonly explain: (error: unknown, endpoint: Endpoint, transport: 'tcp' | 'udp') => Promise<LegateError>;
  readonly conditions: Conditions;
  readonly clock: Clock;
  readonly log: Log;
}

interface Listening {
  readonly stop: AbortController;
  readonly ended: Promise<void>;
}

/** Keeps a name server at the gateway of each container bridge, as bridges come and go. */
export class BridgeNameServers {
  readonly #options: BridgeNameServersOptions;
  readonly #listening = new Map<string, Listening>();

  constructor(options: BridgeNameServersOptions) {
    this.#options = options;
  }

  /** Follows the topology until `signal` is aborted; resolves when all its name servers are closed. */
  async follow(signal: AbortSignal): Promise<void> {
    const { topology } = this.#options;
    const unsubscribe = topology.subscribe((next) => this.#reconcile(next));
    this.#reconcile(topology.value);
    if (!signal.aborted) {
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
    }
    unsubscribe();
    const running = [...this.#listening.values()];
    for (const { stop } of running) stop.abort();
    await Promise.all(running.map(({ ended }) => ended));
  }

  #reconcile(topology: Topology): void {
    const wanted = new Map<string, string>();
    for (const { gateway, interface: name } of topology.bridges) if (gateway !== undefined) wanted.set(gateway, name);
    for (const [address, { stop }] of this.#listening) if (!wanted.has(address)) stop.abort();
    for (const [address, name] of wanted) {
      const present = this.#listening.get(address);
      if (present !== undefined && !present.stop.signal.aborted) continue;
      const stop = new AbortController();
      // The same address may come back on a new bridge before the old listener has closed.
      const ended = (present?.ended ?? Promise.resolve()).then(() => this.#keep(address, name, stop.signal));
      const listening = { stop, ended };
      this.#listening.set(address, listening);
      void ended.then(() => {
        if (this.#listening.get(address) === listening) this.#listening.delete(address);
      });
    }
  }

  /** Listens at one gateway until `signal` is aborted, trying again for as long as it fails. */
  async #keep(address: string, bridge: string, signal: AbortSignal): Promise<void> {
    const { clock, conditions, log } = this.#options;
    const endpoint = { address, port: namePort };
    const condition = `dns.listen.${formatEndpoint(endpoint)}`;
    const backoff = new Backoff(firstRetryMs, lastRetryMs);
    while (!signal.aborted) {
      try {
        const server = await this.#options.listen(endpoint, `bridge ${bridge}`);
        conditions.clear(condition);
        log.debug('name server on a bridge', { 'dns.listen': formatEndpoint(endpoint), 'network.bridge': bridge });
        await aborted(signal);
        await server.close().catch(() => undefined);
      } catch (error) {
        await this.#report(error, endpoint, bridge, condition, backoff.failures + 1);
        await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
      }
    }
    conditions.clear(condition);
  }

  async #report(error: unknown, endpoint: Endpoint, bridge: string, condition: string, tries: number): Promise<void> {
    const root = rootOf(error);
    const absent = systemCode(root) === 'EADDRNOTAVAIL';
    if (absent && tries <= quietTries) return;
    const transport = root instanceof Error && 'syscall' in root && root.syscall === 'listen' ? 'tcp' : 'udp';
    const explained = error instanceof LegateError ? error : await this.#options.explain(error, endpoint, transport);
    const hint = explained.code === 'E_IN_USE' ? `set dns.bridges: off, or ${explained.hint}` : explained.hint;
    this.#options.conditions.raise(
      condition,
      'warning',
      `no name server for containers on ${bridge}: ${explained.message}`,
      hint ?? 'set dns.bridges: off to do without; containers then need --dns with another address of ours',
      { 'dns.listen': formatEndpoint(endpoint), 'network.bridge': bridge },
    );
  }
}

/** The system's own error below what others made of it. */
function rootOf(error: unknown): unknown {
  let root = error;
  for (let depth = 0; depth < 4 && root instanceof Error && root.cause !== undefined; depth += 1) root = root.cause;
  return root;
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
