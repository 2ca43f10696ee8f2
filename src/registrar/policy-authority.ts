import { Backoff } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { Coalesced } from '../base/coalesced.ts';
import type { Conditions } from '../base/conditions.ts';
import { isLegateError, LegateError } from '../base/errors.ts';
import { eachChange, type Observable } from '../base/feed.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { isLocked, type Policy } from '../model/policy.ts';
import { samePolicy } from '../model/policy-document.ts';
import type { PolicyRefusal } from '../pki/policy-seal.ts';
import type { PolicySigner } from '../pki/policy-signer.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Guard, Store } from '../store/store.ts';
import { notMoving } from './store-marker.ts';

/** Changes that wait for their turn; further ones are refused. */
const maxWaiting = 32;
/** How long a change waits until the store has it, before it counts as one that gets there later. */
const storedLimitMs = 2000;
const firstRetryMs = 100;
const retryCeilingMs = 5000;
/** After this long without a rewrite the next one is done at once again. */
const quietMs = 60_000;
/** How long a restored authority whose store has no policy waits for other hosts to put back the one that they know. */
export const restoredGraceMs = 30_000;
const restoredId = 'policy.restored';

/** This host's own copy of the policy. */
export interface PolicyBook {
  readonly policy: Observable<Policy | undefined>;
  /** As it was sealed; undefined while there is none. */
  readonly sealed: Uint8Array | undefined;
  /** Takes a new one over once it is durable on disk. */
  commit(sealed: Uint8Array): Promise<Policy>;
  /** What this host thinks of a sealed policy; nothing is taken over. */
  judge(sealed: Uint8Array): Policy | PolicyRefusal;
}

export interface PolicyAuthorityOptions {
  readonly signer: PolicySigner;
  readonly book: PolicyBook;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** Of when the backup is that it was restored from, while it may know less than the mesh. */
  readonly restoredFrom?: string | undefined;
}

interface Session {
  readonly store: Store;
  readonly keys: Keys;
  readonly signal: AbortSignal;
  /** What the store has, once it has told. */
  told: boolean;
  entry: Entry | undefined;
}

/**
 * The authority's host's hand on the policy: changes it, one change at a time, first on this host's disk, then in the
 * store. While the store has none, an older one or one that the policy key did not sign, it is written again. One that was
 * restored from a backup changes and writes nothing before it has seen what the mesh knows.
 */
export class PolicyAuthority {
  readonly #options: PolicyAuthorityOptions;
  readonly #rewritten: CounterCell;
  readonly #settling = new Coalesced(() => this.#settle());
  readonly #backoff = new Backoff(firstRetryMs, retryCeilingMs);
  readonly #waiters = new Set<() => void>();
  #session: Session | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #storedVersion = 0;
  /** Monotonic, of the last rewrite. */
  #rewroteMs = Number.NEGATIVE_INFINITY;
  #cancelRetry: (() => void) | undefined;
  /** Of the restored policy, until it is known whether the mesh has a newer one. */
  #heldVersion: number | undefined;
  #cancelHold: (() => void) | undefined;

  constructor(options: PolicyAuthorityOptions) {
    this.#options = options;
    if (options.restoredFrom !== undefined) this.#hold(options.restoredFrom);
    this.#rewritten = options.metrics.counter(
      'legate_policy_rewritten_total',
      'How often the store had lost the policy or had a wrong one, and got the right one again.',
    );
  }

  /** Whether the store has the present policy. */
  get stored(): boolean {
    return this.#heldVersion === undefined && this.#storedVersion === this.#options.book.policy.value?.version;
  }

  /**
   * Changes the policy: `by` gets the present one and gives what it is to be, or the same object for no change. Resolves
   * with the new one when this host's disk has it, and the store has it too or does not answer. Errors: E_NOT_FOUND where
   * there is no policy yet, E_CONFLICT while a restored one may be outdated, E_TOO_LARGE, the signer's, and what `by` throws.
   */
  change(by: (policy: Policy) => Policy): Promise<Policy> {
    if (this.#waiting >= maxWaiting) {
      return Promise.reject(
        new LegateError('E_CONFLICT', `${maxWaiting} changes of the policy are being made already`, {
          hint: 'try again in a moment',
        }),
      );
    }
    this.#waiting += 1;
    const done = this.#last
      .then(() => this.#change(by))
      .finally(() => {
        this.#waiting -= 1;
      });
    this.#last = done.catch(() => undefined);
    return done;
  }

  /** Keeps the store's copy what it should be, until aborted or the store is closed. One store at a time. */
  async keep(on: { readonly store: Store; readonly keys: Keys; readonly signal: AbortSignal }): Promise<void> {
    const { store, keys, signal } = on;
    const session: Session = { ...on, told: false, entry: undefined };
    this.#session = session;
    const unsubscribe = this.#options.book.policy.subscribe(() => this.#look());
    try {
      await eachChange(store.watch(keys.policy, { signal }), (change) => {
        const items = change.kind === 'reset' ? change.items : change.puts;
        const entry = items.find(({ key }) => key === keys.policy);
        if (entry !== undefined || change.kind === 'reset' || change.deletes.includes(keys.policy))
          session.entry = entry;
        session.told = true;
        this.#look();
        return !signal.aborted;
      });
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      unsubscribe();
      this.#cancelRetry?.();
      this.#cancelHold?.();
      this.#cancelHold = undefined;
      if (this.#session === session) this.#session = undefined;
    }
  }

  async #change(by: (policy: Policy) => Policy): Promise<Policy> {
    const { book, signer, clock } = this.#options;
    const { value: present } = book.policy;
    if (present === undefined || isLocked(present)) {
      throw new LegateError('E_NOT_FOUND', 'there is no policy that could be changed', {
        hint: present === undefined ? 'legate init makes the authority and the policy' : 'legate status says why',
      });
    }
    if (this.#heldVersion !== undefined) {
      const text = `the authority was restored from a backup of ${this.#options.restoredFrom}: waiting to see the mesh's policy`;
      throw new LegateError('E_CONFLICT', text, {
        hint: `it looks into the store, and gives other hosts ${restoredGraceMs / 1000} s; legate status shows whether the store answers`,
      });
    }
    const wanted = by(present);
    if (wanted === present) return present;
    const version = Math.max(present.version + 1, Math.trunc(clock.nowMs()));
    const { mesh, meshId } = present;
    const sealed = await signer.seal({ ...wanted, mesh, meshId, version });
    const policy = await book.commit(sealed);
    this.#look();
    await this.#storedUntil(version);
    return policy;
  }

  /** Resolves when the store has the version, and after a while in any case. */
  async #storedUntil(version: number): Promise<void> {
    if (this.#session?.store.status.value.state !== 'connected') return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        cancel();
        this.#waiters.delete(look);
        resolve();
      };
      const look = (): void => {
        if (this.#storedVersion >= version) done();
      };
      const cancel = this.#options.clock.after(storedLimitMs, done);
      this.#waiters.add(look);
      look();
    });
  }

  #look(): void {
    void this.#settling.run();
  }

  /** Compares what the store has with what this host has, and writes where that is right. */
  async #settle(): Promise<void> {
    const session = this.#session;
    const { book, clock, log } = this.#options;
    const { sealed } = book;
    const version = book.policy.value?.version;
    if (session === undefined || !session.told || sealed === undefined || version === undefined) return;
    const { entry, signal } = session;
    const judged = entry === undefined ? undefined : book.judge(entry.value);
    const { value: present } = book.policy;
    if (this.#isHeld(version, judged)) return;
    if (judged !== undefined && 'version' in judged && present !== undefined && samePolicy(judged, present)) {
      this.#storedVersion = version;
      for (const look of [...this.#waiters]) look();
      return;
    }
    // One of ours that is newer: this host's disk was restored from a backup. It is about to be taken over.
    if (judged !== undefined && 'version' in judged && judged.version > version) return;
    if (this.#storedVersion === version) {
      if (clock.monotonicMs() - this.#rewroteMs > quietMs) this.#backoff.reset();
      else if (await this.#rest(signal)) return;
      this.#rewroteMs = clock.monotonicMs();
      this.#rewritten.value += 1;
      log.warn('the policy in the store is not the right one and is written again', {
        'policy.found': judged === undefined ? 'none' : judged instanceof Error ? judged.message : 'an older one',
      });
    }
    await this.#write(session, sealed, version);
  }

  #hold(savedAt: string): void {
    this.#heldVersion = this.#options.book.policy.value?.version ?? 0;
    const message = `the authority was restored from a backup of ${savedAt}: nothing of the policy is changed before the mesh's is seen`;
    this.#options.conditions.raise(restoredId, 'note', message, 'legate status shows whether the store answers');
  }

  /**
   * Whether what was restored may still be older than what the mesh knows. It is not when the store had it or a newer one,
   * which is taken over; where the store had none, other hosts put back theirs within a while.
   */
  #isHeld(version: number, inStore: Policy | PolicyRefusal | undefined): boolean {
    if (this.#heldVersion === undefined) return false;
    const stored = inStore !== undefined && 'version' in inStore ? inStore.version : 0;
    const isSeen = stored === version && (version > this.#heldVersion || this.#cancelHold === undefined);
    if (isSeen) this.#release();
    // A newer one is about to be taken over.
    else if (stored <= version) {
      this.#cancelHold ??= this.#options.clock.after(restoredGraceMs, () => {
        this.#release();
        this.#look();
      });
    }
    return !isSeen;
  }

  #release(): void {
    this.#cancelHold?.();
    this.#cancelHold = undefined;
    this.#heldVersion = undefined;
    this.#options.conditions.clear(restoredId);
    this.#options.log.info('the restored policy is up to date', {
      'policy.version': this.#options.book.policy.value?.version,
    });
  }

  /** True when the session has ended meanwhile, or something has changed that will be looked at anew. */
  async #rest(signal: AbortSignal): Promise<boolean> {
    const { entry } = this.#session ?? {};
    await this.#options.clock.sleep(this.#backoff.nextMs(), signal).catch(() => undefined);
    if (signal.aborted) return true;
    if (this.#session?.entry === entry) return false;
    this.#look();
    return true;
  }

  async #write(session: Session, sealed: Uint8Array, version: number): Promise<void> {
    const { store, keys, signal, entry } = session;
    const key = keys.policy;
    const unchanged: Guard =
      entry === undefined ? { kind: 'absent', key } : { kind: 'revision', key, revision: entry.revision };
    // A store that is new or came back empty gets what is in it back first; one that is being left is not written any more.
    const guards: Guard[] = [unchanged, { kind: 'exists', key: keys.meta }, notMoving(keys)];
    try {
      const result = await store.txn(guards, [{ kind: 'put', key, value: sealed }], { signal });
      if (result.ok) {
        session.entry = { key, value: sealed, revision: result.revision };
        this.#storedVersion = version;
        this.#look();
      } else {
        session.entry = await store.get(key, { signal });
        this.#retry(session);
      }
    } catch (error) {
      if (signal.aborted || isLegateError(error, 'E_CLOSED')) return;
      if (!isLegateError(error)) throw error;
      this.#retry(session);
    }
  }

  #retry({ signal }: Session): void {
    this.#cancelRetry?.();
    if (!signal.aborted) this.#cancelRetry = this.#options.clock.after(this.#backoff.nextMs(), () => this.#look());
  }
}
