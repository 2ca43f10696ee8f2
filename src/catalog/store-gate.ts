import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { isLegateError } from '../base/errors.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Store } from '../store/store.ts';
import { decodeMeta } from './codec.ts';

const foreignId = 'catalog.store.foreign';

/**
 * Decides whether what a store says may be taken for the mesh's state. A store whose id we know may; another one only
 * when its `meta` names our mesh, which a store that came back empty does as soon as a host has written the settings and
 * claims back. Until then the picture stays as it is. A store can also be emptied and keep its id: its `meta` is then gone,
 * or was written again.
 */
export class StoreGate {
  #keys: Keys;
  readonly #clock: Clock;
  readonly #conditions: Conditions;
  #meshId: string | undefined;
  #storeId: string | undefined;
  /** `meta` as it was when the store was admitted. It is written once in a store's life. */
  #mark: Entry | undefined;
  #admitting: Promise<void> | undefined;

  constructor({ keys, clock, conditions }: { keys: Keys; clock: Clock; conditions: Conditions }) {
    this.#keys = keys;
    this.#clock = clock;
    this.#conditions = conditions;
  }

  get meshId(): string | undefined {
    return this.#meshId;
  }

  get storeId(): string | undefined {
    return this.#storeId;
  }

  remember({ meshId, storeId }: { readonly meshId: string; readonly storeId: string | undefined }): void {
    this.#meshId = meshId;
    this.#storeId = storeId;
  }

  /** Where the store that is followed from now on has its keys. */
  lookAt(keys: Keys): void {
    this.#keys = keys;
  }

  /** Resolves as soon as the mesh's id is known. Rejects only when the store is closed. */
  async learn(store: Store, signal: AbortSignal): Promise<void> {
    if (this.#meshId === undefined) await this.#ownMeta(store, signal);
  }

  /**
   * Waits until the present store may be believed; every table calls it at its reset, and they share one wait. When it is
   * another store than the one believed before, `onOther` is called first, once. Rejects when aborted.
   */
  async admit(store: Store, signal: AbortSignal, onOther: () => void): Promise<void> {
    if (this.#isKnown(store)) return;
    this.#admitting ??= this.#admitOther(store, signal, onOther).finally(() => {
      this.#admitting = undefined;
    });
    await this.#admitting;
  }

  /**
   * Whether `meta` is the one with which the store was admitted: asked before a loss of much is believed. Waits as long as
   * the store does not answer. Rejects when aborted.
   */
  async isAsAdmitted(store: Store, signal: AbortSignal): Promise<boolean> {
    const mark = this.#mark;
    if (mark === undefined) return true;
    const backoff = new Backoff(20, 2000);
    for (; !signal.aborted; await this.#pause(backoff, signal)) {
      try {
        const entry = await store.get(this.#keys.meta, { signal });
        return entry?.revision === mark.revision && Buffer.compare(entry.value, mark.value) === 0;
      } catch (error) {
        if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
      }
    }
    signal.throwIfAborted();
    return false;
  }

  /** Waits until a store that was emptied, or whose `meta` is another, is our mesh's again. Rejects when aborted. */
  async readmit(store: Store, signal: AbortSignal): Promise<void> {
    await this.#ownMeta(store, signal);
    this.#storeId = store.status.value.storeId;
  }

  #isKnown(store: Store): boolean {
    const { storeId } = store.status.value;
    return (
      storeId !== undefined && storeId === this.#storeId && (this.#mark !== undefined || this.#meshId === undefined)
    );
  }

  async #admitOther(store: Store, signal: AbortSignal, onOther: () => void): Promise<void> {
    const known = this.#meshId !== undefined;
    if (known) await this.#ownMeta(store, signal);
    const { storeId } = store.status.value;
    const isOther = storeId === undefined || storeId !== this.#storeId;
    this.#storeId = storeId;
    if (known && isOther) onOther();
  }

  /** Asks until `meta` is there and names our mesh; with none known yet, the first one found is ours. */
  async #ownMeta(store: Store, signal: AbortSignal): Promise<void> {
    const backoff = new Backoff(20, 2000);
    for (; !signal.aborted; await this.#pause(backoff, signal)) {
      try {
        const entry = await store.get(this.#keys.meta, { signal });
        const meta = entry === undefined ? undefined : decodeMeta(entry.value);
        if (meta?.ok !== true) continue;
        this.#meshId ??= meta.value.meshId;
        if (this.#meshId === meta.value.meshId) {
          this.#mark = entry;
          this.#conditions.clear(foreignId);
          return;
        }
        this.#conditions.raise(
          foreignId,
          'error',
          'the store belongs to another mesh; its contents are not used',
          'check the store settings: address, prefix and mesh name',
        );
      } catch (error) {
        if (!isLegateError(error) || error.code === 'E_CLOSED') throw error;
      }
    }
    signal.throwIfAborted();
  }

  async #pause(backoff: Backoff, signal: AbortSignal): Promise<void> {
    await this.#clock.sleep(backoff.nextMs(), signal).catch(() => undefined);
  }
}
