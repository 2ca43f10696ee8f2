import { stat } from 'node:fs/promises';
import type { Clock } from '../../src/base/clock.ts';
import type { Condition, Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError, systemCode } from '../../src/base/errors.ts';
import { printable } from '../../src/base/text.ts';
import type { CertificateFiles } from '../../src/model/link.ts';
import { type Certificate, readCertificate } from './certificate.ts';

/** How often it is looked whether the files have changed. */
export const lookEveryMs = 10_000;
/** How long before its end a certificate that nobody has replaced is told of. */
export const warnBeforeMs = 14 * 86_400_000;

/** Said of files that cannot be used while what was read before still is: nobody is kept out. */
export const formerStays = 'the certificate of before stays';

export interface CertificatesOptions {
  /** The first is shown to those who ask for no name, or for one that no certificate has. */
  readonly files: readonly CertificateFiles[];
  /** The beginning of the ids of its conditions, and how people know it: `web at 0.0.0.0:443`. */
  readonly condition: string;
  readonly what: string;
  readonly clock: Clock;
  readonly conditions: Conditions;
  /** Another certificate than before is the first one. */
  readonly firstChanged: (certificate: Certificate) => void;
}

interface Slot {
  readonly files: CertificateFiles;
  readonly condition: string;
  /** By which a file that was written anew is told from the one that was read. */
  stamp: string;
  /** The one that is shown. */
  certificate: Certificate | undefined;
  /** What the files have instead, while it is not its time and that of the one that is shown is. */
  untimely: Certificate | undefined;
  fault: unknown;
  /** What the condition says now. */
  told: string;
}

/**
 * The certificates of a door, as their files are: what is written anew is shown from the next handshake on, and connections
 * that run are not touched. Files with a fault change nothing, and raise a condition; so does a certificate that has ended
 * or not begun, while the one of before holds.
 */
export class Certificates {
  readonly #options: CertificatesOptions;
  readonly #slots: readonly Slot[];
  #byName: ReadonlyMap<string, Certificate> = new Map();
  #first: Certificate | undefined;
  #cancelLook: (() => void) | undefined;
  #closed = false;

  /** Reads the files at once; they are small. */
  constructor(options: CertificatesOptions) {
    this.#options = options;
    this.#slots = options.files.map((files, index) => ({
      files,
      condition: `${options.condition}.${index}`,
      stamp: '',
      certificate: undefined,
      untimely: undefined,
      fault: undefined,
      told: '',
    }));
    for (const slot of this.#slots) this.#read(slot);
    this.#changed();
    this.#lookLater();
  }

  /** Undefined while there is none that could be read. */
  get first(): Certificate | undefined {
    return this.#first;
  }

  /** All names, and when the first of the certificates ends; null while there is none. */
  get document(): { readonly names: readonly string[]; readonly notAfter: string | null } {
    const present = this.#slots.flatMap(({ certificate }) => (certificate === undefined ? [] : [certificate]));
    const ends = Math.min(...present.map(({ notAfterMs }) => notAfterMs));
    return {
      names: [...new Set(present.flatMap(({ names }) => names))],
      notAfter: present.length === 0 ? null : dateOf(ends),
    };
  }

  /** The certificate for the name that a client asks for (RFC 6066 section 3); it may be any text. */
  for(servername: string): Certificate | undefined {
    const name = servername.toLowerCase();
    const parent = name.indexOf('.');
    return (
      this.#byName.get(name) ?? (parent > 0 ? this.#byName.get(`*${name.slice(parent)}`) : undefined) ?? this.#first
    );
  }

  close(): void {
    this.#closed = true;
    this.#cancelLook?.();
    for (const slot of this.#slots) this.#tell(slot, undefined);
  }

  #lookLater(): void {
    if (this.#closed) return;
    this.#cancelLook = this.#options.clock.after(lookEveryMs, () => {
      void this.#look().then(() => this.#lookLater());
    });
  }

  /** Reads what has changed. */
  async #look(): Promise<void> {
    let changed = false;
    for (const slot of this.#slots) {
      const stamp = await stampOf(slot.files);
      if (this.#closed) return;
      // At the first look it is not known what the files were when they were read.
      if (stamp !== slot.stamp) this.#read(slot);
      else if (slot.untimely === undefined) continue;
      else this.#use(slot, slot.untimely);
      slot.stamp = stamp;
      changed = true;
    }
    if (changed) this.#changed();
    for (const slot of this.#slots) this.#review(slot);
  }

  #read(slot: Slot): void {
    try {
      this.#use(slot, readCertificate(slot.files));
      slot.fault = undefined;
    } catch (error) {
      slot.fault = error;
      slot.untimely = undefined;
    }
    this.#review(slot);
  }

  /** Shows it, unless it is out of its time and the one that is shown is not. */
  #use(slot: Slot, certificate: Certificate): void {
    const nowMs = this.#options.clock.nowMs();
    const stays = slot.certificate !== undefined && holds(slot.certificate, nowMs) && !holds(certificate, nowMs);
    slot.untimely = stays ? certificate : undefined;
    if (!stays) slot.certificate = certificate;
  }

  #changed(): void {
    const byName = new Map<string, Certificate>();
    for (const { certificate } of this.#slots) {
      for (const name of certificate?.names ?? []) {
        if (certificate !== undefined && !byName.has(name)) byName.set(name, certificate);
      }
    }
    this.#byName = byName;
    const first = this.#slots.find(({ certificate }) => certificate !== undefined)?.certificate;
    if (first === undefined || first === this.#first) return;
    this.#first = first;
    this.#options.firstChanged(first);
  }

  /** Says what is wrong with a certificate, the worst of it. */
  #review(slot: Slot): void {
    const { fault, certificate, untimely, files } = slot;
    const { what, clock } = this.#options;
    const again = `they are read again within ${lookEveryMs / 1000} s`;
    const stays = certificate && `; ${formerStays}, until ${dateOf(certificate.notAfterMs)}`;
    if (fault !== undefined) {
      const problem = isLegateError(fault) ? fault.message : describeError(fault);
      const hint = (isLegateError(fault) && fault.hint) || 'check the path and the files';
      this.#tell(slot, {
        severity: 'error',
        message: `a certificate of ${what} cannot be used: ${problem}${stays ?? ''}`,
        hint: `${hint}; ${again}`,
      });
      return;
    }
    if (certificate === undefined) return;
    const nowMs = clock.nowMs();
    const its = `the certificate of ${what} in ${printable(files.cert)}`;
    const hint = `replace certificate and key; ${again}`;
    const { notBeforeMs, notAfterMs } = untimely ?? certificate;
    if (nowMs >= notAfterMs) {
      const effect = untimely === undefined ? ': clients refuse it' : stays;
      const message = `${its} has ended at ${dateOf(notAfterMs)}${effect}`;
      this.#tell(slot, { severity: 'error', message, hint });
    } else if (nowMs < notBeforeMs) {
      const effect = untimely === undefined ? ': clients refuse it until then' : stays;
      const message = `${its} holds only from ${dateOf(notBeforeMs)}${effect}`;
      this.#tell(slot, { severity: 'error', message, hint: `check this host's clock, or ${hint}` });
    } else if (nowMs >= notAfterMs - warnBeforeMs) {
      this.#tell(slot, { severity: 'warning', message: `${its} ends at ${dateOf(notAfterMs)}`, hint });
    } else this.#tell(slot, undefined);
  }

  /** Raises a condition once for each message. */
  #tell(slot: Slot, said: Pick<Condition, 'severity' | 'message' | 'hint'> | undefined): void {
    const told = said === undefined ? '' : `${said.severity} ${said.message}`;
    if (told === slot.told) return;
    slot.told = told;
    const { conditions } = this.#options;
    if (said === undefined) conditions.clear(slot.condition);
    else conditions.raise(slot.condition, said.severity, said.message, said.hint);
  }
}

function holds({ notBeforeMs, notAfterMs }: Certificate, nowMs: number): boolean {
  return notBeforeMs <= nowMs && nowMs < notAfterMs;
}

async function stampOf({ cert, key }: CertificateFiles): Promise<string> {
  const stamps = [cert, key].map(async (path) => {
    try {
      const { dev, ino, size, mtimeMs, ctimeMs } = await stat(path);
      return `${dev} ${ino} ${size} ${mtimeMs} ${ctimeMs}`;
    } catch (error) {
      return systemCode(error) ?? 'unknown';
    }
  });
  return (await Promise.all(stamps)).join(', ');
}

function dateOf(ms: number): string {
  return new Date(ms).toISOString();
}
