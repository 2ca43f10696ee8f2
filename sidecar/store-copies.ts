import type { Clock } from '../src/base/clock.ts';
import { describeError, isLegateError, LegateError } from '../src/base/errors.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import { printable } from '../src/base/text.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import type { StoreConfig } from '../src/config/config.ts';
import { isInCharge } from '../src/model/policy.ts';
import { type CopyProgress, type CopyResult, copyMesh } from '../src/registrar/store-copy.ts';
import type { Keys } from '../src/store/keys.ts';
import type { Store } from '../src/store/store.ts';
import type { StoreTrust } from '../src/store/trust.ts';
import type { StoreCopyDocument } from './admin/documents.ts';
import { isSame, type StoreMoves } from './store-moves.ts';
import type { StoreSession } from './store-session.ts';
import { movedTo, type StoreTarget, storeConfigOf, storeKeys, storeText } from './store-target.ts';

/** How long a target may take to answer before the copy is given up. */
const connectLimitMs = 10_000;
/** How long the hosts are waited for that go after the mesh; those that have not by then are named. */
const followLimitMs = 15_000;
const pollMs = 100;

export interface StoreCopiesOptions {
  readonly session: StoreSession;
  readonly moves: StoreMoves;
  readonly open: (config: StoreConfig) => Promise<Store>;
  readonly self: { readonly hostId: string; readonly hostName: string };
  readonly trust: StoreTrust;
  readonly snapshots: Observable<Snapshot>;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

const nothingYet: StoreCopyDocument = {
  state: 'none',
  phase: null,
  from: null,
  to: null,
  dryRun: false,
  keys: 0,
  ofKeys: 0,
  bytes: 0,
  leased: 0,
  refusedMs: 0,
  moved: [],
  waiting: [],
  error: null,
};

/** Copies of the mesh into other stores, one at a time, and what became of the last one. */
export class StoreCopies {
  readonly #options: StoreCopiesOptions;
  #document: StoreCopyDocument = nothingYet;
  #cancel: AbortController | undefined;

  constructor(options: StoreCopiesOptions) {
    this.#options = options;
  }

  get document(): StoreCopyDocument {
    return this.#document;
  }

  /** Begins one; what becomes of it is in `document`. Errors: E_INVALID for the target, E_IN_USE, E_STORE_AWAY. */
  start(target: StoreTarget, dryRun: boolean): StoreCopyDocument {
    const { session, moves, signal, log } = this.#options;
    if (this.#document.state === 'running') {
      throw new LegateError('E_IN_USE', 'a copy is going on already', { hint: 'wait for its end' });
    }
    this.#checkRight();
    const { store, config } = session;
    if (store === undefined || config === undefined) {
      throw new LegateError('E_STORE_AWAY', 'no store is in use that could be copied', {
        hint: 'legate status says what to do',
      });
    }
    const wanted = storeConfigOf(target, moves.file);
    this.#checkTarget(wanted, config);
    const cancel = new AbortController();
    this.#cancel = cancel;
    const from = storeText(config);
    this.#document = { ...nothingYet, state: 'running', phase: 'connecting', from, to: storeText(wanted), dryRun };
    this.#run({ store, config, wanted, dryRun, until: AbortSignal.any([signal, cancel.signal]) }).catch(
      (error: unknown) => {
        const known = isLegateError(error);
        const cancelled = cancel.signal.aborted;
        const message = cancelled ? 'the copy was called off; the mesh stays where it is' : describeError(error);
        if (!known && !cancelled) log.error('the copy failed', { 'store.reason': message });
        const failure = { code: known ? error.code : 'E_INTERNAL', message, hint: known ? (error.hint ?? '') : '' };
        this.#document = { ...this.#document, state: 'failed', error: failure };
      },
    );
    return this.#document;
  }

  /** Calls off what has not ended; once the mesh has moved that changes nothing. */
  cancel(): StoreCopyDocument {
    this.#cancel?.abort();
    return this.#document;
  }

  /** All of the mesh is read and marked, which is for the authority's host alone. */
  #checkRight(): void {
    const { trust, self, snapshots } = this.#options;
    const policy = trust.policy.value;
    if (policy === undefined || isInCharge(policy, self.hostId)) return;
    const name = snapshots.value.hosts.get(policy.authority)?.name ?? policy.authority;
    throw new LegateError('E_DENIED', `the mesh is moved by the authority's host, ${printable(name)}`, {
      hint: 'run the command there, or from here with --admin',
    });
  }

  #checkTarget(wanted: StoreConfig, config: StoreConfig): void {
    const { snapshots, self } = this.#options;
    if (wanted.kind !== 'embedded') {
      if (config.kind !== wanted.kind || config.prefix !== wanted.prefix) return;
      const here = new Set(config.endpoints.map(({ text }) => text));
      if (!wanted.endpoints.some(({ text }) => here.has(text))) return;
    }
    if (wanted.kind === config.kind) {
      throw new LegateError('E_INVALID', `the mesh is in ${storeText(config)} already`, { hint: 'name another store' });
    }
    const others = [...snapshots.value.hosts.values()].filter(({ id, alive }) => alive && id !== self.hostId);
    if (wanted.kind !== 'embedded' || wanted.listen !== undefined || others.length === 0) return;
    const names = others.map(({ name }) => name).join(', ');
    throw new LegateError('E_INVALID', `other hosts could not reach the store in this sidecar: ${names}`, {
      hint: 'say where it is offered to them: --to embedded://ADDRESS:7712',
    });
  }

  async #run(work: {
    store: Store;
    config: StoreConfig;
    wanted: StoreConfig;
    dryRun: boolean;
    until: AbortSignal;
  }): Promise<void> {
    const { store, config, wanted, dryRun, until } = work;
    const { moves, session, self, trust, clock, log } = this.#options;
    const { mesh } = moves.file;
    const to = movedTo(wanted, self.hostId, trust.credentials.value !== undefined);
    const targetKeys = storeKeys(mesh, wanted);
    moves.hold();
    let result: CopyResult | undefined;
    let target: Store | undefined;
    try {
      if (wanted.kind === 'embedded') await session.endLingering();
      target = await this.#openTarget(wanted, targetKeys, until);
      const sourceKeys = storeKeys(mesh, config);
      const onProgress = (progress: CopyProgress): void => {
        this.#document = { ...this.#document, ...progress };
      };
      const stores = { source: store, sourceKeys, target, targetKeys };
      result = await copyMesh({ ...stores, to, dryRun, clock, log, signal: until, onProgress });
    } finally {
      await target?.close();
      moves.release(result === undefined || dryRun ? undefined : { to, config: wanted });
    }
    const { keys, bytes, leased, refusedMs, alive } = result;
    this.#document = { ...this.#document, phase: 'following', keys, ofKeys: keys, bytes, leased, refusedMs };
    if (!dryRun) {
      log.info('the mesh has moved', { 'store.where': storeText(wanted), 'store.keys': keys, 'store.bytes': bytes });
      await this.#awaitHosts(alive, wanted, targetKeys);
    }
    this.#document = { ...this.#document, state: 'done', phase: null };
  }

  async #openTarget(wanted: StoreConfig, keys: Keys, until: AbortSignal): Promise<Store> {
    const { open } = this.#options;
    // Nobody else is to use it before it is complete.
    const target = await open(wanted.kind === 'embedded' ? { ...wanted, listen: undefined } : wanted);
    try {
      await this.#waitFor(connectLimitMs, until, () => target.status.value.state === 'connected');
      const { state, problem, hint } = target.status.value;
      if (state !== 'connected') {
        throw new LegateError('E_STORE_AWAY', `the target cannot be reached: ${problem ?? 'it does not answer'}`, {
          hint: hint ?? 'check its address; nothing was written',
        });
      }
      // The embedded store of before may remember leases that nobody keeps alive.
      if (wanted.kind === 'embedded') {
        await this.#waitFor(2 * wanted.leaseTtlMs + connectLimitMs, until, async () => {
          return (await target.range(keys.alive, { limit: 1 })).entries.length === 0;
        });
      }
      return target;
    } catch (error) {
      await target.close();
      throw error;
    }
  }

  /** Which of the hosts that were there have come to the new store. */
  async #awaitHosts(alive: ReadonlySet<string>, wanted: StoreConfig, { alive: prefix }: Keys): Promise<void> {
    const { session, signal, snapshots, self } = this.#options;
    const nameOf = (id: string): string => snapshots.value.hosts.get(id)?.name ?? id;
    const expected = new Set(alive).add(self.hostId);
    const arrived = new Set<string>();
    const look = async (): Promise<boolean> => {
      const { store, config } = session;
      if (store === undefined || !isSame(config, wanted)) return false;
      const { entries } = await store.range(prefix).catch(() => ({ entries: [] }));
      for (const { key } of entries) arrived.add(key.slice(prefix.length));
      const waiting = [...expected].filter((id) => !arrived.has(id));
      this.#document = {
        ...this.#document,
        moved: [...arrived].map(nameOf).sort(),
        waiting: waiting.map(nameOf).sort(),
      };
      return waiting.length === 0;
    };
    this.#document = { ...this.#document, waiting: [...expected].map(nameOf).sort() };
    await this.#waitFor(followLimitMs, signal, look);
  }

  /** Looks until it is so, or the time is over. */
  async #waitFor(limitMs: number, signal: AbortSignal, isSo: () => boolean | Promise<boolean>): Promise<void> {
    const { clock } = this.#options;
    const untilMs = clock.monotonicMs() + limitMs;
    while (!(await isSo()) && clock.monotonicMs() < untilMs) await clock.sleep(pollMs, signal);
  }
}
