import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, isLegateError, LegateError, systemCode } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import { isLocked, isRevoked, type Policy } from '../model/policy.ts';
import type { Authority, RotationPhase } from './authority.ts';
import type { LedgerEntry } from './ledger.ts';

const stepEveryMs = 250;
const restEveryMs = 5000;
/** What hosts have said they do holds in all of their processes after this time. */
const settleMs = 1500;
const problemId = 'pki.rotation';

export interface RootRotationOptions {
  readonly authority: Authority;
  readonly self: { readonly hostId: string };
  readonly policy: () => Policy | undefined;
  /** Whether the policy that this host has is the one in the store. */
  readonly policyStored: () => boolean;
  /** Changes the policy for the whole mesh. */
  readonly change: (by: (policy: Policy) => Policy) => Promise<unknown>;
  /** The ids of the hosts that live. */
  readonly alive: () => ReadonlySet<string>;
  /** What was restored here is of before a rotation, which is told from now on. */
  readonly onOutdated: () => void;
  readonly clock: Clock;
  readonly log: Log;
  readonly conditions: Conditions;
}

/**
 * Replaces the authority's root without a moment in which a host shows what another does not believe: the new root is
 * announced in the policy beside the present one; when every living host has said that it believes it, it issues, all
 * hosts renew, and when nobody has a certificate of the old one any more, the policy drops that. Where it stands is on
 * disk, so that each step is taken once, whatever ends in between. It also keeps the policy's roots what they should be,
 * and says in it where the authority is.
 */
export class RootRotation {
  readonly #options: RootRotationOptions;
  #wake = new AbortController();
  /** Monotonic: since when the phase waits for nobody. */
  #readySinceMs: number | undefined;
  #isOutdated = false;

  constructor(options: RootRotationOptions) {
    this.#options = options;
  }

  get phase(): RotationPhase {
    return this.#options.authority.phase;
  }

  /** Whether what was restored here has another root than the mesh in the store, and can never take over. */
  get isOutdated(): boolean {
    return this.#isOutdated;
  }

  /** Begins it. E_CONFLICT while one runs. */
  async begin(): Promise<void> {
    await this.#options.authority.beginRotation();
    this.#options.log.info('the root is being replaced', { 'pki.phase': this.phase });
    this.#wake.abort();
  }

  /** Drops the old root although hosts that are away have certificates of it; they have to join again. E_CONFLICT. */
  async finish(): Promise<void> {
    if (this.phase !== 'replacing') {
      const hint = 'legate ca status shows what it waits for';
      throw new LegateError('E_CONFLICT', 'the old root is not to be dropped now', { hint });
    }
    const waiting = this.waitingFor().filter(({ hostId }) => this.#options.alive().has(hostId));
    if (waiting.length > 0) {
      throw new LegateError(
        'E_CONFLICT',
        `${waiting.map(({ name }) => name).join(', ')} still show a certificate of the old root`,
        {
          hint: 'they renew by themselves within seconds; legate ca status tells',
        },
      );
    }
    await this.#options.authority.dropOld();
    this.#wake.abort();
  }

  /** The hosts that the present phase waits for. */
  waitingFor(): readonly LedgerEntry[] {
    const { authority, self, policy, alive, clock } = this.#options;
    const { next, issuing } = authority.settings;
    const nowMs = clock.nowMs();
    const living = alive();
    const isCounted = ({ hostId, notAfterMs }: LedgerEntry): boolean =>
      notAfterMs > nowMs && !isRevoked(policy(), hostId);
    const hosts = authority.ledger.entries().filter(isCounted);
    if (this.phase === 'announcing') {
      return hosts.filter(
        ({ hostId, trusts }) => hostId !== self.hostId && living.has(hostId) && !trusts.includes(next ?? ''),
      );
    }
    return this.phase === 'replacing' ? hosts.filter(({ root }) => root !== issuing) : [];
  }

  async run(signal: AbortSignal): Promise<void> {
    const { clock, conditions } = this.#options;
    while (!signal.aborted) {
      try {
        await this.#step();
        conditions.clear(problemId);
      } catch (error) {
        // A disk that takes nothing has a code of the system's.
        if (!isLegateError(error) && systemCode(error) === undefined) throw error;
        const text = `the policy's roots could not be changed: ${describeError(error)}`;
        const hint = isLegateError(error) ? error.hint : undefined;
        conditions.raise(problemId, 'warning', text, hint ?? 'it is tried again');
      }
      this.#wake = new AbortController();
      const until = AbortSignal.any([signal, this.#wake.signal]);
      await clock.sleep(this.phase === 'none' ? restEveryMs : stepEveryMs, until).catch(() => undefined);
    }
  }

  async #step(): Promise<void> {
    const { authority, self, policy, policyStored, change, onOutdated, clock, log } = this.#options;
    const present = policy();
    if (present === undefined || isLocked(present)) return;
    const { roots } = authority;
    const isElsewhere = present.authority !== self.hostId;
    // What was restored takes over once, from the last policy that there was; else another host has done so.
    if (authority.claims ? !policyStored() : isElsewhere) return;
    this.#isOutdated = authority.claims && present.roots[0] !== roots[0];
    if (this.#isOutdated) {
      onOutdated();
      throw outdated();
    }
    if (isElsewhere || !isSame(present.roots, roots)) {
      await change((before) => ({ ...before, roots, authority: self.hostId }));
      return;
    }
    if (authority.claims) {
      await authority.claimed();
      log.info('this host is the authority of the mesh', { 'policy.version': present.version });
    }
    if (this.phase === 'none' || this.waitingFor().length > 0) {
      this.#readySinceMs = undefined;
      return;
    }
    this.#readySinceMs ??= clock.monotonicMs();
    if (clock.monotonicMs() - this.#readySinceMs < settleMs) return;
    this.#readySinceMs = undefined;
    if (this.phase === 'announcing') await authority.issueByNext();
    else await authority.dropOld();
    log.info('the replacement of the root went on', { 'pki.phase': this.phase });
    this.#wake.abort();
  }
}

function outdated(): LegateError {
  const text =
    'the authority that was restored here has another root than the mesh: its backup is of before a rotation';
  const hint =
    "nobody would believe it; stop this sidecar, move data_dir's pki/authority away and restore a later backup";
  return new LegateError('E_CONFLICT', text, { hint });
}

function isSame(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((each, index) => each === b[index]);
}
