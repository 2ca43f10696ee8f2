import { createPublicKey } from 'node:crypto';
import { existsSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { LegateError } from '../src/base/errors.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { whileAlive } from '../src/base/processes.ts';
import type { Config } from '../src/config/config.ts';
import type { Policy } from '../src/model/policy.ts';
import { Authority } from '../src/pki/authority.ts';
import { certificatesOf, fingerprintOfPem } from '../src/pki/chain.ts';
import { alreadyEnrolled, credentialsOf, hostFiles, isEnrolled, writeNewHost } from '../src/pki/host-files.ts';
import { newKey, readPassphrase } from '../src/pki/key-files.ts';
import { newPolicyKeys, sealPolicy } from '../src/pki/policy-seal.ts';
import { formatToken, hashOfSecret, newToken } from '../src/pki/token.ts';
import { type TokenTerms, tokenWrite } from '../src/registrar/join-tokens.ts';
import { openMesh } from '../src/registrar/mesh-identity.ts';
import { openStore } from '../src/store/backends.ts';
import type { Store } from '../src/store/store.ts';
import { type DataDir, openDataDir } from './data-dir.ts';
import { joinAddress } from './joined-store.ts';
import { storeKeys, storeText } from './store-target.ts';

const storeLimitMs = 15_000;

export interface InitOptions {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly terms: TokenTerms;
  readonly certificateLifeMs: number;
}

/** What was made, for people and programs. */
export interface InitResult {
  readonly mesh: string;
  readonly meshId: string;
  readonly hostId: string;
  readonly host: string;
  /** SHA-256 of the authority's root. */
  readonly fingerprint: string;
  readonly encrypted: boolean;
  readonly store: string;
  readonly token: string;
  readonly tokenExpiresAt: string;
  /** What new hosts name: `10.77.0.1`. */
  readonly address: string;
}

/**
 * Makes this host the authority of a mesh: its keys, its own certificate, the first policy and a token, on disk and in the
 * store. The sidecar must not run. Nothing that exists is overwritten: E_CONFLICT. E_STORE_AWAY when the store does not
 * answer in time.
 */
export async function initMesh(config: Config, options: InitOptions): Promise<InitResult> {
  if (isEnrolled(config.dataDir)) throw alreadyEnrolled(config.dataDir);
  checkStore(config);
  const { passphraseFile } = config.authority;
  // What is wrong on this host is told before any other is waited for.
  if (passphraseFile !== undefined) readPassphrase(passphraseFile);
  return await whileAlive(() => initWithStore(config, options));
}

async function initWithStore(config: Config, options: InitOptions): Promise<InitResult> {
  const { clock, signal } = options;
  const hostFile = join(config.dataDir, 'host.json');
  const isNew = !existsSync(hostFile);
  const dataDir = await openDataDir(config.dataDir, { clock, signal });
  let store: Store | undefined;
  let isMade = false;
  try {
    store = await openAnswering(config, options);
    const made = await make(config, options, dataDir, store);
    isMade = true;
    return made;
  } finally {
    await store?.close();
    // Else the next try would take this host for one that ran before.
    if (isNew && !isMade) await rm(hostFile, { force: true });
    dataDir.release();
  }
}

function checkStore({ store, advertise }: Config): void {
  if (store.kind !== 'embedded' || store.listen !== undefined) return;
  throw new LegateError('E_CONFIG', 'store.listen is missing: other hosts could not reach the embedded store', {
    hint: `write store: {kind: embedded, listen: "${advertise}:7712"} into the configuration, or name an etcd or Consul`,
  });
}

/** The store, without offering it to others, once it answers. E_STORE_AWAY when it does not. */
async function openAnswering(config: Config, { clock, signal }: InitOptions): Promise<Store> {
  const metrics = new Metrics();
  // What is wrong with it is told once, by the error.
  const log = silentLog;
  const conditions = new Conditions(log, clock, metrics);
  const used = config.store.kind === 'embedded' ? { ...config.store, listen: undefined } : config.store;
  const store = await openStore(used, { clock, log, metrics, conditions, dataDir: config.dataDir });
  const untilMs = clock.monotonicMs() + storeLimitMs;
  while (store.status.value.state !== 'connected' && !signal.aborted && clock.monotonicMs() < untilMs)
    await clock.sleep(20, signal).catch(() => undefined);
  if (store.status.value.state === 'connected') return store;
  const { problem, hint } = store.status.value;
  await store.close();
  signal.throwIfAborted();
  throw new LegateError('E_STORE_AWAY', problem ?? `${storeText(config.store)} does not answer`, {
    hint: `${hint ?? 'start it'}; nothing was made, so run legate init again then`,
  });
}

async function make(config: Config, options: InitOptions, dataDir: DataDir, store: Store): Promise<InitResult> {
  const { clock, signal, terms, certificateLifeMs } = options;
  const { mesh, advertise, domain } = config;
  const { hostId, meshId: remembered } = dataDir.identity;
  const keys = storeKeys(mesh, config.store);
  if ((await store.get(keys.policy, { signal })) !== undefined) throw otherAuthority();
  const { meshId } = await openMesh({ store, keys, clock, signal, ...(remembered !== undefined && { remembered }) });

  const policyKeys = newPolicyKeys();
  const hostKey = newKey();
  const final = hostFiles(config.dataDir);
  const draft = `${final.folder}.authority`;
  await rm(draft, { recursive: true, force: true });
  const passphraseFile = config.authority.passphraseFile;
  const made = { mesh, meshId, domain, certificateLifeMs, policyKey: policyKeys.privateKey, passphraseFile, clock };
  try {
    const authority = await Authority.create(draft, made);
    const port = config.tunnel.listen.port;
    const recipient = { hostId, name: config.host, address: advertise, port, addresses: ownAddresses(config) };
    const issued = await authority.issue(recipient, createPublicKey(hostKey));
    const roots = certificatesOf(issued.root) ?? [];
    // The root goes with it: a new host knows only its fingerprint.
    const credentials = credentialsOf({ chain: issued.certificate + issued.root, key: hostKey, roots, mesh });
    if (credentials instanceof LegateError) throw new Error(credentials.message);
    const policy = firstPolicy({ mesh, meshId, authority: hostId, roots: authority.roots, nowMs: clock.nowMs() });
    const sealed = sealPolicy(policy, policyKeys.privateKey);
    const fingerprint = fingerprintOfPem(issued.root) ?? '';
    const token = newToken(fingerprint, hostId);
    await writeNewHost(
      config.dataDir,
      { credentials, sealedPolicy: sealed, policyKey: policyKeys.publicKey },
      (files) => rename(draft, files.authority),
    );
    try {
      const write = tokenWrite(keys, hashOfSecret(token.secret), terms, clock.nowMs());
      const writes = [{ kind: 'put', key: keys.policy, value: sealed } as const, write];
      const { ok } = await store.txn([{ kind: 'absent', key: keys.policy }], writes, { signal });
      if (!ok) throw otherAuthority();
      await dataDir.rememberMesh(meshId);
    } catch (error) {
      await rm(final.folder, { recursive: true, force: true });
      throw error;
    }
    return {
      mesh,
      meshId,
      hostId,
      host: config.host,
      fingerprint,
      encrypted: passphraseFile !== undefined,
      store: storeText(config.store),
      token: formatToken(token),
      tokenExpiresAt: new Date(clock.nowMs() + terms.ttlMs).toISOString(),
      address: joinAddress({ address: advertise, port }),
    };
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
}

/** Where this host listens besides its advertised address. */
export function ownAddresses({ store }: Pick<Config, 'store'>): readonly string[] {
  const listen = store.kind === 'embedded' ? store.listen?.address : undefined;
  return listen === undefined || listen === '0.0.0.0' || listen === '::' ? [] : [listen];
}

function firstPolicy(parts: {
  readonly mesh: string;
  readonly meshId: string;
  readonly authority: string;
  readonly roots: readonly string[];
  readonly nowMs: number;
}): Policy {
  const { nowMs, ...rest } = parts;
  const empty = { intents: [], grants: [], external: [], revoked: [] };
  return { ...rest, version: Math.trunc(nowMs), default: 'allow', mode: 'enforce', fromLinks: true, ...empty };
}

function otherAuthority(): LegateError {
  return new LegateError('E_CONFLICT', 'the mesh in this store has an authority already', {
    hint: 'nothing was changed; make this host one of that mesh with legate join, or name another `mesh` or store',
  });
}
