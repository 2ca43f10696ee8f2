import fc from 'fast-check';
import t from 'tap';
import { instanceRecord, parts } from '../../test/support/records.ts';
import { type InstanceRecord, protocols, type StoredStatus } from '../model/instance.ts';
import type { RouteRule } from '../model/routes.ts';
import { type FurtherSettings, furtherFields } from '../model/service-settings.ts';
import {
  checkedInstance,
  type Decoded,
  decodeAlive,
  decodeHost,
  decodeInstance,
  decodeMeta,
  decodeService,
  decodeVipClaim,
  encodeAlive,
  encodeHost,
  encodeInstance,
  encodeMeta,
  encodeService,
  encodeVipClaim,
  recordLimits,
} from './codec.ts';
import { Quarantine } from './quarantine.ts';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const json = (value: unknown): Uint8Array => bytes(JSON.stringify(value));
const whole = (over: object): object => ({ v: 1, ...instanceRecord({ name: 'a' }), ...over });
const decoders: Record<string, (value: Uint8Array) => Decoded<unknown>> = {
  instance: (value) => decodeInstance(value, 'a'),
  host: (value) => decodeHost(value, '00000000000000aa'),
  service: (value) => decodeService(value, 'db'),
  claim: decodeVipClaim,
  alive: decodeAlive,
  meta: decodeMeta,
};

t.test('each record comes back as it was', async (t) => {
  const instance = instanceRecord({
    name: 'a',
    published: { address: '10.0.0.2', port: 80 },
    tags: ['x'],
    meta: { b: '1', a: '2' },
  });
  t.same(decodeInstance(encodeInstance(instance), 'a'), { ok: true, value: instance });
  const host = { id: '00000000000000aa', name: 'web-1', address: '10.77.0.1', version: '0.1.0' };
  t.same(decodeHost(encodeHost(host), host.id), { ok: true, value: host });
  const placed = { ...host, zone: 'a', tunnelPort: 17711 };
  t.same(decodeHost(encodeHost(placed), host.id), { ok: true, value: placed });
  for (const vip of ['240.77.0.9', undefined]) {
    const service = { name: 'db', port: 1, protocol: 'tcp', balance: 'random', ...(vip && { vip }) } as const;
    t.same(decodeService(encodeService(service), 'db'), { ok: true, value: service });
  }
  const derived = { name: 'db', port: 1, protocol: 'tcp', balance: 'random', derived: ['port', 'balance'] } as const;
  t.same(decodeService(encodeService(derived), 'db'), { ok: true, value: derived });
  const awaited = { ...derived, awaitedBy: '00000000000000a1' };
  t.same(decodeService(encodeService(awaited), 'db'), { ok: true, value: awaited });
  t.match(decodeService(json({ v: 1, ...awaited, awaitedBy: '../x' }), 'db'), { ok: false, reason: /^awaitedBy/ });
  t.match(decodeService(json({ v: 1, ...derived, derived: ['later', 'balance', 'balance'] }), 'db'), {
    value: { derived: ['balance'] },
  });
  t.match(decodeService(json({ v: 1, ...derived, derived: 'port' }), 'db'), { ok: false, reason: /^derived/ });
  const claim = { service: 'db', claimedAtMs: 5, releasedAtMs: 7 };
  t.same(decodeVipClaim(encodeVipClaim(claim)), { ok: true, value: claim });
  t.same(decodeAlive(encodeAlive({ sinceMs: 9 })), { ok: true, value: { sinceMs: 9 } });
  const claimed = {
    sinceMs: 9,
    claim: { nonce: 'ab'.repeat(16), machine: 'm', boot: 'b', process: '1 2 3', address: '10.77.0.1' },
  };
  t.same(decodeAlive(encodeAlive(claimed)), { ok: true, value: claimed });
  for (const [field, value] of [
    ['nonce', 'x'],
    ['machine', 'm'.repeat(101)],
    ['process', 7],
    ['address', 'web-1'],
  ]) {
    const bad = json({ v: 1, ...claimed, claim: { ...claimed.claim, [String(field)]: value } });
    t.match(decodeAlive(bad), { ok: false, reason: new RegExp(`^claim.${field}`) });
  }
  const meta = { meshId: 'a'.repeat(32), format: 1 };
  t.same(decodeMeta(encodeMeta(meta)), { ok: true, value: meta });
  t.same(
    encodeInstance({ ...instance, meta: { a: '2', b: '1' } }),
    encodeInstance(instance),
    'the order of meta does not matter',
  );
});

t.test('every setting of a service comes back as it was, and a fault in one is told', (t) => {
  const rule: RouteRule = {
    match: { host: '*.example.com', path: '/v2', method: ['GET', 'HEAD'], header: { 'x-beta': '*' } },
    service: 'api',
    split: { canary: 5, stable: 95 },
    sticky: 'cookie:side',
    strip: '/v2',
    add: '/api',
    set: { 'x-from': 'legate' },
    remove: ['cookie'],
    response: { set: { server: 'x' }, remove: ['via'] },
    mirror: { service: 'shadow', tag: 'canary', percent: 10 },
  };
  const further: FurtherSettings = {
    prefer: 'any',
    parkMs: 5,
    proxyProtocol: 'v2',
    hashOn: 'header:X-User',
    timeoutMs: 1000,
    tryTimeoutMs: 500,
    retries: 0,
    hedgeAfterMs: 10,
    maxBodyBytes: 1024,
    maxRequests: 7,
    maxQueue: 8,
    queueTimeoutMs: 9,
    forwarding: 'set',
    upgrade: 'off',
    connect: 'on',
    ejectSlow: 3,
    split: { blue: 1 },
    sticky: 'header:x-user',
    splitGuard: 2,
    routes: [rule, { match: { exact: '/old' }, redirect: { to: 'https://example.com/*', status: 301 } }],
  };
  t.same(Object.keys(further).sort(), [...furtherFields].sort(), 'all of them are tried');
  const verdict = { tag: 'b', weight: 5, hostId: '00112233445566aa', atMs: 1, requests: 20, errors: 10 };
  const takenBack = { ...verdict, against: 'a', againstRequests: 400, againstErrors: 0 };
  const former = { formerSplit: {}, takenBack };
  const record = { name: 'db', port: 80, protocol: 'http', balance: 'hash', ...further, ...former } as const;
  t.same(decodeService(encodeService(record), 'db'), { ok: true, value: record });
  const faults: [object, RegExp][] = [
    [{ split: { a: 1.5 } }, /^split.a: "1.5" is not a whole number/],
    [{ routes: [{ match: 1 }] }, /^routes\[0\].match: "1" is not a map/],
    [{ retries: '2' }, /^retries: /],
    [{ hashOn: 'cookie:' }, /^hashOn: /],
    [{ maxBodyBytes: -1 }, /^maxBodyBytes: /],
    [{ formerSplit: [] }, /^formerSplit: /],
    [{ takenBack: 'canary' }, /^takenBack is not an object/],
    [{ takenBack: { ...takenBack, tag: '' } }, /^takenBack.tag: /],
    [{ takenBack: { ...takenBack, hostId: 'x' } }, /^takenBack.hostId: /],
    [{ takenBack: { ...takenBack, errors: -1 } }, /^takenBack.errors: /],
  ];
  for (const [over, reason] of faults) {
    t.match(decodeService(json({ v: 1, ...record, ...over }), 'db'), { ok: false, reason }, JSON.stringify(over));
  }
  const hostile = fc.record({
    split: fc.jsonValue(),
    routes: fc.jsonValue(),
    formerSplit: fc.jsonValue(),
    takenBack: fc.jsonValue(),
  });
  fc.assert(
    fc.property(hostile, (over) => typeof decodeService(json({ v: 1, ...record, ...over }), 'db').ok === 'boolean'),
  );
  t.end();
});

t.test('faults have reasons that name the field', async (t) => {
  const cases: [what: string, value: Uint8Array, reason: RegExp][] = [
    ['nothing', bytes(''), /not JSON/],
    ['not UTF-8', new Uint8Array([0x22, 0xff, 0x22]), /not JSON in UTF-8/],
    ['a list', json([1]), /is not an object/],
    ['null', json(null), /is not an object/],
    ['no version', json({ ...whole({}), v: undefined }), /^v: nothing is not a whole number/],
    ['a newer version', json(whole({ v: 2, port: 'new' })), /newer version \(2; this one reads up to 1\)/],
    ['port as text', json(whole({ port: '80' })), /^port: "80" is not a whole number from 1 to 65535/],
    ['port 0', json(whole({ port: 0 })), /^port: 0 /],
    ['protocol', json(whole({ protocol: 'sctp' })), /^protocol: "sctp" is none of tcp/],
    ['lost is never stored', json(whole({ status: 'lost' })), /^status/],
    ['address', json(whole({ address: 'db.example.com' })), /^address: .* is not an IP address/],
    ['service name', json(whole({ service: 'DB' })), /^service: "DB" has characters/],
    ['reserved name', json(whole({ service: 'node' })), /reserved/],
    ['another name than its key', json(whole({ name: 'b' })), /says that it is "b", its key says "a"/],
    ['tag of the wrong type', json(whole({ tags: [1] })), /^tags\[0\]: 1 is not text/],
    ['too many tags', json(whole({ tags: Array(recordLimits.tags + 1).fill('x') })), /^tags: has 257/],
    ['meta of the wrong type', json(whole({ meta: { a: {} } })), /^meta.a: an object is not text/],
    ['published', json(whole({ published: { address: '10.0.0.1', port: 70000 } })), /^published.port/],
    ['too large', json(whole({ output: 'x'.repeat(recordLimits.bytes) })), /bytes, more than/],
    ['control characters never reach the reason', json(whole({ protocol: '\u001b[2J' })), /"\\u001b\[2J"|\\\\u001b/],
  ];
  for (const [what, value, reason] of cases) {
    const result = decodeInstance(value, 'a');
    t.match(result, { ok: false, reason }, what);
    if (!result.ok) t.notMatch(result.reason, /[\u0000-\u001f]/, `${what}: printable`);
  }
  t.match(decodeService(json({ v: 1, name: 'db', port: 1, protocol: 'tcp', balance: 'random', vip: '::1' }), 'db'), {
    ok: false,
  });
  t.match(checkedInstance(instanceRecord({ name: 'a', meta: { k: 'x'.repeat(5000) } })), {
    ok: false,
    reason: /^meta.k/,
  });
});

t.test('fields that are not known are ignored, hostile ones harm nothing', async (t) => {
  const value = bytes(
    `{"extra":{"deep":[[[]]]},${JSON.stringify(whole({ meta: {} }))
      .slice(1)
      .replace('"meta":{}', '"meta":{"__proto__":"x","constructor":"y"}')}`,
  );
  const result = decodeInstance(value, 'a');
  t.ok(result.ok);
  if (!result.ok) return;
  t.equal(Object.getPrototypeOf(result.value.meta), Object.prototype);
  t.same(Object.keys(result.value.meta).sort(), ['__proto__', 'constructor']);
  t.ok(Object.isFrozen(result.value) && Object.isFrozen(result.value.tags) && Object.isFrozen(result.value.meta));
  const clean = decodeInstance(json(whole({ output: 'a\u001b[31mb' })), 'a');
  t.match(clean, { ok: true, value: { output: 'a\\u001b[31mb' } });
});

t.test('whatever is stored, decoding gives a value or a reason', async () => {
  const check = (value: Uint8Array): void => {
    for (const [kind, decode] of Object.entries(decoders)) {
      const result = decode(value);
      if (!result.ok && (result.reason === '' || result.reason.length > 600))
        throw new Error(`${kind}: ${result.reason}`);
    }
  };
  fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), check), { numRuns: 300 });
  fc.assert(
    fc.property(fc.json(), (text) => check(bytes(text))),
    { numRuns: 300 },
  );
  const field = fc.oneof(fc.jsonValue(), fc.constantFrom(...protocols, '10.0.0.1', 1, 'a', 'db', 'passing'));
  const names = fc.constantFrom(
    'v',
    'name',
    'service',
    'port',
    'tags',
    'meta',
    'published',
    'output',
    'id',
    'vip',
    'meshId',
  );
  const mutated = fc.tuple(names, field).map(([name, value]) => json({ ...whole({}), [name]: value }));
  fc.assert(fc.property(mutated, check), { numRuns: 500 });
});

t.test('any valid instance survives a round trip', async (t) => {
  const text = (max: number): fc.Arbitrary<string> => fc.string({ maxLength: max });
  const record: fc.Arbitrary<InstanceRecord> = fc.record({
    name: fc.stringMatching(/^[a-z0-9][a-zA-Z0-9._:-]{0,40}$/),
    service: fc.constantFrom('db', 'web', 'a-b'),
    address: fc.oneof(fc.ipV4(), fc.ipV6()),
    port: fc.integer({ min: 1, max: 65535 }),
    protocol: fc.constantFrom(...protocols),
    reach: fc.constantFrom('host', 'mesh'),
    tags: fc.array(text(20), { maxLength: 5 }),
    meta: fc.dictionary(
      text(10).filter((key) => key !== ''),
      text(50),
      { maxKeys: 5, noNullPrototype: true },
    ),
    weight: fc.integer({ min: 0, max: 65535 }),
    status: fc.constantFrom<StoredStatus>('starting', 'passing', 'warning', 'critical'),
    draining: fc.boolean(),
    output: text(80),
    source: fc.constantFrom('file', 'api', 'docker:one'),
    incarnation: text(30),
  });
  fc.assert(
    fc.property(record, (value) => {
      const once = checkedInstance(value);
      if (!once.ok) throw new Error(once.reason);
      const twice = checkedInstance(once.value);
      t.strictSame(twice, once);
      return once.value.port === value.port && once.value.tags.length === value.tags.length;
    }),
    { numRuns: 200 },
  );
});

t.test('the quarantine names some entries, counts all, and forgets the healed', async (t) => {
  const { conditions, metrics } = parts();
  const quarantine = new Quarantine({ conditions, metrics });
  for (let index = 0; index < 1500; index += 1) quarantine.bad(`/legate/m/hosts/${index}`, 'port: is wrong');
  t.equal(quarantine.size, 1000);
  t.equal(conditions.list().length, 21);
  t.match(conditions.list().at(-1)?.message, /at least 980 further stored entries/);
  quarantine.good('/legate/m/hosts/3');
  t.equal(conditions.list().length, 21, 'another one takes its place');
  t.notOk(conditions.list().some(({ id }) => id === 'catalog.entry./legate/m/hosts/3'));
  quarantine.retain('/legate/m/hosts/', new Set(['/legate/m/hosts/7']));
  t.same(
    conditions.list().map(({ id }) => id),
    ['catalog.entry./legate/m/hosts/7'],
  );
  quarantine.good('/legate/m/hosts/7');
  t.same(conditions.list(), []);
});
