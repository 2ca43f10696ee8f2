import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { must, temporaryFolder } from '../../test/support/agent.ts';
import { unless } from '../../test/support/needs.ts';
import { isLegateError } from '../base/errors.ts';
import type { Policy } from '../model/policy.ts';
import { formatPolicy, parsePolicy, policyLimits } from '../model/policy-document.ts';
import { maxSealedBytes, newPolicyKeys, openSealedPolicy, PolicyRefusal, sealPolicy } from './policy-seal.ts';

const meshId = '0123456789abcdef0123456789abcdef';
const hostId = '00112233445566ff';
const root = '-----BEGIN CERTIFICATE-----\nMIIB\nAAAA\n-----END CERTIFICATE-----\n';
const policy: Policy = {
  mesh: 'home',
  meshId,
  version: 1_700_000_000_000,
  authority: hostId,
  roots: [root],
  default: 'deny',
  mode: 'enforce',
  fromLinks: true,
  intents: [
    { consumer: 'web', service: 'db', action: 'allow', setAtMs: 1 },
    { consumer: 'host', service: '*', action: 'deny', setAtMs: 2 },
  ],
  grants: [{ hostId, service: '*', setAtMs: 3 }],
  external: [{ service: 'mail', targets: ['smtp.example.com:25', '[2001:db8::1]:25'] }],
  revoked: [{ hostId: 'ffeeddccbbaa9988', name: 'web-2', setAtMs: 4 }],
};
const keys = newPolicyKeys();
const expected = { mesh: 'home', meshId };

t.test('a policy reads back as it was written, and what is not one is told', async (t) => {
  const bytes = formatPolicy(policy);
  t.strictSame(parsePolicy(bytes), { policy });
  const document = JSON.parse(Buffer.from(bytes).toString()) as Record<string, unknown>;
  const cases: [string, unknown, RegExp][] = [
    ['v', 2, /newer version/],
    ['mesh', 'Home', /mesh/],
    ['meshId', 'x', /32 hexadecimal/],
    ['version', 0.5, /whole number/],
    ['version', -1, /whole number/],
    ['authority', '../..', /16 hexadecimal/],
    ['roots', ['x'], /certificate in PEM/],
    ['roots', [root, root, root, root, root], /more than 4/],
    ['default', 'maybe', /none of allow, deny/],
    ['mode', 'off', /none of enforce, learn/],
    ['fromLinks', 'yes', /true or false/],
    ['intents', {}, /not a list/],
    ['intents', ['web'], /not a list/],
    ['intents', [['web', 'db']], /intents\[0\]/],
    ['intents', [['WEB', 'db', 'allow', 1]], /a-z/],
    ['intents', [['web', 'host', 'allow', 1]], /reserved/],
    ['intents', [['web', 'db', 'maybe', 1]], /allow, deny/],
    ['intents', [['*', '*', 'allow', 1e300]], /whole number/],
    [
      'intents',
      [
        ['*', 'db', 'allow', 1],
        ['*', 'db', 'deny', 2],
      ],
      /again/,
    ],
    ['intents', Array.from({ length: policyLimits.intents + 1 }, () => 0), /more than/],
    ['grants', [['host', 'db', 1]], /16 hexadecimal/],
    ['external', [['mail', ['smtp.example.com']]], /host:port/],
    ['external', [['mail', ['smtp.example.com:99999']]], /port/],
    ['external', [['mail', ['[::zz]:1']]], /host:port/],
    ['revoked', [[hostId, '\u001b[2J', 4]], /revoked/],
  ];
  for (const [field, value, fault] of cases) {
    const read = parsePolicy(Buffer.from(JSON.stringify({ ...document, [field]: value })));
    t.match('fault' in read ? read.fault : 'none', fault, `${field} ${JSON.stringify(value).slice(0, 40)}`);
  }
  for (const text of ['', '[]', 'null', '{', '{"v":1}', '[['.repeat(50_000)]) {
    t.ok('fault' in parsePolicy(Buffer.from(text)), text.slice(0, 10));
  }
  const large = Array.from({ length: policyLimits.grants }, (_, i) => ({
    hostId: i.toString(16).padStart(16, '0'),
    service: 's'.repeat(63),
    setAtMs: 1_700_000_000_000,
  }));
  t.throws(() => formatPolicy({ ...policy, grants: large }), { code: 'E_TOO_LARGE' });
  t.throws(() => formatPolicy({ ...policy, mesh: 'Home' }), { code: 'E_INVALID' });
});

t.test('a sealed policy opens with the right key, mesh and version alone', async (t) => {
  const sealed = sealPolicy(policy, keys.privateKey);
  t.strictSame(openSealedPolicy(sealed, keys.publicKey, expected), policy);
  t.strictSame(openSealedPolicy(sealed, keys.publicKey, { mesh: 'home', knownVersion: policy.version }), policy);
  const envelope = JSON.parse(Buffer.from(sealed).toString()) as { v: number; payload: string; signature: string };
  const other = { ...policy, default: 'allow' } as const;
  const forged = { ...envelope, payload: Buffer.from(formatPolicy(other)).toString('base64') };
  const rsaLike = newPolicyKeys();
  const wrong = { mesh: 'away' };
  const cases: [string, string, Parameters<typeof openSealedPolicy>[2], string, RegExp][] = [
    ['', keys.publicKey, expected, 'unreadable', /not JSON/],
    [' '.repeat(maxSealedBytes + 1), keys.publicKey, expected, 'unreadable', /bytes/],
    ['{"v":2}', keys.publicKey, expected, 'unreadable', /this version/],
    ['{"v":1,"payload":"*"}', keys.publicKey, expected, 'unreadable', /holds none/],
    [JSON.stringify({ ...envelope, signature: undefined }), keys.publicKey, expected, 'unsigned', /not signed/],
    [JSON.stringify({ ...envelope, signature: '' }), keys.publicKey, expected, 'unsigned', /not signed/],
    [JSON.stringify({ ...envelope, signature: 'AAAA' }), keys.publicKey, expected, 'forged', /signature/],
    [JSON.stringify(forged), keys.publicKey, expected, 'forged', /signature/],
    [JSON.stringify(envelope), rsaLike.publicKey, expected, 'forged', /signature/],
    [JSON.stringify(envelope), keys.publicKey, wrong, 'foreign', /mesh home, not of away/],
    [JSON.stringify(envelope), keys.publicKey, { mesh: 'home', meshId: 'f'.repeat(32) }, 'foreign', /another mesh/],
    [
      JSON.stringify(envelope),
      keys.publicKey,
      { mesh: 'home', knownVersion: policy.version + 1 },
      'older',
      /older.*2023-11-14T22:13:20.000Z/,
    ],
  ];
  for (const [text, key, expectation, fault, message] of cases) {
    try {
      openSealedPolicy(Buffer.from(text), key, expectation);
      t.fail(`${fault} was opened`);
    } catch (error) {
      t.ok(error instanceof PolicyRefusal && error.fault === fault, `${fault}: ${String(error)}`);
      t.ok(isLegateError(error) && error.hint !== undefined);
      t.match(error, { message });
    }
  }
});

t.test('openssl takes the signature', { skip: unless('command:openssl') }, async (t) => {
  const folder = temporaryFolder(t);
  const sealed = sealPolicy(policy, keys.privateKey);
  const { payload, signature } = JSON.parse(Buffer.from(sealed).toString()) as { payload: string; signature: string };
  const file = (name: string, content: string | Uint8Array): string => {
    writeFileSync(join(folder, name), content);
    return join(folder, name);
  };
  const args = ['dgst', '-sha256', '-verify', file('pub', keys.publicKey)];
  args.push(
    '-signature',
    file('sig', Buffer.from(signature, 'base64')),
    file('payload', Buffer.from(payload, 'base64')),
  );
  t.match(await must('openssl', ...args), /Verified OK/);
});
