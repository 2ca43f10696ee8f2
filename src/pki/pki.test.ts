import 'reflect-metadata';
import { execFile } from 'node:child_process';
import { createPrivateKey, createPublicKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import * as x509 from '@peculiar/x509';
import t from 'tap';
import { type Teardown, temporaryFolder } from '../../test/support/agent.ts';
import { unless } from '../../test/support/needs.ts';
import { ManualClock, systemClock } from '../base/clock.ts';
import { isLegateError, LegateError } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import { Metrics } from '../base/metrics.ts';
import type { HostRecord } from '../model/host.ts';
import type { Policy } from '../model/policy.ts';
import { Authority } from './authority.ts';
import { AuthorityDesk, type TokenState } from './authority-desk.ts';
import { certificatesOf, fingerprintOfPem, rootOfChain, timeProblem } from './chain.ts';
import { credentialsOf, hostFiles, readHostCredentials, replaceHostCertificate, writeNewHost } from './host-files.ts';
import { issueHost, keyOfRequest, makeRequest, makeRoot } from './issue.ts';
import { keyOfPem, keyToPem, newKey, readPassphrase } from './key-files.ts';
import { type Admission, decodeAdmission, encodeEnrol, encodeRenew } from './messages.ts';
import { newPolicyKeys, openSealedPolicy, sealPolicy } from './policy-seal.ts';
import { formatToken, hashOfSecret, newToken, parseToken } from './token.ts';

const execute = promisify(execFile);
const hostId = '00112233445566aa';
const meshId = '0'.repeat(32);
const silent = { debug() {}, info() {}, warn() {}, error() {} } as unknown as Log;
const dayMs = 24 * 3_600_000;
const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };

const subject = { mesh: 'home', hostId, name: 'web-1', domain: 'mesh.internal', addresses: ['10.77.0.1', '10.77.0.9'] };

async function rejection(promise: Promise<unknown>): Promise<LegateError> {
  const error = await promise.then(
    () => new Error('it was taken'),
    (failure: unknown) => failure,
  );
  if (isLegateError(error)) return error;
  throw error;
}

t.test('certificates satisfy openssl, and name who they are for', { skip: unless('command:openssl') }, async (t) => {
  const folder = temporaryFolder(t);
  const nowMs = Date.now();
  const root = await makeRoot('home', nowMs);
  const other = await makeRoot('home', nowMs);
  const key = newKey();
  const issued = await issueHost(root, subject, { publicKey: createPublicKey(key), lifeMs: 7 * dayMs, nowMs });
  writeFileSync(join(folder, 'root.pem'), root.certificate);
  writeFileSync(join(folder, 'other.pem'), other.certificate);
  writeFileSync(join(folder, 'host.pem'), issued);
  const verify = (ca: string, file: string, purpose: string): Promise<{ stdout: string }> =>
    execute('openssl', [
      'verify',
      '-x509_strict',
      '-purpose',
      purpose,
      '-CAfile',
      join(folder, ca),
      join(folder, file),
    ]);
  for (const purpose of ['sslserver', 'sslclient']) {
    t.match((await verify('root.pem', 'host.pem', purpose)).stdout, /OK/, purpose);
  }
  t.match((await verify('root.pem', 'root.pem', 'any')).stdout, /OK/);
  await t.rejects(verify('other.pem', 'host.pem', 'any'), 'another root');

  const [certificate] = certificatesOf(issued) ?? [];
  if (certificate === undefined) return t.fail('no certificate');
  for (const name of [
    `URI:spiffe://home/host/${hostId}`,
    'DNS:web-1',
    'DNS:web-1.host.mesh.internal',
    'IP Address:10.77.0.1',
    'IP Address:10.77.0.9',
    'IP Address:127.0.0.1',
  ]) {
    t.ok(certificate.subjectAltName?.split(', ').includes(name), name);
  }
  t.equal(certificate.ca, false);
  t.equal(certificate.serialNumber.length, 32, '128 bits');
  const life = Date.parse(certificate.validTo) - Date.parse(certificate.validFrom);
  t.ok(Math.abs(life - 7 * dayMs - 5 * 60_000) < 2000, 'seven days, and five minutes for clocks');
  const text = (await execute('openssl', ['x509', '-in', join(folder, 'root.pem'), '-noout', '-text'])).stdout;
  t.match(text, /CA:TRUE, pathlen:0/);
  t.ok(rootOfChain([certificate], [new X509Certificate(root.certificate)]));
  t.match(rootOfChain([certificate], [new X509Certificate(other.certificate)]), { problem: /not issued by a root/ });
  t.match(timeProblem(certificate, nowMs - dayMs, 'its'), /holds only from .* one of the two clocks/);
  t.match(timeProblem(certificate, nowMs + 8 * dayMs, 'its'), /ended at/);
});

t.test('a token is whole or refused before it is used', async (t) => {
  const token = newToken('ab'.repeat(32), hostId);
  const text = formatToken(token);
  t.same(parseToken(` ${text}\n`), token);
  const middle = Math.floor(text.length / 2);
  const flipped = text[middle] === 'A' ? 'B' : 'A';
  for (const [what, wrong] of [
    ['misspelt', text.slice(0, middle) + flipped + text.slice(middle + 1)],
    ['cut', text.slice(0, -1)],
    ['longer', `${text}A`],
    ['swapped', text.replace(/^lgt1_(.)(.)/, 'lgt1_$2$1')],
    ['another prefix', `xgt1_${text.slice(5)}`],
    ['nothing', ''],
    ['not base64', 'lgt1_!!!!'],
  ] as const) {
    if (wrong === text) continue;
    const error = await rejection(Promise.resolve().then(() => parseToken(wrong)));
    t.equal(error.code, 'E_INVALID', what);
    t.notMatch(error.message, text.slice(5, 20), 'the secret is not repeated');
  }
});

t.test('a request gives its key and nothing else', async (t) => {
  const key = newKey();
  const limits = { mesh: 'home', name: 'web-1' };
  t.ok((await keyOfRequest(await makeRequest(key, 'web-1'), limits)).equals(createPublicKey(key)));
  const uri = `spiffe://home/host/${hostId}`;
  t.ok(await keyOfRequest(await makeRequest(key, 'web-1', uri), { ...limits, hostId }));
  t.match(await rejection(keyOfRequest(await makeRequest(key, 'db-1'), limits)), {
    code: 'E_UNAUTHORIZED',
    message: /asks for the name db-1/,
  });
  t.match(await rejection(keyOfRequest(await makeRequest(key, 'web-1', uri), limits)), {
    message: /asks for the name spiffe/,
  });
  const another = `spiffe://home/host/${'f'.repeat(16)}`;
  const asking = await makeRequest(key, 'web-1', another);
  t.match(await rejection(keyOfRequest(asking, { ...limits, hostId })), { code: 'E_UNAUTHORIZED' });

  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const asAuthority = await x509.Pkcs10CertificateRequestGenerator.create({
    name: 'CN=web-1',
    keys,
    signingAlgorithm: algorithm,
    extensions: [new x509.BasicConstraintsExtension(true, 0, true)],
  });
  t.match(await rejection(keyOfRequest(asAuthority.toString('pem'), limits)), { message: /right to issue/ });

  const good = await makeRequest(key, 'web-1');
  const der = Buffer.from(good.replace(/-----[^-]+-----|\s/g, ''), 'base64');
  der[der.length - 1] = (der[der.length - 1] ?? 0) ^ 1;
  const body = der.toString('base64').replace(/.{64}/g, '$&\n');
  const unsigned = `-----BEGIN CERTIFICATE REQUEST-----\n${body}\n-----END CERTIFICATE REQUEST-----\n`;
  t.match(await rejection(keyOfRequest(unsigned, limits)), { code: 'E_INVALID' });
  for (const text of [
    '',
    'x',
    '-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n',
    'A'.repeat(20_000),
  ]) {
    t.equal((await rejection(keyOfRequest(text, limits))).code, 'E_INVALID');
  }
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
  t.throws(() => keyOfPem(keyToPem(rsa.privateKey), 'the key'), { code: 'E_INVALID' });
});

t.test('keys are read only by their owner, and with the right passphrase', async (t) => {
  const folder = temporaryFolder(t);
  const passphraseFile = join(folder, 'pass');
  writeFileSync(passphraseFile, 'correct horse\n', { mode: 0o600 });
  const parts = { mesh: 'home', meshId, domain: 'mesh.internal', certificateLifeMs: 7 * dayMs, clock: systemClock };
  const { privateKey: policyKey } = newPolicyKeys();
  const path = join(folder, 'authority');
  const made = await Authority.create(path, { ...parts, policyKey, passphraseFile });
  for (const name of readdirSync(path)) t.equal(statSync(join(path, name)).mode & 0o077, 0, name);
  for (const name of readdirSync(path).filter((each) => each.endsWith('.key'))) {
    t.match(readFileSync(join(path, name), 'utf8'), /BEGIN ENCRYPTED PRIVATE KEY/, name);
    if (unless('command:openssl') === false) {
      const args = ['pkey', '-in', join(path, name), '-passin', `file:${passphraseFile}`, '-noout'];
      await t.resolves(execute('openssl', args), `openssl opens ${name}`);
    }
  }
  t.equal(Authority.open(path, { passphraseFile, clock: systemClock }).roots[0], made.roots[0]);
  const fails = (file: string | undefined): LegateError => {
    try {
      Authority.open(path, { passphraseFile: file, clock: systemClock });
    } catch (error) {
      if (isLegateError(error)) return error;
      throw error;
    }
    throw new Error('it was opened');
  };
  t.match(fails(undefined), { code: 'E_PERMISSION', message: /no passphrase/, hint: /authority.passphrase_file/ });
  writeFileSync(passphraseFile, 'wrong horse\n');
  t.match(fails(passphraseFile), { code: 'E_PERMISSION', message: /cannot be opened/ });
  chmodSync(passphraseFile, 0o644);
  t.match(fails(passphraseFile), { code: 'E_PERMISSION', hint: /chmod 600/ });
  chmodSync(passphraseFile, 0o600);
  writeFileSync(passphraseFile, '\n');
  t.throws(() => readPassphrase(passphraseFile), { code: 'E_INVALID' });
  writeFileSync(passphraseFile, 'correct horse\n');
  chmodSync(join(path, 'policy.key'), 0o640);
  t.match(fails(passphraseFile), { code: 'E_PERMISSION', message: /policy.key can be read by others/ });
});

interface Bench {
  readonly authority: Authority;
  readonly desk: AuthorityDesk;
  readonly clock: ManualClock;
  readonly metrics: Metrics;
  readonly tokens: Map<string, { state: TokenState; uses: number }>;
  readonly hosts: HostRecord[];
  policy: Policy;
}

async function bench(t: Teardown): Promise<Bench> {
  const clock = new ManualClock(Date.now());
  const { privateKey: policyKey } = newPolicyKeys();
  const authority = await Authority.create(join(temporaryFolder(t), 'authority'), {
    mesh: 'home',
    meshId,
    domain: 'mesh.internal',
    certificateLifeMs: 7 * dayMs,
    policyKey,
    passphraseFile: undefined,
    clock,
  });
  const tokens: Bench['tokens'] = new Map();
  const metrics = new Metrics();
  const self = { hostId: 'a'.repeat(16) };
  const made = {
    authority,
    clock,
    metrics,
    tokens,
    hosts: [] as HostRecord[],
    policy: {
      mesh: 'home',
      meshId,
      version: clock.nowMs(),
      authority: self.hostId,
      roots: authority.roots,
      default: 'allow',
      mode: 'enforce',
      fromLinks: true,
      intents: [],
      grants: [],
      external: [],
      revoked: [],
    } as Policy,
  };
  const look = async (hash: string): Promise<TokenState> => {
    const found = tokens.get(hash);
    return found === undefined ? 'unknown' : found.state === 'valid' && found.uses < 1 ? 'spent' : found.state;
  };
  const desk = new AuthorityDesk({
    authority,
    self,
    reached: { address: '10.77.0.1', port: 7711 },
    tokens: {
      look,
      async spend(hash) {
        const state = await look(hash);
        const found = tokens.get(hash);
        if (state === 'valid' && found !== undefined) found.uses -= 1;
        return state;
      },
    },
    policy: () => made.policy,
    hosts: () => made.hosts,
    store: () => '{"v":1}',
    clock,
    log: silent,
    metrics,
  });
  return Object.assign(made, { desk });
}

interface Asking {
  readonly name?: string;
  readonly address?: string;
  readonly port?: number;
  readonly previousId?: string;
  readonly from?: string;
  readonly state?: TokenState;
  readonly request?: string;
  readonly secret?: string;
}

async function enrol(made: Bench, asking: Asking = {}): Promise<Admission> {
  const { name = 'web-1', address = '10.77.0.2', port = 7711, previousId, from = '10.77.0.2' } = asking;
  const token = newToken('ab'.repeat(32), hostId);
  const secret = asking.secret ?? token.secret.toString('base64url');
  if (asking.secret === undefined && asking.state !== 'unknown') {
    made.tokens.set(hashOfSecret(token.secret), { state: asking.state ?? 'valid', uses: 1 });
  }
  const request = asking.request ?? (await makeRequest(newKey(), name));
  const message = { secret, name, address, port, request, version: '0.4.0' };
  const bytes = encodeEnrol({ ...message, ...(previousId !== undefined && { previousId }) });
  return decodeAdmission(await made.desk.answer('enrol', bytes, { address: from }));
}

async function counted(made: Bench, reason: string): Promise<number> {
  const text = await made.metrics.exposition();
  return Number(new RegExp(`legate_pki_refusals_total\\{reason="${reason}"\\} (\\d+)`).exec(text)?.[1] ?? 0);
}

t.test('the desk lets a host in once, and says why it does not', async (t) => {
  const made = await bench(t);
  const first = await enrol(made);
  t.match(first.hostId, /^[0-9a-f]{16}$/);
  const [certificate] = certificatesOf(first.chain ?? '') ?? [];
  t.match(certificate?.subjectAltName, `spiffe://home/host/${first.hostId}`);
  t.equal(first.meshId, meshId);
  t.same(first.roots, made.authority.roots);
  const expected = { mesh: 'home', meshId };
  t.equal(
    openSealedPolicy(Buffer.from(first.policy, 'base64'), first.policyKey, expected).version,
    made.policy.version,
  );

  for (const [state, message] of [
    ['unknown', /knows no such token/],
    ['expired', /has expired/],
    ['spent', /used as often/],
  ] as const) {
    t.match(await rejection(enrol(made, { name: 'db-1', address: '10.77.0.3', state, from: '10.9.0.1' })), {
      code: 'E_UNAUTHORIZED',
      message,
    });
    t.equal(await counted(made, `token ${state}`), 1);
  }
  const token = newToken('ab'.repeat(32), hostId);
  made.tokens.set(hashOfSecret(token.secret), { state: 'valid', uses: 1 });
  const secret = token.secret.toString('base64url');
  await enrol(made, { secret, name: 'once', address: '10.77.0.4' });
  t.match(
    await rejection(enrol(made, { secret, name: 'twice', address: '10.77.0.5' })),
    { message: /as often/ },
    'replayed',
  );

  for (const [what, asking, message] of [
    ['its name', { address: '10.77.0.77' }, /the name web-1 is that of host web-1/],
    ['its address', { name: 'web-2' }, /the address 10.77.0.2 is that of host web-1/],
    ['its address at another port', { name: 'web-2', port: 9999 }, /the address/],
  ] as const) {
    t.match(await rejection(enrol(made, { ...asking, from: '10.9.0.2' })), { code: 'E_CONFLICT', message }, what);
  }
  const request = await makeRequest(newKey(), 'other');
  t.match(await rejection(enrol(made, { name: 'web-9', address: '10.77.0.9', request })), {
    code: 'E_UNAUTHORIZED',
    message: /asks for the name other/,
  });
  // What is refused takes nothing of the token: only the four that succeeded or were spent are gone.
  t.equal([...made.tokens.values()].filter(({ state, uses }) => state === 'valid' && uses === 1).length, 4);

  made.hosts.push({ id: 'b'.repeat(16), name: 'stored', address: '10.77.0.50', version: '0.3.0' });
  t.match(await rejection(enrol(made, { name: 'stored', address: '10.77.0.51', from: '10.9.0.3' })), {
    code: 'E_CONFLICT',
  });
  const same = { name: 'stored', address: '10.77.0.50', previousId: 'b'.repeat(16) };
  t.equal((await enrol(made, same)).hostId, 'b'.repeat(16), 'a host that ran before keeps its id');
  t.match(
    await rejection(enrol(made, { ...same, from: '10.9.0.3' })),
    { code: 'E_CONFLICT' },
    'and nobody else gets it',
  );
  made.policy = { ...made.policy, revoked: [{ hostId: first.hostId, name: 'web-1', setAtMs: 0 }] };
  const again = await enrol(made, { from: '10.9.0.4' });
  t.not(again.hostId, first.hostId, 'the name of a revoked host is free, its id is not');
});

t.test('the desk bounds what strangers may ask', async (t) => {
  const made = await bench(t);
  for (const bytes of ['', '{}', '{"v":2}', '[1]', '\u0000', JSON.stringify({ v: 1, secret: 'x' })]) {
    const answer = await made.desk.answer('enrol', Buffer.from(bytes), { address: `10.8.0.${bytes.length % 200}` });
    t.throws(() => decodeAdmission(answer), { code: 'E_INVALID' });
  }
  for (let count = 0; count < 10; count += 1) await rejection(enrol(made, { state: 'unknown', from: '10.9.9.9' }));
  t.match(await rejection(enrol(made, { from: '10.9.9.9' })), { message: /too many/ });
  t.ok(await enrol(made, { from: '10.9.9.8' }), 'others are not held up');
  await made.clock.advance(60_000);
  t.ok(
    await enrol(made, { name: 'later', address: '10.77.0.30', from: '10.9.9.9' }),
    'a minute later it is heard again',
  );
});

t.test('a host renews what it has, and nothing else', async (t) => {
  const made = await bench(t);
  const first = await enrol(made);
  const other = await enrol(made, { name: 'db-1', address: '10.77.0.3' });
  const uri = `spiffe://home/host/${first.hostId}`;
  const renew = async (asking: {
    hostId?: string;
    address?: string;
    request?: string;
    trusts?: string[];
  }): Promise<Admission> => {
    const request = asking.request ?? (await makeRequest(newKey(), 'web-1', uri));
    const message = { address: asking.address ?? '10.77.0.2', port: 7711, version: '0.4.0', policyVersion: 1 };
    const bytes = encodeRenew({ ...message, request, trusts: asking.trusts ?? [] });
    return decodeAdmission(
      await made.desk.answer('renew', bytes, { address: '10.77.0.2', hostId: asking.hostId ?? first.hostId }),
    );
  };
  const next = await renew({ trusts: ['ab'.repeat(32)] });
  const [before] = certificatesOf(first.chain ?? '') ?? [];
  const [after] = certificatesOf(next.chain ?? '') ?? [];
  t.equal(next.hostId, first.hostId);
  t.not(after?.serialNumber, before?.serialNumber);
  t.same(made.authority.ledger.get(first.hostId)?.trusts, ['ab'.repeat(32)]);
  const moved = await renew({ address: '10.77.0.22' });
  t.match(certificatesOf(moved.chain ?? '')?.[0]?.subjectAltName, /IP Address:10.77.0.22/, 'an address may change');
  const kept = await renew({ address: '10.77.0.3' });
  t.notMatch(
    certificatesOf(kept.chain ?? '')?.[0]?.subjectAltName,
    /IP Address:10.77.0.3\b/,
    "to another host's it may not",
  );
  const ofOther = `spiffe://home/host/${other.hostId}`;
  t.match(await rejection(renew({ request: await makeRequest(newKey(), 'web-1', ofOther) })), {
    code: 'E_UNAUTHORIZED',
  });
  t.match(await rejection(renew({ request: await makeRequest(newKey(), 'db-1') })), { code: 'E_UNAUTHORIZED' });
  t.match(await rejection(renew({ hostId: 'c'.repeat(16) })), { message: /no certificate/ });
  made.policy = { ...made.policy, revoked: [{ hostId: first.hostId, name: 'web-1', setAtMs: 0 }] };
  t.match(await rejection(renew({})), { code: 'E_UNAUTHORIZED', message: /was revoked/ });
});

t.test("a host's files are one step, and survive a crash between two", async (t) => {
  const dataDir = temporaryFolder(t);
  const nowMs = Date.now();
  const root = await makeRoot('home', nowMs);
  const credentials = async (): Promise<Exclude<ReturnType<typeof credentialsOf>, LegateError>> => {
    const key = newKey();
    const chain = await issueHost(root, subject, { publicKey: createPublicKey(key), lifeMs: dayMs, nowMs });
    const made = credentialsOf({ chain, key, roots: certificatesOf(root.certificate) ?? [], mesh: 'home' });
    if (made instanceof LegateError) throw made;
    return made;
  };
  const files = hostFiles(dataDir);
  t.equal(readHostCredentials(files, 'home'), undefined);
  const { privateKey, publicKey } = newPolicyKeys();
  const first = await credentials();
  const sealedPolicy = sealPolicy({ ...(await bench(t)).policy, roots: first.roots, authority: hostId }, privateKey);
  const bundle = { credentials: first, sealedPolicy, policyKey: publicKey };
  await t.rejects(writeNewHost(dataDir, bundle, () => Promise.reject(new Error('no space'))));
  t.same(readdirSync(dataDir), [], 'nothing is left of one that failed');
  mkdirSync(files.folder);
  await writeNewHost(dataDir, bundle);
  t.same(readHostCredentials(files, 'home'), first);
  t.match(await rejection(writeNewHost(dataDir, bundle)), { code: 'E_CONFLICT' });

  const second = await credentials();
  await replaceHostCertificate(files, second);
  t.equal(readHostCredentials(files, 'home')?.serial, second.serial);
  // As a crash leaves it: the certificate is the new one, and its key has not its name yet.
  renameSync(files.key, files.nextKey);
  writeFileSync(files.key, first.key, { mode: 0o600 });
  t.equal(readHostCredentials(files, 'home')?.serial, second.serial);
  t.equal(readHostCredentials(files, 'home')?.key, second.key);
  writeFileSync(files.key, first.key);
  t.throws(() => readHostCredentials(files, 'home'), { code: 'E_INVALID', message: /not that of the certificate/ });
  writeFileSync(files.key, second.key);
  t.throws(() => readHostCredentials(files, 'work'), { message: /of mesh home, not work/ });
  chmodSync(files.key, 0o644);
  t.throws(() => readHostCredentials(files, 'home'), { code: 'E_PERMISSION', hint: /chmod 600/ });
  t.ok(createPrivateKey(second.key) && fingerprintOfPem(root.certificate));
});
