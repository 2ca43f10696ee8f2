import { statSync } from 'node:fs';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { span } from '../src/base/duration.ts';
import { describeError, isLegateError, LegateError } from '../src/base/errors.ts';
import { Latest } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import type { Config } from '../src/config/config.ts';
import type { Credentials } from '../src/model/credentials.ts';
import { spiffeIdOf } from '../src/model/spiffe.ts';
import { certificatesOf, fingerprintOfPem, rootOfChain, timeProblem } from '../src/pki/chain.ts';
import { credentialsOf } from '../src/pki/host-files.ts';
import { keyOfPem, readPlainFile, readSecretFile } from '../src/pki/key-files.ts';
import type { IdentityDocument } from './admin/documents.ts';

const lookEveryMs = 2000;
const warningShare = 1 / 3;
const filesId = 'pki.outside';
const endId = 'pki.certificate';

export interface OutsideIdentityOptions {
  readonly tls: NonNullable<Config['tls']>;
  readonly mesh: string;
  readonly hostId: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/** This host's identity of files that somebody else renews. Read again when they change; bad ones leave the old in use. */
export class OutsideIdentity {
  readonly credentials: Latest<Credentials | undefined>;
  readonly #options: OutsideIdentityOptions;
  #seen = '';
  #problem: string | null = null;

  constructor(options: OutsideIdentityOptions) {
    this.#options = options;
    this.credentials = new Latest<Credentials | undefined>(undefined);
    this.#look();
    options.metrics.gauge(
      'legate_pki_certificate_remaining_seconds',
      "How long this host's certificate holds; negative once it has ended.",
      [],
      () => {
        const { value } = this.credentials;
        return value === undefined ? [] : [[[], (value.notAfterMs - options.clock.nowMs()) / 1000]];
      },
    );
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.#options.clock.sleep(lookEveryMs, signal).catch(() => undefined);
      if (!signal.aborted) this.#look();
    }
  }

  document(): IdentityDocument {
    const { value } = this.credentials;
    return {
      role: 'outside',
      certificateUntil: value === undefined ? null : new Date(value.notAfterMs).toISOString(),
      serial: value?.serial ?? null,
      roots: (value?.roots ?? []).map((root) => fingerprintOfPem(root) ?? ''),
      problem: this.#problem,
    };
  }

  #look(): void {
    const { tls, conditions, log } = this.#options;
    const now = [tls.ca, tls.cert, tls.key].map(stampOf).join(' ');
    if (now !== this.#seen || this.#problem !== null) {
      try {
        const next = this.#read();
        this.#seen = now;
        this.#problem = null;
        conditions.clear(filesId);
        if (next.chain !== this.credentials.value?.chain || next.roots.join() !== this.credentials.value.roots.join()) {
          this.credentials.set(next);
          log.info('this host has a new certificate', {
            'pki.serial': next.serial,
            'pki.until': new Date(next.notAfterMs).toISOString(),
          });
        }
      } catch (error) {
        if (!isLegateError(error)) throw error;
        // Files are replaced one after the other: what does not fit together is looked at again.
        this.#problem = describeError(error);
        const stays =
          this.credentials.value === undefined ? 'this host has no identity until then' : 'the ones before stay in use';
        const hint = error.hint ?? 'put files of one certificate there: they are read again by themselves';
        conditions.raise(filesId, 'error', `the files of tls cannot be used: ${this.#problem}; ${stays}`, hint);
      }
    }
    this.#tellEnd();
  }

  #read(): Credentials {
    const { tls, mesh, hostId, clock } = this.#options;
    const roots = certificatesOf(readPlainFile(tls.ca));
    if (roots === undefined) throw new LegateError('E_INVALID', `${tls.ca} holds no certificates in PEM`);
    const key = keyOfPem(readSecretFile(tls.key), tls.key);
    const chain = readPlainFile(tls.cert);
    const read = credentialsOf({ chain, key, roots, mesh });
    const fault = (what: string): LegateError =>
      new LegateError('E_INVALID', `${tls.cert}: ${what}`, {
        hint: `the certificate of this host needs the URI name ${spiffeIdOf(mesh, hostId)}`,
      });
    if (read instanceof LegateError) throw fault(read.message);
    if (read.hostId !== hostId) throw fault(`it names host ${read.hostId}, and this is host ${hostId}`);
    const parsed = certificatesOf(chain) ?? [];
    const found = rootOfChain(parsed, roots);
    if ('problem' in found) throw fault(`it was not issued by a certificate in ${tls.ca}`);
    const [certificate] = parsed;
    const problem = certificate === undefined ? undefined : timeProblem(certificate, clock.nowMs(), "this host's");
    if (problem !== undefined) throw fault(problem);
    return read;
  }

  #tellEnd(): void {
    const { conditions, clock } = this.#options;
    const { value } = this.credentials;
    if (value === undefined) return;
    const leftMs = value.notAfterMs - clock.nowMs();
    const hint = 'put a new one in the place of the files of tls: they are read again by themselves';
    if (leftMs <= 0) conditions.raise(endId, 'error', `this host's certificate has ended ${span(-leftMs)} ago`, hint);
    else if (leftMs < (value.notAfterMs - value.notBeforeMs) * warningShare)
      conditions.raise(endId, 'warning', `this host's certificate ends in ${span(leftMs)}`, hint);
    else conditions.clear(endId);
  }
}

/** What tells a file from the one that was there before. */
function stampOf(path: string): string {
  try {
    const { ino, mtimeMs, size, mode } = statSync(path);
    return `${ino}:${mtimeMs}:${size}:${mode}`;
  } catch {
    return 'none';
  }
}
