import { setMaxListeners } from 'node:events';
import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, isLegateError, LegateError } from '../src/base/errors.ts';
import type { Log } from '../src/base/log.ts';
import { Bell } from '../src/catalog/bell.ts';
import type { StoreConfig } from '../src/config/config.ts';
import type { Store } from '../src/store/store.ts';
import { storeText } from './store-target.ts';

const firstRetryMs = 250;
const retryCeilingMs = 15_000;
/** A store that does not answer at once is nothing to speak of yet. */
const connectGraceMs = 3000;
/** How long the loops that live on a store may take to end before it is closed all the same. */
const endLimitMs = 5000;
/** Loops that listen for the end of one store's use. */
const maxLoops = 256;
const condition = 'store.open';

export interface StoreSessionOptions {
  readonly open: (config: StoreConfig) => Promise<Store>;
  /** Where the store says that the mesh lives now, if this sidecar can go there by itself. */
  readonly redirect: (store: Store, config: StoreConfig, signal: AbortSignal) => Promise<StoreConfig | undefined>;
  /** Checks that the store may be used; rejects when it must not be. */
  readonly prepare: (store: Store, config: StoreConfig, signal: AbortSignal) => Promise<void>;
  /** Starts what lives on the store, until the signal is aborted. What goes wrong in a loop before is not caught here. */
  readonly begin: (store: Store, config: StoreConfig, signal: AbortSignal) => readonly Promise<unknown>[];
  readonly clock: Clock;
  readonly log: Log;
  readonly conditions: Conditions;
  readonly signal: AbortSignal;
}

/** A store in use. */
interface Tenure {
  readonly store: Store;
  readonly config: StoreConfig;
  readonly stop: AbortController;
  readonly loops: readonly Promise<unknown>[];
}

/** The way to a store that is to be used. */
interface Pursuit {
  readonly abort: AbortController;
  readonly done: Promise<void>;
}

/**
 * The store that this sidecar uses, and the way to the next. A store that cannot be opened, does not answer, or must not be
 * used (damaged, no right, another mesh's) is a condition with its cause, and is tried again; names and links go on from
 * the last snapshot meanwhile. When another store is to be used, the present one is used until that one answers, unless
 * both would be in the same folder.
 */
export class StoreSession {
  readonly #options: StoreSessionOptions;
  #current: Tenure | undefined;
  #pursuit: Pursuit | undefined;
  /** Opened for the pursuit, and not in use yet. */
  #opened: { readonly store: Store; readonly config: StoreConfig } | undefined;
  /** An embedded store that the mesh has left: others read in it where to. */
  #left: Store | undefined;
  #problem: string | undefined;
  #wanted: StoreConfig | undefined;

  constructor(options: StoreSessionOptions) {
    this.#options = options;
  }

  /** The store in use, undefined while there is none. */
  get store(): Store | undefined {
    return this.#current?.store;
  }

  /** What the store in use was opened with. */
  get config(): StoreConfig | undefined {
    return this.#current?.config;
  }

  /** The store that is in use or is being gone to. */
  get wanted(): StoreConfig | undefined {
    return this.#wanted;
  }

  /** Why there is none, or not the one that is wanted. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /**
   * Begins to use a store instead of the present one; a later call wins. Resolves as soon as it is in use, has failed once,
   * is away, or has not answered for a while; it is tried on in any case. With `linger` an embedded store that is offered to others stays
   * open for them.
   */
  use(config: StoreConfig, { linger = false }: { readonly linger?: boolean } = {}): Promise<void> {
    const before = this.#pursuit;
    before?.abort.abort();
    const abort = new AbortController();
    const until = AbortSignal.any([this.#options.signal, abort.signal]);
    return new Promise((resolve) => {
      const done = (async () => {
        await before?.done;
        await this.#pursue(config, { linger, until, tried: resolve });
      })();
      this.#pursuit = { abort, done };
    });
  }

  /** The embedded store that the mesh has left needs no longer be there for others. */
  async endLingering(): Promise<void> {
    const left = this.#left;
    this.#left = undefined;
    await left?.close();
  }

  async close(): Promise<void> {
    this.#pursuit?.abort.abort();
    await this.#pursuit?.done;
    await this.#end();
    await this.#closeOpened();
    await this.endLingering();
  }

  async #pursue(
    config: StoreConfig,
    { until, linger, tried }: { until: AbortSignal; linger: boolean; tried: () => void },
  ): Promise<void> {
    const { clock } = this.#options;
    const backoff = new Backoff(firstRetryMs, retryCeilingMs);
    let wanted = config;
    let lingers = linger;
    let hops = 0;
    while (!until.aborted) {
      const next = await this.#attempt(wanted, { until, linger: lingers, tried });
      if (next === 'used') break;
      if (next !== 'failed') {
        wanted = next;
        lingers = true;
        hops += 1;
      }
      // One that leads on does so at once; several may lead in a circle.
      if (next !== 'failed' && hops === 1) continue;
      tried();
      await clock.sleep(backoff.nextMs(), until).catch(() => undefined);
    }
    tried();
    if (until.aborted) await this.#closeOpened();
  }

  async #attempt(
    config: StoreConfig,
    { until, linger, tried }: { until: AbortSignal; linger: boolean; tried: () => void },
  ): Promise<'used' | 'failed' | StoreConfig> {
    const { redirect, prepare, conditions } = this.#options;
    this.#wanted = config;
    try {
      const store = await this.#open(config, until);
      await this.#connected(store, config, until, tried);
      const next = await redirect(store, config, until);
      if (next !== undefined) {
        this.#opened = undefined;
        await this.#leave(store, config, true);
        return next;
      }
      await prepare(store, config, until);
      until.throwIfAborted();
      await this.#end(linger);
      this.#opened = undefined;
      this.#begin(store, config);
      this.#problem = undefined;
      conditions.clear(condition);
      return 'used';
    } catch (error) {
      if (until.aborted) return 'failed';
      if (!isLegateError(error)) throw error;
      // One that is only away is waited for; every other fault may be of the way in which it was opened.
      if (error.code !== 'E_STORE_AWAY' || config.kind === 'embedded') await this.#closeOpened();
      this.#tell(describeError(error), error.hint);
      return 'failed';
    }
  }

  async #open(config: StoreConfig, until: AbortSignal): Promise<Store> {
    if (this.#opened?.config === config) return this.#opened.store;
    await this.#closeOpened();
    if (config.kind === 'embedded') {
      await this.endLingering();
      // Two cannot be in one folder.
      if (this.#current?.config.kind === 'embedded') await this.#end();
    }
    until.throwIfAborted();
    const store = await this.#options.open(config);
    this.#opened = { store, config };
    return store;
  }

  async #closeOpened(): Promise<void> {
    const opened = this.#opened;
    this.#opened = undefined;
    await opened?.store.close();
  }

  #begin(store: Store, config: StoreConfig): void {
    const { begin, signal, log } = this.#options;
    const stop = new AbortController();
    const until = AbortSignal.any([signal, stop.signal]);
    setMaxListeners(maxLoops, until);
    this.#current = { store, config, stop, loops: begin(store, config, until) };
    log.info('the store is in use', { 'store.kind': store.kind, 'store.where': storeText(config) });
  }

  /** Ends the use of the present store: first what lives on it, then the store. */
  async #end(linger = false): Promise<void> {
    const current = this.#current;
    if (current === undefined) return;
    this.#current = undefined;
    current.stop.abort();
    await Promise.race([Promise.allSettled(current.loops), this.#options.clock.sleep(endLimitMs)]);
    await this.#leave(current.store, current.config, linger);
  }

  async #leave(store: Store, config: StoreConfig, linger: boolean): Promise<void> {
    if (!linger || config.kind !== 'embedded' || config.listen === undefined) await store.close();
    else this.#left = store;
  }

  /** Waits until the store answers, however long; says why it does not. */
  async #connected(store: Store, config: StoreConfig, until: AbortSignal, tried: () => void): Promise<void> {
    const bell = new Bell();
    const endWaiting = store.status.subscribe(() => bell.ring());
    let spoke = false;
    const speak = (): void => {
      spoke = true;
      tried();
      const { problem, hint } = store.status.value;
      this.#tell(problem ?? `${storeText(config)} does not answer`, hint);
    };
    const cancel = this.#options.clock.after(connectGraceMs, speak);
    try {
      for (; store.status.value.state !== 'connected'; await bell.wait(until)) {
        until.throwIfAborted();
        if (store.status.value.state === 'closed') throw new LegateError('E_CLOSED', 'the store was closed');
        if (spoke) speak();
        else if (store.status.value.state === 'away') tried();
      }
    } finally {
      cancel();
      endWaiting();
    }
  }

  #tell(problem: string, hint: string | undefined): void {
    const { conditions } = this.#options;
    const stays = this.#current === undefined ? '' : `; ${storeText(this.#current.config)} is used until then`;
    this.#problem = problem;
    conditions.raise(condition, 'error', problem + stays, hint ?? 'the log says more');
  }
}
