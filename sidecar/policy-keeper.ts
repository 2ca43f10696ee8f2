import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, isLegateError } from '../src/base/errors.ts';
import { eachChange, Latest, type Observable } from '../src/base/feed.ts';
import { cannotWrite, readBounded, writeFileAtomically } from '../src/base/files.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import { isLocked, lockedPolicy, type Policy } from '../src/model/policy.ts';
import { samePolicy } from '../src/model/policy-document.ts';
import { maxSealedBytes, openSealedPolicy, PolicyRefusal } from '../src/pki/policy-seal.ts';
import type { PolicyBook } from '../src/registrar/policy-authority.ts';
import { notMoving } from '../src/registrar/store-marker.ts';
import type { Keys } from '../src/store/keys.ts';
import type { Entry, Guard, Store } from '../src/store/store.ts';

const maxKeyBytes = 4096;
/** A store that was emptied gets the policy back within this time; only then it is told that it has none. */
const missingGraceMs = 10_000;
/** How long a store may be without the policy that this host knows before this host puts it back, and between tries. */
const putBackMs = 3000;
/** Between tries to write the policy to a disk that refuses it. */
const writeRetryMs = 5000;

const lockedId = 'policy.locked';
const refusedId = 'policy.refused';
const missingId = 'policy.missing';
const writeId = 'policy.disk';

/** A store that is without the policy that is known here, and what it has instead. */
interface Into {
  readonly store: Store;
  readonly keys: Keys;
  readonly signal: AbortSignal;
  readonly entry: Entry | undefined;
}

export interface PolicyKeeperOptions {
  /** `pki` in the data directory. */
  readonly folder: string;
  /** The mesh's name, and its id once it is known. */
  readonly mesh: string;
  readonly meshId: () => string | undefined;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/**
 * This host's copy of the policy: on disk, so that it holds at the start and with the store away, and replaced only by one
 * that the policy key signed, of this mesh and not older. A host of a mesh that has none it can read allows nothing.
 */
export class PolicyKeeper implements PolicyBook {
  readonly policy: Observable<Policy | undefined>;
  readonly #latest = new Latest<Policy | undefined>(undefined);
  readonly #options: PolicyKeeperOptions;
  #publicKey: string | undefined;
  #sealed: Uint8Array | undefined;
  /** One after the other, so that the disk never gets an older one after a newer one. */
  #last: Promise<unknown> = Promise.resolve();
  #cancelRetry: (() => void) | undefined;
  #cancelMissing: (() => void) | undefined;
  #cancelPutBack: (() => void) | undefined;

  constructor(options: PolicyKeeperOptions) {
    this.#options = options;
    this.policy = this.#latest;
    options.metrics.gauge(
      'legate_policy_known_version',
      'The version of the policy that this host goes by.',
      [],
      () => {
        const { value } = this.#latest;
        return value === undefined ? [] : [[[], value.version]];
      },
    );
  }

  get sealed(): Uint8Array | undefined {
    return this.#sealed;
  }

  /** Whether this host is in a mesh that has a policy: it has joined, whatever has become of its files. */
  get isMember(): boolean {
    return ['policy.pub', 'policy.json', 'host.crt'].some((name) => existsSync(join(this.#options.folder, name)));
  }

  /** What the last run knew. Where that cannot be read on a host of a mesh, nothing is allowed and a condition says so. */
  async load(): Promise<void> {
    if (!this.isMember) return;
    const { folder, conditions, mesh } = this.#options;
    try {
      this.#publicKey = await this.#read('policy.pub', maxKeyBytes);
      const sealed = Buffer.from(await this.#read('policy.json', maxSealedBytes));
      const policy = this.#open(sealed, 0);
      this.#sealed = sealed;
      this.#latest.set(policy);
      conditions.clear(lockedId);
    } catch (error) {
      this.#latest.set(lockedPolicy(mesh));
      const without = this.#publicKey === undefined;
      conditions.raise(
        lockedId,
        'error',
        `the policy in ${folder} cannot be used, so nobody may call anybody over links: ${describeError(error)}`,
        without
          ? 'restore policy.pub from a backup, or join again'
          : 'it is taken from the store as soon as that answers',
      );
    }
  }

  judge(sealed: Uint8Array): Policy | PolicyRefusal {
    try {
      return this.#open(sealed);
    } catch (error) {
      if (error instanceof PolicyRefusal) return error;
      throw error;
    }
  }

  /** Of a sealed policy that would be taken over, or is the present one. */
  versionOf(sealed: Uint8Array): number | undefined {
    const judged = this.judge(sealed);
    return judged instanceof PolicyRefusal ? undefined : judged.version;
  }

  /**
   * Takes over a policy that came from elsewhere: with a certificate, from the store. The same one changes nothing.
   * PolicyRefusal when it is not to be believed; the known one stays then.
   */
  offer(sealed: Uint8Array): Promise<Policy> {
    return this.#inTurn(async () => {
      const policy = this.#checked(sealed);
      const known = this.#latest.value;
      if (known?.version === policy.version) return known;
      // What it forbids is forbidden from now on, whether the disk takes it or not.
      this.#take(policy, sealed);
      await this.#write().catch(() => undefined);
      return policy;
    });
  }

  commit(sealed: Uint8Array): Promise<Policy> {
    return this.#inTurn(async () => {
      const policy = this.#checked(sealed);
      await this.#write(sealed);
      this.#take(policy, sealed);
      return policy;
    });
  }

  /**
   * Follows the store's policy until aborted or the store is closed. With `putsBack` a store that has none or an older one
   * gets the one that this host knows, so that what was decided outlives a store and an authority restored from backups.
   */
  async follow(store: Store, keys: Keys, signal: AbortSignal, putsBack = false): Promise<void> {
    if (!this.isMember) return;
    const putBack = (entry: Entry | undefined): void => {
      if (putsBack) this.#putBackLater({ store, keys, signal, entry });
    };
    try {
      await eachChange(store.watch(keys.policy, { signal }), async (change) => {
        const items = change.kind === 'reset' ? change.items : change.puts;
        const entry = items.find(({ key }) => key === keys.policy);
        const isGone = change.kind === 'reset' || change.deletes.includes(keys.policy);
        if (entry === undefined && !isGone) return !signal.aborted;
        this.#cancelPutBack?.();
        if (entry === undefined) this.#missing();
        if (entry === undefined || !(await this.#fromStore(entry))) putBack(entry);
        return !signal.aborted;
      });
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      this.#cancelMissing?.();
      this.#cancelPutBack?.();
    }
  }

  close(): void {
    this.#cancelRetry?.();
    this.#cancelMissing?.();
    this.#cancelPutBack?.();
  }

  /** False when it is older than the known one. */
  async #fromStore({ value }: Entry): Promise<boolean> {
    const { conditions, metrics } = this.#options;
    this.#cancelMissing?.();
    conditions.clear(missingId);
    try {
      await this.offer(value);
      conditions.clear(refusedId);
    } catch (error) {
      if (!(error instanceof PolicyRefusal)) throw error;
      metrics.counter('legate_policy_refused_total', 'Policies of the store that were refused, by reason.', {
        reason: error.fault,
      }).value += 1;
      const stays = this.#sealed === undefined ? 'nobody may call anybody until there is one' : 'the known one stays';
      conditions.raise(
        refusedId,
        'error',
        `the policy in the store is refused: ${error.message}; ${stays}`,
        error.hint ?? '',
      );
      // Two of the same age are not for hosts to choose between.
      return error.fault !== 'older' || this.#open(value, 0).version === this.#latest.value?.version;
    }
    return true;
  }

  #putBackLater(into: Into): void {
    const { clock } = this.#options;
    this.#cancelPutBack = clock.after(putBackMs, () => {
      this.#putBack(into).catch((error: unknown) => {
        if (into.signal.aborted || isLegateError(error, 'E_CLOSED')) return;
        if (!isLegateError(error)) throw error;
        this.#putBackLater(into);
      });
    });
  }

  /** What the store has meanwhile is not replaced: it comes with the watch, and is judged then. */
  async #putBack({ store, keys, signal, entry }: Into): Promise<void> {
    const key = keys.policy;
    if (this.#sealed === undefined || signal.aborted) return;
    const unchanged: Guard =
      entry === undefined ? { kind: 'absent', key } : { kind: 'revision', key, revision: entry.revision };
    const guards: Guard[] = [unchanged, { kind: 'exists', key: keys.meta }, notMoving(keys)];
    const { ok } = await store.txn(guards, [{ kind: 'put', key, value: this.#sealed }], { signal });
    if (ok) this.#options.log.warn('the store had lost the policy, and got the one back that this host knows');
    else this.#putBackLater({ store, keys, signal, entry });
  }

  #missing(): void {
    const { clock, conditions } = this.#options;
    this.#cancelMissing?.();
    this.#cancelMissing = clock.after(missingGraceMs, () => {
      const stays = this.#sealed === undefined ? 'nobody may call anybody until it has one' : 'the known one stays';
      const hint = "the authority's host writes it there: is its sidecar running?";
      conditions.raise(missingId, 'warning', `the store has no policy; ${stays}`, hint);
    });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => undefined);
    return done;
  }

  #checked(sealed: Uint8Array): Policy {
    const policy = this.#open(sealed);
    const known = this.#latest.value;
    if (policy.version !== known?.version || samePolicy(policy, known)) return policy;
    throw new PolicyRefusal(
      'older',
      'the policy is another one than the known one, with the same version',
      "has the authority's data_dir been copied? Only one host may change the policy; its next change settles it",
    );
  }

  #open(sealed: Uint8Array, knownVersion = this.#latest.value?.version ?? 0): Policy {
    const { mesh, meshId } = this.#options;
    if (this.#publicKey === undefined) {
      throw new PolicyRefusal('unreadable', 'this host has no key to check policies with', 'join the mesh again');
    }
    return openSealedPolicy(sealed, this.#publicKey, { mesh, meshId: meshId(), knownVersion });
  }

  #take(policy: Policy, sealed: Uint8Array): void {
    const { conditions, log } = this.#options;
    const before = this.#latest.value;
    this.#sealed = sealed;
    this.#latest.set(policy);
    if (before !== undefined && isLocked(before)) conditions.clear(lockedId);
    log.info('the policy has changed', {
      'policy.version': policy.version,
      'policy.default': policy.default,
      'policy.mode': policy.mode,
      'policy.intents': policy.intents.length,
      'policy.revoked': policy.revoked.length,
    });
  }

  /** Writes it to disk; a failure is told and tried again. */
  async #write(sealed = this.#sealed): Promise<void> {
    const { folder, conditions, clock } = this.#options;
    if (sealed === undefined) return;
    const path = join(folder, 'policy.json');
    this.#cancelRetry?.();
    try {
      await writeFileAtomically(path, [Buffer.from(sealed).toString('utf8')]);
      conditions.clear(writeId);
    } catch (error) {
      const failure = cannotWrite(path, error);
      conditions.raise(writeId, 'error', `the policy is not on disk: ${failure.message}`, failure.hint ?? '');
      this.#cancelRetry = clock.after(writeRetryMs, () => {
        this.#inTurn(() => this.#write()).catch((again: unknown) => {
          if (!isLegateError(again)) throw again;
        });
      });
      throw failure;
    }
  }

  async #read(name: string, maxBytes: number): Promise<string> {
    const path = join(this.#options.folder, name);
    const text = await readBounded(path, maxBytes);
    if (typeof text === 'string') return text;
    const what = text === undefined ? 'is missing' : `has ${text.tooLargeBytes} bytes`;
    throw new PolicyRefusal('unreadable', `${path} ${what}`, 'restore it from a backup, or join again');
  }
}
