import { mkdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { ManualClock, systemClock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { silentLog } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { encodeMeta } from '../src/catalog/codec.ts';
import { isLocked, type Policy } from '../src/model/policy.ts';
import { newPolicyKeys, PolicyRefusal, sealPolicy } from '../src/pki/policy-seal.ts';
import { PolicyAuthority } from '../src/registrar/policy-authority.ts';
import { keysOf } from '../src/store/keys.ts';
import { type Teardown, temporaryFolder } from '../test/support/agent.ts';
import { MemoryStore } from '../test/support/memory-store.ts';
import { policyMeshId, policyOf, writePolicyFiles } from '../test/support/policies.ts';
import { waitFor } from '../test/support/wait.ts';
import { PolicyKeeper } from './policy-keeper.ts';

const pair = newPolicyKeys();
const keys = keysOf('home');
const seal = (fields: Partial<Policy> = {}, key = pair.privateKey): Uint8Array => sealPolicy(policyOf(fields), key);
const first = policyOf().version;

function keeperIn(folder: string, { clock = new ManualClock() as typeof systemClock } = {}) {
  const metrics = new Metrics();
  const conditions = new Conditions(silentLog, clock, metrics);
  const common = { clock, log: silentLog, metrics, conditions };
  const keeper = new PolicyKeeper({ ...common, folder, mesh: 'home', meshId: () => policyMeshId });
  const ids = (): string =>
    conditions
      .list()
      .map(({ id }) => id)
      .join(' ');
  return { keeper, metrics, ids, conditions, common };
}

function following(t: Teardown, keeper: PolicyKeeper, store: MemoryStore, putsBack = false): void {
  const stop = new AbortController();
  const done = keeper.follow(store, keys, stop.signal, putsBack);
  t.teardown(() => {
    stop.abort();
    keeper.close();
    return done;
  });
}

t.test('a host outside of a mesh has no policy; one of a mesh that cannot read it allows nothing', async (t) => {
  const dataDir = temporaryFolder(t);
  const outside = keeperIn(join(dataDir, 'pki'));
  await outside.keeper.load();
  t.equal(outside.keeper.policy.value, undefined);
  t.equal(outside.ids(), '');

  const folder = writePolicyFiles(dataDir, pair.publicKey, undefined);
  const cases: [string, () => void, RegExp][] = [
    ['missing', () => undefined, /policy.json is missing/],
    ['damaged', () => writeFileSync(join(folder, 'policy.json'), '{'), /not JSON/],
    ['forged', () => writeFileSync(join(folder, 'policy.json'), seal({}, newPolicyKeys().privateKey)), /signature/],
    ['foreign', () => writeFileSync(join(folder, 'policy.json'), seal({ meshId: 'f'.repeat(32) })), /another mesh/],
    ['bad key', () => writeFileSync(join(folder, 'policy.pub'), 'x'), /not a public key/],
    ['no key', () => rmSync(join(folder, 'policy.pub')), /policy.pub is missing/],
  ];
  for (const [what, make, message] of cases) {
    make();
    const { keeper, ids, conditions } = keeperIn(folder);
    await keeper.load();
    t.ok(keeper.policy.value !== undefined && isLocked(keeper.policy.value), what);
    t.equal(ids(), 'policy.locked', what);
    t.match(conditions.list()[0]?.message ?? '', message);
  }
  writePolicyFiles(dataDir, pair.publicKey, seal({ default: 'deny' }));
  const { keeper, ids } = keeperIn(folder);
  await keeper.load();
  t.match(keeper.policy.value, { default: 'deny', version: first });
  t.equal(ids(), '');
});

t.test('the store is believed only what the policy key signed, and never replaces a newer one', async (t) => {
  const dataDir = temporaryFolder(t);
  const folder = writePolicyFiles(dataDir, pair.publicKey, undefined);
  const clock = new ManualClock();
  const { keeper, ids, metrics } = keeperIn(folder, { clock });
  const store = new MemoryStore();
  await keeper.load();
  following(t, keeper, store);
  t.equal(ids(), 'policy.locked');
  await store.put(keys.policy, seal({ version: first + 10 }));
  await store.put(`${keys.policy}-of-somebody`, Buffer.from('x'));
  await waitFor('it is taken from the store', () => keeper.policy.value?.version === first + 10);
  await waitFor('it is locked no more', () => ids() === '');
  t.same(readFileSync(join(folder, 'policy.json')), Buffer.from(seal0(keeper)), 'and is on disk');

  const refused: [string, Uint8Array][] = [
    ['unreadable', Buffer.from('x')],
    ['unsigned', Buffer.from(JSON.stringify({ v: 1, payload: Buffer.from('{}').toString('base64') }))],
    ['forged', seal({ version: first + 99 }, newPolicyKeys().privateKey)],
    ['foreign', seal({ mesh: 'away', version: first + 99 })],
    ['older', seal({ version: first + 9 })],
    ['older', seal({ version: first + 10, default: 'deny' })],
  ];
  for (const [reason, value] of refused) {
    const count = await counted(metrics, reason);
    await store.put(keys.policy, value);
    await waitFor(reason, async () => (await counted(metrics, reason)) === count + 1);
    await waitFor('it is told', () => ids() === 'policy.refused');
    t.match(keeper.policy.value, { version: first + 10, default: 'allow' });
  }
  await store.delete(keys.policy);
  await waitFor('it is missed', async () => {
    await clock.advance(11_000);
    return ids().includes('policy.missing');
  });
  t.equal(keeper.policy.value?.version, first + 10, 'the known one stays');
  await store.put(keys.policy, seal({ version: first + 11, default: 'deny' }));
  await waitFor('the next one is taken', () => keeper.policy.value?.version === first + 11);
  await waitFor('nothing is refused any more', () => ids() === '');
  const again = await keeper.offer(seal({ version: first + 11, default: 'deny' }));
  t.equal(again, keeper.policy.value, 'the same one with another signature is the known one');
  await t.rejects(keeper.offer(seal({ version: first })), { message: /older/ });
  t.ok(keeper.judge(seal({ version: first })) instanceof PolicyRefusal);
  await keeper.offer(seal({ version: first + 12 }));
  t.match(keeper.policy.value, { version: first + 12 }, 'what comes with a certificate counts too');
});

t.test('a disk that takes nothing does not keep a denial from holding', async (t) => {
  const dataDir = temporaryFolder(t);
  const folder = writePolicyFiles(dataDir, pair.publicKey, seal());
  const { keeper, ids } = keeperIn(folder);
  await keeper.load();
  const path = join(folder, 'policy.json');
  rmSync(path);
  // Nothing can be renamed to a folder's name, whoever tries.
  mkdirSync(path);
  await keeper.offer(seal({ version: first + 1, default: 'deny' }));
  t.match(keeper.policy.value, { default: 'deny' });
  t.equal(ids(), 'policy.disk');
  await t.rejects(keeper.commit(seal({ version: first + 2 })), { code: 'E_PERMISSION' });
  t.match(keeper.policy.value, { version: first + 1 }, "the authority's own change needs the disk");
  rmdirSync(path);
  await keeper.commit(seal({ version: first + 3 }));
  t.equal(ids(), '');
  keeper.close();
});

t.test('the authority changes one after the other, on disk first, and writes back what the store lost', async (t) => {
  const dataDir = temporaryFolder(t);
  const folder = writePolicyFiles(dataDir, pair.publicKey, seal());
  const { keeper, common, metrics, ids } = keeperIn(folder, { clock: systemClock });
  await keeper.load();
  const store = new MemoryStore();
  const signer = { seal: async (policy: Policy) => sealPolicy(policy, pair.privateKey) };
  const authority = new PolicyAuthority({ ...common, signer, book: keeper });
  t.equal(await authority.change((policy) => policy), keeper.policy.value, 'no change is none');
  const away = await authority.change((policy) => ({ ...policy, default: 'deny', mesh: 'other' }));
  t.match(away, { default: 'deny', mesh: 'home' }, 'without a store it is on disk');
  t.ok(away.version > first);
  t.notOk(authority.stored);

  const stop = new AbortController();
  t.teardown(() => stop.abort());
  void authority.keep({ store, keys, signal: stop.signal });
  following(t, keeper, store);
  await new Promise((resolve) => setImmediate(resolve));
  t.strictSame(store.keys(keys.policy), [], 'a store that is not written back yet gets none');
  await store.put(keys.meta, encodeMeta({ meshId: policyMeshId, format: 1 }));
  const stored = (): Policy | PolicyRefusal | undefined => {
    const value = store.dump(keys.policy)[keys.policy];
    return value === undefined ? undefined : keeper.judge(Buffer.from(value));
  };
  await waitFor('the store has it', () => authority.stored && stored());
  const changes = await Promise.all([
    authority.change((policy) => ({ ...policy, mode: 'learn' })),
    authority.change((policy) => ({ ...policy, fromLinks: false })),
  ]);
  t.ok((changes[1]?.version ?? 0) > (changes[0]?.version ?? 0));
  t.match(keeper.policy.value, { default: 'deny', mode: 'learn', fromLinks: false });
  t.match(stored(), { version: changes[1]?.version });
  t.ok(authority.stored);

  for (const value of [undefined, seal({ version: first }), seal({ version: first * 2 }, newPolicyKeys().privateKey)]) {
    if (value === undefined) await store.delete(keys.policy);
    else await store.put(keys.policy, value);
    await waitFor('it is written back', () => (stored() as Policy | undefined)?.version === changes[1]?.version);
  }
  await waitFor('all is well', () => ids() === '');
  t.match(await metrics.exposition(), /legate_policy_rewritten_total 3/);

  await store.put(keys.policy, seal({ version: first * 2, default: 'deny' }));
  await waitFor('one of its own that is newer is taken over', () => keeper.policy.value?.version === first * 2);
  t.equal((await authority.change((policy) => ({ ...policy, default: 'allow' }))).version, first * 2 + 1);
  t.match(stored(), { version: first * 2 + 1 });
  await t.rejects(
    authority.change(() => {
      throw new Error('thrown by the change');
    }),
    /thrown by the change/,
  );
  t.ok(await authority.change((policy) => ({ ...policy, default: 'deny' })), 'and the next one is done');
});

t.test('what was decided after a backup of the authority comes back from another host', async (t) => {
  const clock = new ManualClock();
  const store = new MemoryStore();
  const signer = { seal: async (policy: Policy) => sealPolicy(policy, pair.privateKey) };
  const revoked = [{ hostId: 'b'.repeat(16), name: 'bad-1', setAtMs: first + 5 }];
  const restored = keeperIn(writePolicyFiles(temporaryFolder(t), pair.publicKey, seal()), { clock });
  await restored.keeper.load();
  const book = restored.keeper;
  const authority = new PolicyAuthority({ ...restored.common, signer, book, restoredFrom: 'yesterday' });
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  await store.put(keys.meta, encodeMeta({ meshId: policyMeshId, format: 1 }));
  void authority.keep({ store, keys, signal: stop.signal });
  following(t, restored.keeper, store);
  await clock.advance(20_000);
  t.strictSame(store.keys(keys.policy), [], 'it writes nothing before it has seen what the mesh knows');
  const allow = (policy: Policy): Policy => ({ ...policy, default: 'allow', mode: 'learn' });
  await t.rejects(authority.change(allow), { code: 'E_CONFLICT', message: /backup of yesterday: waiting/ });
  t.match(restored.ids(), /policy.restored/);

  const newer = seal({ version: first + 5, default: 'deny', revoked });
  const other = keeperIn(writePolicyFiles(temporaryFolder(t), pair.publicKey, newer), { clock });
  await other.keeper.load();
  following(t, other.keeper, store, true);
  await clock.advance(4000);
  await waitFor('it is taken over', () => restored.keeper.policy.value?.version === first + 5);
  await waitFor('it may be changed', () => authority.stored && restored.ids() === '');
  t.match(await authority.change(allow), { default: 'allow', revoked });
  await waitFor('both have it', () => other.keeper.policy.value?.default === 'allow');

  await store.put(keys.policy, newer);
  stop.abort();
  await clock.advance(4000);
  await waitFor('an older one is replaced', () => {
    const judged = other.keeper.judge(Buffer.from(store.dump(keys.policy)[keys.policy] ?? ''));
    return 'version' in judged && judged.default === 'allow' && other.ids() === '';
  });

  const alone = keeperIn(writePolicyFiles(temporaryFolder(t), pair.publicKey, seal()), { clock });
  await alone.keeper.load();
  const last = new PolicyAuthority({ ...alone.common, signer, book: alone.keeper, restoredFrom: 'yesterday' });
  await t.rejects(last.change(allow), { code: 'E_CONFLICT' }, 'without a store it waits');
  const empty = new MemoryStore();
  await empty.put(keys.meta, encodeMeta({ meshId: policyMeshId, format: 1 }));
  const ended = new AbortController();
  t.teardown(() => ended.abort());
  void last.keep({ store: empty, keys, signal: ended.signal });
  await clock.advance(31_000);
  await waitFor('where nobody has a newer one, its own counts', () => last.stored);
});

function seal0(keeper: PolicyKeeper): Uint8Array {
  return keeper.sealed ?? new Uint8Array();
}

async function counted(metrics: Metrics, reason: string): Promise<number> {
  const line = new RegExp(`legate_policy_refused_total\\{reason="${reason}"\\} (\\d+)`);
  return Number(line.exec(await metrics.exposition())?.[1] ?? 0);
}
