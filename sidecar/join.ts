import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto';
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import { isLegateError, LegateError } from '../src/base/errors.ts';
import { whileAlive } from '../src/base/processes.ts';
import { printable } from '../src/base/text.ts';
import type { Config } from '../src/config/config.ts';
import { type Endpoint, parseEndpoint } from '../src/model/address.ts';
import type { Credentials } from '../src/model/credentials.ts';
import { certificatesOf, rootOfChain } from '../src/pki/chain.ts';
import { defaultTunnelPort, isDeskBusy } from '../src/pki/desk.ts';
import { askDesk } from '../src/pki/desk-client.ts';
import {
  alreadyEnrolled,
  credentialsOf,
  hostFiles,
  isEnrolled,
  readHostCredentials,
  replaceHost,
  writeNewHost,
} from '../src/pki/host-files.ts';
import { makeRequest } from '../src/pki/issue.ts';
import { newKey } from '../src/pki/key-files.ts';
import { type Admission, decodeAdmission, encodeEnrol } from '../src/pki/messages.ts';
import { openSealedPolicy } from '../src/pki/policy-seal.ts';
import { parseToken } from '../src/pki/token.ts';
import { describeTarget } from '../src/registrar/store-marker.ts';
import { openDataDir } from './data-dir.ts';
import { readStoreText, storeDifference, writeJoined } from './joined-store.ts';

/** How long a desk that is busy is asked again, and the pauses. */
const busyLimitMs = 15_000;
const busyFirstMs = 100;
const busyCeilingMs = 1000;

export interface JoinOptions {
  /** The authority's host: `10.77.0.1`, or with a port. */
  readonly address: string;
  readonly token: string;
  /** It is a host of the mesh already, which the others refuse: it keeps its id where the authority knows its key. */
  readonly again?: boolean;
  readonly version: string;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export interface JoinResult {
  readonly mesh: string;
  readonly meshId: string;
  readonly hostId: string;
  readonly host: string;
  readonly certificateUntil: string;
  /** `etcd at https://10.77.0.1:7712`. */
  readonly store: string;
  /** The configuration names another store than the mesh's. */
  readonly difference: string | null;
  /** It ran before, and what becomes of that. */
  readonly before: string | null;
}

/**
 * Makes this host one of a mesh: proves the token, gets a certificate, the policy and where the store is, and keeps them
 * in the data directory, whole or not at all. The sidecar must not run.
 */
export async function joinMesh(config: Config, options: JoinOptions): Promise<JoinResult> {
  const token = parseToken(options.token);
  const endpoint = parseJoinAddress(options.address);
  const { clock, signal } = options;
  const wasMember = isEnrolled(config.dataDir);
  if (wasMember && options.again !== true) throw alreadyEnrolled(config.dataDir);
  if (existsSync(hostFiles(config.dataDir).authority)) throw isAuthority(config.dataDir);
  const isNew = !existsSync(`${config.dataDir}/host.json`);
  const dataDir = await openDataDir(config.dataDir, { clock, signal });
  let isRefused = true;
  try {
    const key = (wasMember ? formerKey(config) : undefined) ?? newKey();
    const request = encodeEnrol({
      secret: token.secret.toString('base64url'),
      name: config.host,
      address: config.advertise,
      port: config.tunnel.listen.port,
      request: await makeRequest(key, config.host),
      version: options.version,
      ...(!isNew && { previousId: dataDir.identity.hostId }),
    });
    const visit = { kind: 'enrol', mesh: config.mesh, token } as const;
    const ask = (): Promise<Uint8Array> => askDesk(endpoint, visit, request, { nowMs: clock.nowMs(), signal });
    const admission = await whileAlive(() => admissionOf(ask, options));
    const credentials = checkAdmission(admission, config, key);
    const sealedPolicy = Buffer.from(admission.policy, 'base64');
    const { mesh, meshId } = admission;
    const policy = openSealedPolicy(sealedPolicy, admission.policyKey, { mesh, meshId });
    if (policy.authority !== token.authority) throw strange('the policy names another authority');
    const store = readStoreText(admission.store);
    const before = beforeText(isNew, wasMember, dataDir.identity, admission);
    const authority = { hostId: admission.authority.hostId, address: endpoint.address, port: endpoint.port };
    isRefused = false;
    await writeJoined(dataDir.joinedFile, { store, authority });
    await dataDir.becomeHost({ hostId: admission.hostId, meshId });
    const bundle = { credentials, sealedPolicy, policyKey: admission.policyKey };
    await (wasMember ? replaceHost : writeNewHost)(config.dataDir, bundle);
    return {
      mesh,
      meshId,
      hostId: admission.hostId,
      host: config.host,
      certificateUntil: new Date(credentials.notAfterMs).toISOString(),
      store: describeTarget(store),
      difference: storeDifference(config, { store, authority }) ?? null,
      before,
    };
  } finally {
    // Else the next try would take this host for one that ran before.
    if (isNew && isRefused) await rm(`${config.dataDir}/host.json`, { force: true });
    dataDir.release();
  }
}

/**
 * The key of the certificate that this host had, by which the authority knows it; undefined where its files are of no use.
 * The next renewal replaces it.
 */
function formerKey({ dataDir, mesh }: Config): KeyObject | undefined {
  try {
    const credentials = readHostCredentials(hostFiles(dataDir), mesh);
    return credentials && createPrivateKey(credentials.key);
  } catch (error) {
    if (isLegateError(error)) return undefined;
    throw error;
  }
}

/** Asks the desk, and again while it is busy with others, up to `busyLimitMs`. */
async function admissionOf(
  ask: () => Promise<Uint8Array>,
  { clock, signal }: Pick<JoinOptions, 'clock' | 'signal'>,
): Promise<Admission> {
  const untilMs = clock.monotonicMs() + busyLimitMs;
  const backoff = new Backoff(busyFirstMs, busyCeilingMs, Math.random);
  for (;;) {
    try {
      return decodeAdmission(await ask());
    } catch (error) {
      if (!isLegateError(error) || !isDeskBusy(error) || clock.monotonicMs() >= untilMs) throw error;
    }
    await clock.sleep(backoff.nextMs(), signal);
  }
}

function isAuthority(dataDir: string): LegateError {
  return new LegateError('E_CONFLICT', `data_dir ${dataDir} has the keys of an authority; nothing was changed`, {
    hint: 'the host of the authority does not join; if the authority has moved away for good, remove pki/authority there first',
  });
}

/** What is in an answer has to be for us. */
function checkAdmission(admission: Admission, config: Config, key: ReturnType<typeof newKey>): Credentials {
  const { hostId, name, chain = '', mesh } = admission;
  const roots = admission.roots.flatMap((each) => certificatesOf(each) ?? []);
  if (mesh !== config.mesh) throw strange(`it is of mesh ${mesh}, not ${config.mesh}`);
  if (name !== config.host) throw strange(`it is for a host called ${name}`);
  const credentials = credentialsOf({ chain, key, roots, mesh });
  if (credentials instanceof LegateError) throw strange(credentials.message);
  if (credentials.hostId !== hostId) throw strange('its certificate is that of another host');
  const [certificate] = certificatesOf(chain) ?? [];
  const found = rootOfChain(certificatesOf(chain) ?? [], roots);
  if ('problem' in found) throw strange(found.problem);
  if (certificate?.publicKey.equals(createPublicKey(key)) !== true) throw strange('its certificate has another key');
  return credentials;
}

function strange(what: string): LegateError {
  return new LegateError('E_INVALID', `the authority's answer is not for this host: ${what}; nothing was written`, {
    hint: 'install the same version of Legate on both hosts, and look into the log of the authority',
  });
}

function beforeText(
  isNew: boolean,
  wasMember: boolean,
  { hostId, meshId }: { readonly hostId: string; readonly meshId: string | undefined },
  admission: Admission,
): string | null {
  if (isNew) return null;
  if (hostId === admission.hostId) {
    return wasMember
      ? 'it was in this mesh before, and keeps its id and its records'
      : 'it ran before without an authority, and keeps its id and its records';
  }
  const old = `it ran before as host ${hostId}, and has a new id`;
  if (meshId === undefined || meshId === admission.meshId) return old;
  return `${old}; what it had in its own store stays in data_dir, unused`;
}

/** `10.77.0.1`, `10.77.0.1:7711`, `[2001:db8::1]`. E_USAGE when it is none. */
export function parseJoinAddress(text: string): Endpoint {
  const bare = text.replace(/^\[(.*)\]$/, '$1');
  const wrapped =
    bare.includes(':') && !text.startsWith('[') && /^[0-9a-fA-F:]+$/.test(bare) && bare.split(':').length > 2;
  const whole = wrapped || (text.startsWith('[') && text.endsWith(']')) ? `[${bare}]:${defaultTunnelPort}` : text;
  const endpoint = parseEndpoint(whole) ?? parseEndpoint(`${whole}:${defaultTunnelPort}`);
  if (endpoint !== undefined && endpoint.port > 0) return endpoint;
  throw new LegateError(
    'E_USAGE',
    `${printable(text)} is no IP address with or without a port; names are not accepted`,
    {
      hint: 'write it as legate init printed it, such as 10.77.0.1 or 10.77.0.1:7711',
    },
  );
}
