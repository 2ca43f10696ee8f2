import { setMaxListeners } from 'node:events';
import { Backoff } from '../../base/backoff.ts';
import type { Clock } from '../../base/clock.ts';
import { isLegateError, LegateError } from '../../base/errors.ts';
import { Latest } from '../../base/feed.ts';
import type { Log } from '../../base/log.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import type { ConsulStoreConfig, StoreUrl } from '../../config/config.ts';
import type { StoreStatus } from '../store.ts';
import { ConsulClient } from './client.ts';
import { awayError, ConsulFault, faultOf, tokenHint } from './faults.ts';
import { identify, idKey, readIdentity } from './identity.ts';
import type { KeyNames } from './names.ts';
import { readSecrets, type Secrets, sameSecrets } from './secrets.ts';

/** An operation that has no answer after this long may or may not have happened. Consul waits 7 s for a new leader. */
export const operationLimitMs = 10_000;
/** How long an endpoint may take to tell whether there is a leader, and then which store it has. */
const leaderLimitMs = 2000;
const identifyLimitMs = 5000;
/** How long a blocking query on the store's id waits; it is what notices a lost server when nothing else is going on. */
const holdMs = 60_000;
/** Consul adds up to a sixteenth to a wait; then the answer has to come. */
export const blockingMarginMs = 10_000;
const firstRetryMs = 200;
const retryCeilingMs = 2000;

/** An endpoint that answers, and the store that it has. Aborted when another takes its place. */
export interface Link {
  readonly client: ConsulClient;
  readonly storeId: string;
  readonly signal: AbortSignal;
}

export interface ConnectionOptions {
  readonly config: ConsulStoreConfig;
  readonly names: KeyNames;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly random: () => number;
}

/**
 * Knows which endpoint to ask and whether the store is there: one loop finds an endpoint that has a leader, learns the
 * store's id, and stays with it until somebody doubts it. The others only ask for the link.
 */
export class Connection {
  readonly status: Latest<StoreStatus>;
  readonly #options: ConnectionOptions;
  readonly #closed = new AbortController();
  readonly #waiting = new Set<() => void>();
  readonly #moves: CounterCell;
  #secrets: Secrets;
  #clients = new Map<string, ConsulClient>();
  #link: (Link & { readonly end: AbortController }) | undefined;
  #doubt = new AbortController();
  /** The link is not used while it is looked at. */
  #checking = true;
  #running: Promise<void> | undefined;

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#secrets = readSecrets(options.config);
    setMaxListeners(0, this.#closed.signal);
    this.status = new Latest<StoreStatus>({ state: 'connecting', sinceMs: options.clock.nowMs(), storeId: undefined });
    this.#moves = options.metrics.counter(
      'legate_store_endpoint_changes_total',
      'Moves to another member of the store.',
    );
  }

  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  start(): void {
    this.#running = this.#run().catch((error: unknown) => {
      if (!this.closed.aborted) throw error;
    });
  }

  async close(): Promise<void> {
    if (this.closed.aborted) return;
    this.#closed.abort(closedError());
    this.#wake();
    this.#link?.end.abort(closedError());
    await this.#running;
    for (const client of this.#clients.values()) client.close();
    this.#setStatus('closed');
  }

  /** Waits for an endpoint that answers. E_STORE_AWAY at once where it is known that there is none, E_CLOSED after `close`. */
  async link(signal: AbortSignal): Promise<Link> {
    for (;;) {
      this.closed.throwIfAborted();
      signal.throwIfAborted();
      if (this.#link !== undefined && !this.#checking) return this.#link;
      const { state, problem, hint } = this.status.value;
      if (state === 'away') throw awayError(problem ?? 'Consul is away', hint);
      await this.#next(signal);
    }
  }

  /** As `link`, but waits for as long as it takes. */
  async linkWhenBack(signal: AbortSignal): Promise<Link> {
    while (this.#link === undefined || this.#checking) {
      this.closed.throwIfAborted();
      signal.throwIfAborted();
      await this.#next(signal);
    }
    return this.#link;
  }

  /** Something went wrong with this link: it is looked at anew before it is used again. */
  doubt(link: Link): void {
    if (this.#link !== link || this.#checking) return;
    this.#checking = true;
    this.#doubt.abort();
  }

  /** Rejects, with doubt, when the link's endpoint has another store by now. */
  async confirm(link: Link, signal: AbortSignal): Promise<void> {
    const { storeId } = await readIdentity(link.client, this.#options.names, { signal, timeoutMs: identifyLimitMs });
    if (storeId === link.storeId) return;
    this.doubt(link);
    throw awayError(`Consul at ${link.client.where} has another store than before`);
  }

  /**
   * Runs an operation over the link within the time limit. What fails becomes a LegateError, and what says that the
   * endpoint is away or refuses the token makes the link doubted.
   */
  async use<T>(signal: AbortSignal | undefined, run: (link: Link, signal: AbortSignal) => Promise<T>): Promise<T> {
    this.closed.throwIfAborted();
    signal?.throwIfAborted();
    const ended = new AbortController();
    const stop = (reason: unknown): void => ended.abort(reason);
    const onClose = (): void => stop(closedError());
    const onAbort = (): void => stop(signal?.reason);
    const endpoints = this.#options.config.endpoints.map(({ text }) => text).join(', ');
    const late = this.#options.clock.after(operationLimitMs, () =>
      stop(awayError(`no answer from Consul (${endpoints}) within ${operationLimitMs / 1000} s`)),
    );
    this.closed.addEventListener('abort', onClose, { once: true });
    signal?.addEventListener('abort', onAbort, { once: true });
    let link: Link | undefined;
    try {
      link = await this.link(ended.signal);
      return await run(link, ended.signal);
    } catch (error) {
      if (link !== undefined && !this.closed.aborted && !signal?.aborted) this.#consider(link, error);
      throw error instanceof ConsulFault ? error.toLegateError(this.#options.config.credentialsFile) : error;
    } finally {
      late();
      this.closed.removeEventListener('abort', onClose);
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** A token that lacks one right is no reason to look for another endpoint; one that is gone, or was replaced, is. */
  #consider(link: Link, error: unknown): void {
    if (isLegateError(error, 'E_STORE_AWAY')) this.doubt(link);
    if (!(error instanceof ConsulFault)) return;
    const token = error.kind === 'refused' && (/acl not found/i.test(error.message) || this.#secretsChanged());
    if (token || error.kind === 'away' || error.kind === 'absent') this.doubt(link);
  }

  #secretsChanged(): boolean {
    try {
      return !sameSecrets(readSecrets(this.#options.config), this.#secrets);
    } catch {
      return true;
    }
  }

  async #run(): Promise<void> {
    const { clock, random } = this.#options;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs, random);
    while (!this.closed.aborted) {
      this.#doubt = new AbortController();
      const problem = await this.#find();
      if (problem !== undefined) {
        this.#setStatus('away', problem);
        await clock.sleep(backoff.nextMs(), this.closed).catch(() => undefined);
        continue;
      }
      const beganMs = clock.monotonicMs();
      await this.#hold();
      // One that is doubted again at once is not asked again at once.
      if (clock.monotonicMs() - beganMs > retryCeilingMs) backoff.reset();
      else if (backoff.failures > 0) await clock.sleep(backoff.nextMs(), this.closed).catch(() => undefined);
      else backoff.nextMs();
    }
  }

  /** Tries the endpoints in turn, beginning with the present one; gives why the last did not do. */
  async #find(): Promise<LegateError | undefined> {
    const { endpoints, credentialsFile } = this.#options.config;
    const present = this.#link?.client.where;
    const at = Math.max(
      0,
      endpoints.findIndex(({ text }) => text === present),
    );
    let problem: LegateError | undefined;
    for (const url of [...endpoints.slice(at), ...endpoints.slice(0, at)]) {
      try {
        this.#rereadSecrets();
        const client = this.#client(url);
        const signal = this.closed;
        await client.leader({ signal, timeoutMs: leaderLimitMs });
        const storeId = await identify(client, this.#options.names, { signal, timeoutMs: identifyLimitMs });
        this.#become(client, storeId);
        return undefined;
      } catch (error) {
        this.closed.throwIfAborted();
        const fault = isLegateError(error) ? error : faultOf(url.text, error).toLegateError(credentialsFile);
        // A refused token says more than that another endpoint is not there.
        if (problem?.code !== 'E_UNAUTHORIZED') problem = fault;
      }
    }
    return problem;
  }

  /** Stays until the link is doubted, the store's id changes, or the endpoint is lost. */
  async #hold(): Promise<void> {
    const link = this.#link;
    const ended = this.#doubt.signal;
    const onClose = (): void => this.#doubt.abort();
    this.closed.addEventListener('abort', onClose, { once: true });
    try {
      let index: number | undefined;
      while (link !== undefined && !ended.aborted) {
        const waitMs = holdMs * (0.8 + 0.4 * this.#options.random());
        const timeoutMs = waitMs * 1.1 + blockingMarginMs;
        const blocking = index === undefined ? {} : { index, waitMs };
        const listing = await link.client.list(idKey(this.#options.names), { signal: ended, timeoutMs, ...blocking });
        const pair = listing.pairs.find(({ key }) => key === idKey(this.#options.names));
        if (pair === undefined || Buffer.from(pair.value).toString('latin1') !== link.storeId) break;
        index = index !== undefined && listing.index < index ? undefined : listing.index;
      }
    } catch {
      // Whatever it is, the endpoint is looked at anew, and that tells.
    } finally {
      this.closed.removeEventListener('abort', onClose);
      this.#checking = true;
    }
  }

  #become(client: ConsulClient, storeId: string): void {
    const before = this.#link;
    if (before?.client !== client || before.storeId !== storeId) {
      const end = new AbortController();
      setMaxListeners(0, end.signal);
      this.#link = { client, storeId, signal: end.signal, end };
      if (before !== undefined) {
        if (before.client.where !== client.where) this.#moves.value += 1;
        before.end.abort(awayError(`the store is reached at ${client.where} now`));
      }
    }
    this.#checking = false;
    this.#setStatus('connected');
    this.#wake();
  }

  /** The files may have been replaced; then connections are made with what they say now. */
  #rereadSecrets(): void {
    const secrets = readSecrets(this.#options.config);
    if (sameSecrets(secrets, this.#secrets)) return;
    this.#secrets = secrets;
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #client(url: StoreUrl): ConsulClient {
    const known = this.#clients.get(url.text);
    if (known !== undefined) return known;
    const client = new ConsulClient(url, this.#secrets);
    this.#clients.set(url.text, client);
    return client;
  }

  #setStatus(state: StoreStatus['state'], problem?: LegateError): void {
    const before = this.status.value;
    const storeId = state === 'connected' ? this.#link?.storeId : before.storeId;
    if (before.state === state && before.storeId === storeId && before.problem === problem?.message) return;
    if (state !== before.state) this.#tell(state, problem);
    const sinceMs = before.state === state ? before.sinceMs : this.#options.clock.nowMs();
    const hint = problem?.hint ?? tokenHint(this.#options.config.credentialsFile);
    this.status.set({ state, sinceMs, storeId, ...(problem && { problem: problem.message, hint }) });
    this.#wake();
  }

  #tell(state: StoreStatus['state'], problem: LegateError | undefined): void {
    const { log } = this.#options;
    if (state === 'away')
      log.warn('the store is away', { 'store.reason': problem?.message ?? '', hint: problem?.hint ?? '' });
    else if (state === 'connected')
      log.info('the store is connected', { 'store.endpoint': this.#link?.client.where ?? '' });
  }

  /** Waits for the next change of link or status. */
  #next(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const wake = (): void => {
        this.#waiting.delete(wake);
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      const onAbort = (): void => {
        this.#waiting.delete(wake);
        reject(signal.reason);
      };
      this.#waiting.add(wake);
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  #wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }
}

export function closedError(): LegateError {
  return new LegateError('E_CLOSED', 'the store is closed');
}
