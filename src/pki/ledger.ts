import { LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { readFileIfAny, writeFileAtomically } from '../base/files.ts';
import { nameFault } from '../model/names.ts';

const maxHosts = 10_000;
const maxBytes = 16 * 1024 * 1024;
/** Hosts whose certificate ended so long ago are forgotten. */
const forgottenAfterMs = 30 * 24 * 3_600_000;

/** What the authority remembers of a host that it gave a certificate. */
export interface LedgerEntry {
  readonly hostId: string;
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly serial: string;
  /** The root that issued it: its fingerprint. */
  readonly root: string;
  /** SHA-256 of the certificate's key, as `keyFingerprint` has it: by it a host that joins again is known. */
  readonly key?: string;
  readonly issuedAtMs: number;
  readonly notAfterMs: number;
  /** Fingerprints of the roots that the host has said to believe. */
  readonly trusts: readonly string[];
}

/** Who got certificates: on disk before the host has it. */
export class Ledger {
  readonly #path: string;
  readonly #hosts: Map<string, LedgerEntry>;
  #writing: Promise<void> = Promise.resolve();

  private constructor(path: string, entries: readonly LedgerEntry[]) {
    this.#path = path;
    this.#hosts = new Map(entries.map((entry) => [entry.hostId, entry]));
  }

  /** E_INVALID when the file is not one. */
  static open(path: string): Ledger {
    const text = readFileIfAny(path, maxBytes);
    if (text === undefined) return new Ledger(path, []);
    try {
      const fields = new Fields(JSON.parse(text));
      fields.integer('v', 1, 1);
      return new Ledger(
        path,
        fields.list('hosts', maxHosts).map((row, index) => entryOf(new Fields(row, `hosts[${index}]`))),
      );
    } catch (error) {
      if (!(error instanceof FieldFault) && !(error instanceof SyntaxError)) throw error;
      throw new LegateError('E_INVALID', `${path} cannot be read: ${error.message}`, {
        hint: 'restore the authority from a backup: legate ca restore',
      });
    }
  }

  get(hostId: string): LedgerEntry | undefined {
    return this.#hosts.get(hostId);
  }

  entries(): readonly LedgerEntry[] {
    return [...this.#hosts.values()];
  }

  /** Resolves when it is on disk. E_TOO_LARGE beyond 10,000 hosts. */
  async put(entry: LedgerEntry, nowMs: number): Promise<void> {
    for (const { hostId, notAfterMs } of this.#hosts.values()) {
      if (notAfterMs + forgottenAfterMs < nowMs) this.#hosts.delete(hostId);
    }
    if (!this.#hosts.has(entry.hostId) && this.#hosts.size >= maxHosts) {
      throw new LegateError('E_TOO_LARGE', `${maxHosts} hosts have certificates, which is the most`);
    }
    this.#hosts.set(entry.hostId, entry);
    await this.#save();
  }

  #save(): Promise<void> {
    const write = (): Promise<void> =>
      writeFileAtomically(this.#path, [`${JSON.stringify({ v: 1, hosts: this.entries() }, null, 1)}\n`]);
    this.#writing = this.#writing.then(write, write);
    return this.#writing;
  }
}

function entryOf(fields: Fields): LedgerEntry {
  return {
    hostId: fields.name('hostId', (id) => (/^[0-9a-f]{16}$/.test(id) ? undefined : 'is no id')),
    name: fields.name('name', nameFault),
    address: fields.address('address'),
    port: fields.integer('port', 1, 65535),
    serial: fields.text('serial', 64, 1),
    root: fields.text('root', 64, 1),
    ...(fields.has('key') && { key: fields.text('key', 64, 64) }),
    issuedAtMs: fields.integer('issuedAtMs', 0, 8.64e15),
    notAfterMs: fields.integer('notAfterMs', 0, 8.64e15),
    trusts: fields.texts('trusts', 8, 64),
  };
}
