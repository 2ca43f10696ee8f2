import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, isLegateError } from '../base/errors.ts';
import { eachChange } from '../base/feed.ts';
import { Bell } from '../catalog/bell.ts';
import { decodeMeta, formatVersion } from '../catalog/codec.ts';
import type { SavedState } from '../catalog/saved-state.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Store } from '../store/store.ts';
import { type LimitedHost, openMesh } from './mesh-identity.ts';

const foreignId = 'store.foreign';
const metaId = 'store.meta';
/** All hosts see at the same time that the store was emptied; one of them suffices to write it back. */
const jitterMs = 500;
/** A host that knows no services lets those go first that do. */
const ignorantMs = 2000;

export interface KeepMeshOptions {
  readonly store: Store;
  readonly keys: Keys;
  /** The mesh's id as this host knows it. */
  readonly remembered: string;
  /** What is known at the moment. */
  readonly saved: () => SavedState | undefined;
  /** What this host may write back; undefined: everything. */
  readonly limited?: () => LimitedHost | undefined;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly random?: () => number;
  readonly signal: AbortSignal;
}

/** Tells that the store was emptied, on every host that sees it. */
export function tellRestored(conditions: Conditions): void {
  conditions.raise(
    'store.restored',
    'warning',
    'the store had come back empty: records, settings and virtual addresses were written back, your own keys (kv) are lost',
    'restore the keys from where you have them; this is shown until the next start',
  );
}

/**
 * Opens the mesh again, with what is known at that moment, whenever the store turns out to be another one (its id changed
 * after a loss of connection) and whenever `meta` is gone: the store was emptied. A foreign store and a `meta` that cannot
 * be used raise conditions. Runs until aborted or the store is closed.
 */
export async function keepMesh(options: KeepMeshOptions): Promise<void> {
  const ended = new AbortController();
  const signal = AbortSignal.any([options.signal, ended.signal]);
  const keeper = new MeshKeeper({ ...options, signal });
  try {
    await Promise.all([keeper.follow(), keeper.run()]);
  } catch (error) {
    if (!options.signal.aborted) throw error;
  } finally {
    ended.abort();
    for (const id of [foreignId, metaId]) options.conditions.clear(id);
  }
}

class MeshKeeper {
  readonly #options: KeepMeshOptions;
  readonly #bell = new Bell();
  #storeId: string | undefined;
  #meta: 'ours' | 'missing' | 'other' = 'ours';
  /** As `meta` told it first; another value means that the mesh was written back since. */
  #restored: { readonly atMs: number | undefined } | undefined;

  constructor(options: KeepMeshOptions) {
    this.#options = options;
    this.#storeId = options.store.status.value.storeId;
  }

  async follow(): Promise<void> {
    const { store, keys, signal } = this.#options;
    await eachChange(store.watch(keys.meta, { signal }), (change) => {
      const isGone = change.kind === 'reset' || change.deletes.includes(keys.meta);
      const entry = (change.kind === 'reset' ? change.items : change.puts).find(({ key }) => key === keys.meta);
      if (entry !== undefined) this.#take(entry);
      else if (isGone) this.#meta = 'missing';
      this.#bell.ring();
      return !signal.aborted;
    });
  }

  #take({ value }: Entry): void {
    const { remembered, conditions } = this.#options;
    const meta = decodeMeta(value);
    const isOurs = meta.ok && meta.value.format <= formatVersion && meta.value.meshId === remembered;
    this.#meta = isOurs ? 'ours' : 'other';
    if (!isOurs) return;
    const { restoredAtMs: atMs } = meta.value;
    if (this.#restored !== undefined && atMs !== undefined && atMs !== this.#restored.atMs) tellRestored(conditions);
    this.#restored = { atMs };
  }

  async run(): Promise<void> {
    const { store, conditions, clock, random, signal } = this.#options;
    const backoff = new Backoff(100, 5000, random);
    const unsubscribe = store.status.subscribe(() => this.#bell.ring());
    try {
      for (; !signal.aborted; await this.#bell.wait(signal)) {
        const { state, storeId } = store.status.value;
        if (state !== 'connected') continue;
        if (storeId === this.#storeId && this.#meta === 'ours') {
          for (const id of [foreignId, metaId]) conditions.clear(id);
          continue;
        }
        try {
          await this.#open(storeId);
          backoff.reset();
        } catch (error) {
          if (signal.aborted) return;
          if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
          const id = error.code === 'E_STORE_DAMAGED' ? metaId : foreignId;
          const hint = error.hint ?? 'check the store settings';
          if (error.code !== 'E_STORE_AWAY') {
            conditions.clear(id === metaId ? foreignId : metaId);
            conditions.raise(id, 'error', describeError(error), hint);
          }
          await clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
        }
        this.#bell.ring();
      }
    } finally {
      unsubscribe();
    }
  }

  async #open(storeId: string | undefined): Promise<void> {
    const { saved, limited, clock, random = Math.random, signal } = this.#options;
    if (this.#meta === 'missing') {
      const isIgnorant = (saved()?.services.size ?? 0) === 0;
      await clock.sleep(random() * jitterMs + (isIgnorant ? ignorantMs : 0), signal);
    }
    const known = saved();
    const { saved: _, limited: __, ...rest } = this.#options;
    const limits = limited?.();
    await openMesh({ ...rest, ...(known && { saved: known }), ...(limits && { limited: limits }) });
    this.#storeId = storeId;
    this.#meta = 'ours';
  }
}
