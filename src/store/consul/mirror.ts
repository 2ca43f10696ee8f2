import { Backoff } from '../../base/backoff.ts';
import { describeError, isLegateError, LegateError } from '../../base/errors.ts';
import type { CounterCell } from '../../base/metrics.ts';
import type { ConsulStoreConfig } from '../../config/config.ts';
import type { Mirror, MirrorOptions } from '../mirror.ts';
import { type CallOptions, ConsulClient, type WireOperation } from './client.ts';
import { type ConsulFault, faultOf } from './faults.ts';
import {
  difference,
  hostCheck,
  hostCheckId,
  isOurs,
  type NodePicture,
  nodeName,
  parseNodes,
  parsePicture,
  wantedPicture,
} from './mirror-entries.ts';
import { readSecrets } from './secrets.ts';

/** The catalog is compared this often also when nothing changed here: it may have been lost, or changed by others. */
const compareMs = 60_000;
/** Changes within this time are written together. */
const settleMs = 200;
const firstRetryMs = 1000;
const retryCeilingMs = 60_000;
const callLimitMs = 10_000;
const closeLimitMs = 3000;
const maxOperations = 48;
/** Other hosts that are looked at in one comparison. */
const maxLostHosts = 200;
const condition = 'store.mirror';

/**
 * Mirrors this host's instances into Consul's catalog, on a node of their own, `<mesh>-<host>`. The catalog's API is used
 * and not that of an agent: it does not matter then which agent or server is asked, nothing is left over on another one
 * after a fail-over, and no agent deletes or judges what it does not know. The price is that nobody but a sidecar says
 * that a host is lost: each that mirrors marks the nodes of lost hosts, and the host itself takes that back.
 */
export function openConsulMirror(config: ConsulStoreConfig, options: MirrorOptions): Mirror {
  return new ConsulMirror(config, options);
}

class ConsulMirror implements Mirror {
  readonly #config: ConsulStoreConfig;
  readonly #options: MirrorOptions;
  readonly #closed = new AbortController();
  readonly #written: CounterCell;
  readonly #running: Promise<void>;
  #wake: (() => void) | undefined;
  #seen = '';

  constructor(config: ConsulStoreConfig, options: MirrorOptions) {
    this.#config = config;
    this.#options = options;
    this.#written = options.metrics.counter('legate_store_mirror_writes_total', "Entries written to Consul's catalog.");
    this.#running = this.#run();
  }

  changed(): void {
    this.#wake?.();
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#running;
    const check = hostCheck(nodeName(this.#options), 'critical', 'its sidecar has left');
    await this.#withClient(AbortSignal.timeout(closeLimitMs), async (client, call) => {
      const now = await picture(client, check.Node, call);
      if (now !== undefined && this.#owns(now)) await client.txn([{ Check: { Verb: 'set', Check: check } }], call);
    }).catch((error: unknown) =>
      this.#options.log.debug('the mirror could not say that it ends', { 'store.reason': describeError(error) }),
    );
    this.#options.conditions.clear(condition);
  }

  async #run(): Promise<void> {
    const { clock, random = Math.random } = this.#options;
    const { signal } = this.#closed;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs, random);
    while (!signal.aborted) {
      const wanted = this.#fingerprint();
      const done = await this.#attempt(signal);
      if (done) {
        backoff.reset();
        this.#seen = wanted;
      }
      await this.#pause(done ? compareMs * (0.8 + 0.4 * random()) : backoff.nextMs(), done);
      await clock.sleep(signal.aborted ? 0 : settleMs).catch(() => undefined);
    }
  }

  /** Until the time is over or, after a success, something differs from what was last written. */
  async #pause(forMs: number, mayWake: boolean): Promise<void> {
    const { clock } = this.#options;
    const ended = new AbortController();
    const end = (): void => ended.abort();
    if (this.#closed.signal.aborted) return;
    this.#closed.signal.addEventListener('abort', end, { once: true });
    if (mayWake) {
      this.#wake = () => {
        if (this.#fingerprint() !== this.#seen) end();
      };
      this.#wake();
    }
    await clock.sleep(forMs, ended.signal).catch(() => undefined);
    this.#wake = undefined;
    this.#closed.signal.removeEventListener('abort', end);
  }

  async #attempt(signal: AbortSignal): Promise<boolean> {
    const { conditions } = this.#options;
    try {
      await this.#withClient(signal, (client, call) => this.#compare(client, call));
      conditions.clear(condition);
      return true;
    } catch (error) {
      if (signal.aborted) return false;
      if (!isLegateError(error)) throw error;
      const hint = error.hint ?? 'the message is what Consul itself says';
      conditions.raise(condition, 'warning', `the mirror in Consul's catalog is not current: ${error.message}`, hint);
      return false;
    }
  }

  async #compare(client: ConsulClient, call: CallOptions): Promise<void> {
    const { host, mesh, instances } = this.#options;
    const wanted = wantedPicture(this.#options, instances());
    for (const node of await this.#nodesOf(host.id, client, call)) {
      if (node !== wanted.node.Node) await this.#remove(node, client, call);
    }
    const now = await picture(client, wanted.node.Node, call);
    if (now !== undefined && !this.#owns(now)) {
      throw new LegateError('E_CONFLICT', `node ${wanted.node.Node} is not of this host's making`, {
        hint: `if it is left over: consul catalog deregister it by its name; it lacks legate-mesh ${mesh} and legate-host ${host.id}`,
      });
    }
    await this.#write(difference(now, wanted), client, call);
    for (const id of [...this.#lost()].slice(0, maxLostHosts)) await this.#markLost(id, client, call);
  }

  /** Takes away a node from a time at which this host had another name; what others have put on it stays. */
  async #remove(node: string, client: ConsulClient, call: CallOptions): Promise<void> {
    const now = await picture(client, node, call);
    if (now === undefined) return;
    const nothing = { node: now.node, services: new Map(), checks: new Map() };
    const operations = difference(now, nothing);
    await this.#write(operations, client, call);
    if (operations.length === now.services.size) await client.deregisterNode(node, call);
  }

  async #write(operations: readonly WireOperation[], client: ConsulClient, call: CallOptions): Promise<void> {
    for (let at = 0; at < operations.length; at += maxOperations) {
      const part = operations.slice(at, at + maxOperations);
      await client.txn(part, call);
      this.#written.value += part.length;
    }
  }

  async #markLost(hostId: string, client: ConsulClient, call: CallOptions): Promise<void> {
    for (const node of await this.#nodesOf(hostId, client, call)) {
      const now = await picture(client, node, call);
      if (now === undefined || now.checks.get(hostCheckId)?.Status === 'critical') continue;
      const Check = hostCheck(node, 'critical', 'the host is lost');
      await this.#write([{ Check: { Verb: 'set', Check } }], client, call);
    }
  }

  async #nodesOf(hostId: string, client: ConsulClient, call: CallOptions): Promise<string[]> {
    const nodes = parseNodes(await client.nodesWith(`legate-host:${hostId}`, call));
    return nodes.filter((node) => isOurs(node, this.#options.mesh, hostId)).map(({ Node }) => Node);
  }

  #owns({ node }: NodePicture): boolean {
    return isOurs(node, this.#options.mesh, this.#options.host.id);
  }

  #lost(): Set<string> {
    return new Set([...this.#options.lostHosts()].filter((id) => id !== this.#options.host.id));
  }

  /** Text that is the same as long as there is nothing new to write. */
  #fingerprint(): string {
    const { services, checks } = wantedPicture(this.#options, this.#options.instances());
    return JSON.stringify([[...services.values()], [...checks.values()], [...this.#lost()].sort()]);
  }

  /** Runs with the first endpoint that answers; the files are read anew each time. */
  async #withClient(
    signal: AbortSignal,
    run: (client: ConsulClient, call: CallOptions) => Promise<void>,
  ): Promise<void> {
    const secrets = readSecrets(this.#config);
    let problem: ConsulFault | undefined;
    for (const url of this.#config.endpoints) {
      const client = new ConsulClient(url, secrets);
      try {
        return await run(client, { signal, timeoutMs: callLimitMs });
      } catch (error) {
        if (isLegateError(error) || signal.aborted) throw error;
        problem = faultOf(url.text, error);
        if (problem.kind !== 'away') break;
      } finally {
        client.close();
      }
    }
    throw problem?.toLegateError(this.#config.credentialsFile) ?? new Error('there is no endpoint');
  }
}

async function picture(client: ConsulClient, node: string, call: CallOptions): Promise<NodePicture | undefined> {
  const [services, checks] = await Promise.all([client.nodeServices(node, call), client.nodeChecks(node, call)]);
  return parsePicture(services, checks);
}
