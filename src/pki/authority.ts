import type { KeyObject } from 'node:crypto';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { makePrivateFolder, readFileIfAny, writeFileAtomically } from '../base/files.ts';
import { printable } from '../base/text.ts';
import { nameFault } from '../model/names.ts';
import { certificatesOf, fingerprintOfPem, keyFingerprint, lifeOf, serialOf } from './chain.ts';
import { issueHost, makeRoot, type Root } from './issue.ts';
import { keyOfPem, keyToPem, readPassphrase, readPlainFile, readSecretFile } from './key-files.ts';
import { Ledger } from './ledger.ts';

const fingerprintPattern = /^[0-9a-f]{64}$/;

/** What the authority has decided, in `settings.json`: its replacement is what makes a step of a rotation happen. */
export interface AuthoritySettings {
  readonly mesh: string;
  readonly meshId: string;
  readonly domain: string;
  readonly certificateLifeMs: number;
  /** Fingerprint of the root that issues. */
  readonly issuing: string;
  /** A root that hosts are to know before it issues. */
  readonly next?: string;
  /** The root that issued before; believed until nobody shows its certificates any more. */
  readonly old?: string;
  readonly rotationSinceMs?: number;
  /** Since when `issuing` does so, where another did before: backups from before are of no use. */
  readonly issuingSinceMs?: number;
}

/** Where the authority is in changing its root. */
export type RotationPhase = 'none' | 'announcing' | 'replacing';

/** To whom a certificate is given. */
export interface Recipient {
  readonly hostId: string;
  readonly name: string;
  readonly address: string;
  readonly port: number;
  /** More addresses of the host, such as where its store listens. */
  readonly addresses?: readonly string[];
  /** Fingerprints of roots that it is known to believe. */
  readonly trusts?: readonly string[];
}

export interface Issued {
  /** PEM: the host's certificate alone. */
  readonly certificate: string;
  /** PEM of the root that issued it. */
  readonly root: string;
}

/** The mesh's authority, on the host that has its keys. Keys stay in memory as long as it is open. */
export class Authority {
  readonly folder: string;
  readonly ledger: Ledger;
  /** PEM, PKCS#8: what policies are signed with. */
  readonly policyKey: string;
  readonly #clock: Clock;
  readonly #passphrase: string | undefined;
  readonly #roots: Map<string, Root>;
  #settings: AuthoritySettings;

  private constructor(parts: {
    readonly folder: string;
    readonly clock: Clock;
    readonly passphrase: string | undefined;
    readonly settings: AuthoritySettings;
    readonly roots: Map<string, Root>;
    readonly policyKey: string;
  }) {
    this.folder = parts.folder;
    this.ledger = Ledger.open(join(parts.folder, 'ledger.json'));
    this.policyKey = parts.policyKey;
    this.#clock = parts.clock;
    this.#passphrase = parts.passphrase;
    this.#roots = parts.roots;
    this.#settings = parts.settings;
  }

  /** Makes an authority with new keys in an empty folder. `policyKey`: PEM, PKCS#8. */
  static async create(
    folder: string,
    options: {
      readonly mesh: string;
      readonly meshId: string;
      readonly domain: string;
      readonly certificateLifeMs: number;
      readonly policyKey: string;
      readonly passphraseFile: string | undefined;
      readonly clock: Clock;
    },
  ): Promise<Authority> {
    const { mesh, meshId, domain, certificateLifeMs, policyKey, passphraseFile, clock } = options;
    const passphrase = passphraseFile === undefined ? undefined : readPassphrase(passphraseFile);
    makePrivateFolder(folder);
    const root = await makeRoot(mesh, clock.nowMs());
    const issuing = fingerprintOf(root);
    await saveRoot(folder, root, passphrase);
    const sealed = keyToPem(keyOfPem(policyKey, 'the policy key'), passphrase);
    await writeFileAtomically(join(folder, 'policy.key'), [sealed]);
    const settings = { mesh, meshId, domain, certificateLifeMs, issuing };
    await saveSettings(folder, settings);
    return new Authority({ folder, clock, passphrase, settings, policyKey, roots: new Map([[issuing, root]]) });
  }

  /** Opens what `create` made. Errors name the file and what to do. */
  static open(
    folder: string,
    options: { readonly passphraseFile: string | undefined; readonly clock: Clock },
  ): Authority {
    const { passphraseFile, clock } = options;
    const passphrase = passphraseFile === undefined ? undefined : readPassphrase(passphraseFile);
    const settings = readSettings(join(folder, 'settings.json'));
    const roots = new Map<string, Root>();
    for (const fingerprint of [settings.issuing, settings.next, settings.old]) {
      if (fingerprint !== undefined) roots.set(fingerprint, readRoot(folder, fingerprint, passphrase));
    }
    const path = join(folder, 'policy.key');
    const policyKey = keyToPem(keyOfPem(readSecretFile(path), path, passphrase));
    return new Authority({ folder, clock, passphrase, settings, roots, policyKey });
  }

  /**
   * Removes what a sidecar that was killed in the middle of a step has left: roots that the settings do not name. Only for
   * the sidecar itself, before it takes orders: a root that is being made is not named yet.
   */
  removeRemains(): void {
    const kept = new Set([...this.#roots.keys()].flatMap((fingerprint) => rootFiles(this.folder, fingerprint)));
    for (const name of readdirSync(this.folder)) {
      const path = join(this.folder, name);
      if (/^root-[0-9a-f]{16}\.(?:crt|key)$/.test(name) && !kept.has(path)) rmSync(path, { force: true });
    }
  }

  get settings(): AuthoritySettings {
    return this.#settings;
  }

  /** Whether it was restored here and the policy is yet to say that it is here. */
  get claims(): boolean {
    return existsSync(claimFile(this.folder));
  }

  /** The policy says by now that the authority is here. */
  async claimed(): Promise<void> {
    await rm(claimFile(this.folder), { force: true });
  }

  get phase(): RotationPhase {
    const { next, old } = this.#settings;
    return next !== undefined ? 'announcing' : old !== undefined ? 'replacing' : 'none';
  }

  /** PEM: the roots that hosts are to believe, the issuing one first. */
  get roots(): readonly string[] {
    const { issuing, next, old } = this.#settings;
    return [issuing, next, old].filter((each) => each !== undefined).map((each) => this.#root(each).certificate);
  }

  /** A certificate for a host's key; who has it is on disk before. */
  async issue(recipient: Recipient, publicKey: KeyObject): Promise<Issued> {
    const { mesh, domain, certificateLifeMs: lifeMs, issuing } = this.#settings;
    const { hostId, name, address, port, addresses = [], trusts } = recipient;
    const nowMs = this.#clock.nowMs();
    const root = this.#root(issuing);
    const subject = { mesh, hostId, name, domain, addresses: [address, ...addresses] };
    const certificate = await issueHost(root, subject, { publicKey, lifeMs, nowMs });
    const [parsed] = certificatesOf(certificate) ?? [];
    if (parsed === undefined) throw new Error('the authority issued something that is no certificate');
    const { notAfterMs } = lifeOf(parsed);
    const serial = serialOf(parsed);
    const known = this.ledger.get(hostId)?.trusts ?? [];
    const key = keyFingerprint(publicKey);
    const entry = { hostId, name, address, port, serial, root: issuing, key, issuedAtMs: nowMs, notAfterMs };
    await this.ledger.put({ ...entry, trusts: trusts ?? known }, nowMs);
    return { certificate, root: root.certificate };
  }

  /** Begins to replace the root: a new one is made, which hosts hear of before it issues. E_CONFLICT while one is replaced. */
  async beginRotation(): Promise<void> {
    if (this.phase !== 'none') {
      throw new LegateError('E_CONFLICT', 'the root is being replaced already', {
        hint: 'legate ca status shows how far it is',
      });
    }
    const root = await makeRoot(this.#settings.mesh, this.#clock.nowMs());
    await saveRoot(this.folder, root, this.#passphrase);
    const next = fingerprintOf(root);
    this.#roots.set(next, root);
    await this.#change({ ...this.#settings, next, rotationSinceMs: this.#clock.nowMs() });
  }

  /** The announced root issues from now on. */
  async issueByNext(): Promise<void> {
    const { next, issuing, ...rest } = this.#settings;
    if (next === undefined) return;
    await this.#change({ ...rest, issuing: next, old: issuing, issuingSinceMs: this.#clock.nowMs() });
  }

  /** The root that issued before is believed no more. */
  async dropOld(): Promise<void> {
    const { old, rotationSinceMs: _, ...rest } = this.#settings;
    if (old === undefined) return;
    await this.#change(rest);
    this.#roots.delete(old);
    const [certificate, key] = rootFiles(this.folder, old);
    await Promise.all([rm(certificate, { force: true }), rm(key, { force: true })]);
  }

  async #change(settings: AuthoritySettings): Promise<void> {
    await saveSettings(this.folder, settings);
    this.#settings = settings;
  }

  #root(fingerprint: string): Root {
    const root = this.#roots.get(fingerprint);
    if (root === undefined) throw new Error(`the authority has no root ${fingerprint}`);
    return root;
  }
}

/** Lets the authority in this folder, once it is opened by a sidecar, take over from wherever it was. */
export async function writeClaim(folder: string, savedAt: string): Promise<void> {
  await writeFileAtomically(claimFile(folder), [savedAt]);
}

/** Of when the backup is that this authority was restored from, until the policy says that it is here. */
export function restoredFrom(folder: string): string | undefined {
  const text = readFileIfAny(claimFile(folder), 1024);
  return text === undefined ? undefined : printable(text) || 'an unknown time';
}

function claimFile(folder: string): string {
  return join(folder, 'claim');
}

function fingerprintOf({ certificate }: Root): string {
  const fingerprint = fingerprintOfPem(certificate);
  if (fingerprint === undefined) throw new Error('a root is no certificate');
  return fingerprint;
}

function rootFiles(folder: string, fingerprint: string): readonly [certificate: string, key: string] {
  const name = join(folder, `root-${fingerprint.slice(0, 16)}`);
  return [`${name}.crt`, `${name}.key`];
}

async function saveRoot(folder: string, root: Root, passphrase: string | undefined): Promise<void> {
  const [certificate, key] = rootFiles(folder, fingerprintOf(root));
  await writeFileAtomically(key, [keyToPem(root.key, passphrase)]);
  await writeFileAtomically(certificate, [root.certificate]);
}

function readRoot(folder: string, fingerprint: string, passphrase: string | undefined): Root {
  const [certificatePath, keyPath] = rootFiles(folder, fingerprint);
  const certificate = readPlainFile(certificatePath);
  const key = keyOfPem(readSecretFile(keyPath), keyPath, passphrase);
  const [parsed] = certificatesOf(certificate) ?? [];
  if (fingerprintOfPem(certificate) !== fingerprint || parsed?.checkPrivateKey(key) !== true) {
    throw new LegateError('E_INVALID', `${certificatePath} is not the root of this authority, or not that of its key`, {
      hint: 'restore the authority from a backup: legate ca restore',
    });
  }
  return { certificate, key };
}

async function saveSettings(folder: string, settings: AuthoritySettings): Promise<void> {
  await writeFileAtomically(join(folder, 'settings.json'), [`${JSON.stringify({ v: 1, ...settings }, null, 1)}\n`]);
}

function readSettings(path: string): AuthoritySettings {
  const text = readFileIfAny(path, 64 * 1024);
  const fingerprint = (id: string): string | undefined =>
    fingerprintPattern.test(id) ? undefined : 'is no fingerprint';
  try {
    const fields = new Fields(JSON.parse(text ?? ''));
    fields.integer('v', 1, 1);
    return {
      mesh: fields.name('mesh', nameFault),
      meshId: fields.text('meshId', 32, 32),
      domain: fields.text('domain', 253, 1),
      certificateLifeMs: fields.integer('certificateLifeMs', 1000, 10 * 366 * 24 * 3_600_000),
      issuing: fields.name('issuing', fingerprint),
      ...(fields.has('next') && { next: fields.name('next', fingerprint) }),
      ...(fields.has('old') && { old: fields.name('old', fingerprint) }),
      ...(fields.has('issuingSinceMs') && { issuingSinceMs: fields.integer('issuingSinceMs', 0, 8.64e15) }),
      ...(fields.has('rotationSinceMs') && { rotationSinceMs: fields.integer('rotationSinceMs', 0, 8.64e15) }),
    };
  } catch (error) {
    if (!(error instanceof FieldFault) && !(error instanceof SyntaxError)) throw error;
    throw new LegateError(
      'E_INVALID',
      `${path} cannot be read: ${text === undefined ? 'there is none' : error.message}`,
      {
        hint: 'restore the authority from a backup: legate ca restore',
      },
    );
  }
}
