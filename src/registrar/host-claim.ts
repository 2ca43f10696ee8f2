import { createHash, randomBytes } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { describeError, LegateError } from '../base/errors.ts';
import { readBounded, readFileIfAny, writeFileAtomically } from '../base/files.ts';
import type { Log } from '../base/log.ts';
import { isRunning, processName } from '../base/processes.ts';
import { decodeAlive, type HostClaim, nonceFault } from '../catalog/codec.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, Store } from '../store/store.ts';

/** Starts of which a data directory remembers the nonces: what a lease may still show after a row of quick crashes. */
const maxNonces = 8;
const maxFileBytes = 16 * 1024;
/** A holder that may be dead has lapsed after this many times the TTL (Consul's sessions take up to two) and a bit. */
const lapseFactor = 2;
const lapseSlackMs = 1000;
const lookEveryMs = 500;

/** `unclear`: it may be from this host's former life, or from another machine that has a copy of its data directory. */
type Verdict = 'ours' | 'unclear' | 'other';

export interface HostClaimOptions {
  /** `claims.json` in the data directory. */
  readonly path: string;
  /** The advertised address. */
  readonly address: string;
  readonly log: Log;
  /** Nobody else can reach the store: whoever showed a sign of life in it was this host. */
  readonly alone?: () => boolean;
  /** What tells this start from others, for tests. */
  readonly of?: Partial<HostClaim>;
}

/** Makes this start's claim and remembers it in the data directory, before anybody can see it. */
export async function openHostClaim({ path, address, log, alone, of }: HostClaimOptions): Promise<OwnClaim> {
  const nonce = randomBytes(16).toString('hex');
  const mine = {
    nonce,
    machine: digestOf('/etc/machine-id'),
    boot: digestOf('/proc/sys/kernel/random/boot_id'),
    process: processName(),
    address,
    ...of,
  };
  const before = await readNonces(path);
  const text = JSON.stringify({ v: 1, nonces: [mine.nonce, ...before].slice(0, maxNonces) });
  await writeFileAtomically(path, [`${text}\n`]).catch((error: unknown) => {
    log.warn('this start cannot be remembered; the next one may have to wait for its lease to lapse', {
      'registrar.reason': describeError(error),
    });
  });
  return new OwnClaim(mine, new Set(before), alone);
}

/**
 * This sidecar's claim to its host id, and its judgement of others that it finds in the store. Each start has a nonce of
 * its own, which its data directory remembers: a nonce that it does not know is of a sidecar that started later with a copy
 * of the directory. One that it knows is this host's former life, at once when it was the same machine at the same address
 * (a restart, a reboot, a container made anew), else (a copy made while the original ran) when its lease lapses.
 */
export class OwnClaim {
  readonly mine: HostClaim;
  readonly #known: ReadonlySet<string>;
  readonly #alone: () => boolean;

  constructor(mine: HostClaim, known: ReadonlySet<string>, alone: () => boolean = () => false) {
    this.mine = mine;
    this.#known = known;
    this.#alone = alone;
  }

  /** Whether the sign of life is this run's. */
  isMine(entry: Entry): boolean {
    return claimOf(entry)?.nonce === this.mine.nonce;
  }

  /** The claim of another sidecar that keeps this one from its id; undefined when nothing does. */
  otherIn(entry: Entry | undefined): HostClaim | undefined {
    const found = claimOf(entry);
    return found === undefined || this.judge(found) === 'ours' ? undefined : found;
  }

  judge(found: HostClaim): Verdict {
    const { mine } = this;
    if (this.#alone() || found.nonce === mine.nonce) return 'ours';
    const isSameBoot = found.boot !== '' && found.boot === mine.boot;
    if (isSameBoot && found.process !== mine.process) {
      const lives = isRunning(found.process);
      if (lives !== undefined) return lives ? 'other' : 'ours';
    }
    const isSamePlace = found.address === mine.address && (isSameBoot || found.machine === mine.machine);
    if (this.#known.has(found.nonce)) return isSamePlace ? 'ours' : 'unclear';
    return isSamePlace ? 'unclear' : 'other';
  }
}

export interface CheckHostIdOptions {
  readonly store: Store;
  readonly keys: Keys;
  readonly hostId: string;
  readonly claim: OwnClaim;
  readonly leaseTtlMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/**
 * Resolves when no other living sidecar has this host's id, which may take as long as a lease takes to lapse. E_IN_USE when
 * one has; the store's own errors.
 */
export async function checkHostId(options: CheckHostIdOptions): Promise<void> {
  const { store, keys, hostId, claim, leaseTtlMs, clock, log, signal } = options;
  const untilMs = clock.monotonicMs() + lapseFactor * leaseTtlMs + lapseSlackMs;
  for (let looks = 0; ; looks += 1) {
    const other = claim.otherIn(await store.get(keys.aliveOf(hostId), { signal }));
    if (other === undefined) return;
    if (claim.judge(other) === 'other' || clock.monotonicMs() >= untilMs) {
      throw new LegateError('E_IN_USE', duplicateText(hostId, other), { hint: duplicateHint });
    }
    if (looks === 0) {
      log.info('the store shows a sign of life of this host id from another place; waiting whether it lapses', {
        'host.id': hostId,
        'host.address': other.address,
      });
    }
    await clock.sleep(lookEveryMs, signal);
  }
}

export function duplicateText(hostId: string, { address }: HostClaim): string {
  return `another sidecar, at ${address}, runs with this host's id ${hostId}`;
}

export const duplicateHint =
  "one of the two has a copy of the other's data_dir: stop it, give it an empty data_dir, and start it again";

function claimOf(entry: Entry | undefined): HostClaim | undefined {
  const alive = entry === undefined ? undefined : decodeAlive(entry.value);
  return alive?.ok === true ? alive.value.claim : undefined;
}

/** What identifies a machine is not to be told as it is (machine-id(5)). */
function digestOf(path: string): string {
  try {
    const text = readFileIfAny(path, maxFileBytes)?.trim() ?? '';
    return text === '' ? '' : createHash('sha256').update(`legate ${text}`).digest('hex').slice(0, 32);
  } catch {
    return '';
  }
}

/** A file that cannot be read is one of no former starts. */
async function readNonces(path: string): Promise<string[]> {
  try {
    const text = await readBounded(path, maxFileBytes);
    const parsed: unknown = typeof text === 'string' ? JSON.parse(text) : undefined;
    const nonces = typeof parsed === 'object' && parsed !== null && 'nonces' in parsed ? parsed.nonces : [];
    if (!Array.isArray(nonces)) return [];
    return nonces.filter((nonce) => typeof nonce === 'string' && nonceFault(nonce) === undefined).slice(0, maxNonces);
  } catch {
    return [];
  }
}
