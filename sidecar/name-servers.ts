import type { NameListener, NameServer } from '../dns/server.ts';
import type { PortMap } from '../proxy/kernel/port-map.ts';
import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, isLegateError, systemCode } from '../src/base/errors.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import { explainListenError } from '../src/base/sockets.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';
import type { Topology } from '../src/model/topology.ts';
import type { NameServerDocument } from './admin/documents.ts';
import { BridgeNameServers } from './network/bridge-name-servers.ts';

const firstRetryMs = 250;
const retryCeilingMs = 10_000;
/** Where the name server listens on its virtual address: the same at each start, so that flows in the kernel stay right. */
const privateNamePort = 15_053;
const namePort = 53;

export interface NameServersOptions {
  readonly server: NameServer;
  readonly clock: Clock;
  readonly log: Log;
  readonly conditions: Conditions;
  readonly signal: AbortSignal;
}

/**
 * Where the name server listens: the endpoints of the configuration, the virtual address, and each bridge's gateway. One
 * that cannot be had is a condition with its cause, is tried again, and keeps nothing else from working.
 */
export class NameServers {
  readonly #options: NameServersOptions;
  /** What is wanted and down now, by `purpose listen`, with why. */
  readonly #down = new Map<string, NameServerDocument>();
  /** How a listener is shown where that is not what it is bound to: the virtual address. */
  readonly #shownAs = new Map<string, string>();

  constructor(options: NameServersOptions) {
    this.#options = options;
  }

  /** Resolves when each endpoint was tried once. */
  async listenOn(endpoints: readonly Endpoint[]): Promise<void> {
    await Promise.all(endpoints.map((endpoint) => this.#keep(endpoint, 'configured', async () => undefined)));
  }

  /** Listens on a private port of the virtual address and maps port 53 of it there. */
  async listenOnVirtualAddress(address: string, map: PortMap): Promise<void> {
    const shown = formatEndpoint({ address, port: namePort });
    await this.#keep({ address, port: privateNamePort }, 'virtual address', async ({ endpoint }) => {
      this.#shownAs.set(formatEndpoint(endpoint), shown);
      const mapping = { address, port: namePort, privatePort: endpoint.port };
      await map.set('dns', [
        { transport: 'udp', ...mapping },
        { transport: 'tcp', ...mapping },
      ]);
    });
  }

  /** Follows the bridges until the signal is aborted. */
  followBridges(topology: Observable<Topology>): Promise<void> {
    const { clock, log, conditions, signal } = this.#options;
    const servers = new BridgeNameServers({
      topology,
      listen: (endpoint, purpose) => this.#open(endpoint, purpose),
      explain: (error) =>
        Promise.resolve(
          isLegateError(error) ? error : explainListenError(error, { address: '', port: namePort }, 'udp'),
        ),
      clock,
      log,
      conditions,
    });
    return servers.follow(signal);
  }

  documents(): NameServerDocument[] {
    const up = this.#options.server
      .listeners()
      .map((each) => ({ ...each, listen: this.#shownAs.get(each.listen) ?? each.listen }));
    return [...up, ...this.#down.values()];
  }

  /** A listener, or a LegateError that says who holds the port. */
  async #open(endpoint: Endpoint, purpose: string): Promise<NameListener> {
    const key = `${purpose} ${formatEndpoint(endpoint)}`;
    try {
      const listener = await this.#options.server.listen(endpoint, purpose);
      this.#down.delete(key);
      return listener;
    } catch (error) {
      const cause = isLegateError(error) && systemCode(error.cause) !== undefined ? error.cause : error;
      const explained = systemCode(cause) === undefined ? error : await this.#explain(cause, endpoint);
      const problem = describeError(explained);
      const listen = this.#shownAs.get(formatEndpoint(endpoint)) ?? formatEndpoint(endpoint);
      this.#down.set(key, { listen, purpose, state: 'down', problem, queries: 0 });
      throw explained;
    }
  }

  async #explain(error: unknown, endpoint: Endpoint): Promise<unknown> {
    const syscall = typeof error === 'object' && error !== null && 'syscall' in error ? error.syscall : '';
    return explainListenError(error, endpoint, syscall === 'listen' ? 'tcp' : 'udp');
  }

  /** Opens one listener, again and again with back-off where it cannot be opened. Resolves after the first try. */
  async #keep(endpoint: Endpoint, purpose: string, onOpen: (listener: NameListener) => Promise<void>): Promise<void> {
    const { clock, conditions, signal } = this.#options;
    const id = `dns.listen.${formatEndpoint(endpoint)}`;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs);
    const attempt = async (): Promise<boolean> => {
      try {
        await onOpen(await this.#open(endpoint, purpose));
        conditions.clear(id);
        return true;
      } catch (error) {
        if (signal.aborted) return true;
        const hint = isLegateError(error) ? (error.hint ?? '') : '';
        conditions.raise(id, 'error', `no name server on ${formatEndpoint(endpoint)}: ${describeError(error)}`, hint);
        return false;
      }
    };
    if (await attempt()) return;
    const retry = async (): Promise<void> => {
      while (!signal.aborted) {
        await clock.sleep(backoff.nextMs(), signal);
        if (await attempt()) return;
      }
    };
    retry().catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
  }
}
