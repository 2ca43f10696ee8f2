import t from 'tap';
import { emptySnapshot } from '../src/catalog/snapshot.ts';
import type { StoreConfig } from '../src/config/config.ts';
import { comeBackHint } from '../src/model/policy.ts';
import { parts } from '../test/support/records.ts';
import { pictureDocument, type StatusParts, statusDocument } from './status.ts';

const embedded: StoreConfig = { kind: 'embedded', listen: undefined, leaseTtlMs: 10_000 } as StoreConfig;
const other: StoreConfig = { kind: 'embedded', listen: { address: '10.77.0.1', port: 2379 }, leaseTtlMs: 10_000 };

function status(over: Partial<StatusParts>) {
  const shared = parts();
  return statusDocument({
    ...shared,
    self: { hostId: '1', hostName: 'web-1', address: '10.77.0.1' },
    ...{ mesh: 'home', version: '0.1.0', startedAtMs: 0, startedMonotonicMs: 0 },
    snapshot: () => emptySnapshot,
    own: () => [],
    confirmedAtMs: () => undefined,
    stores: { used: embedded, wanted: embedded },
    isOfMesh: () => false,
    store: () => ({ state: 'connected', sinceMs: 0, storeId: undefined }),
    storeProblem: () => undefined,
    docker: () => ({ state: 'off', version: null, problem: null, containers: 0 }),
    vip: () => ({ state: 'off', range: '', reason: null }),
    callers: () => ({ state: 'off', reason: null, bound: 0 }),
    links: () => 0,
    names: () => [],
    tunnels: [],
    policy: () => null,
    identity: () => ({ role: 'none', certificateUntil: null, serial: null, roots: [], problem: null }),
    ...over,
  });
}

t.test('the store is the one in use, and another that is wanted is said beside it', async (t) => {
  const wantedText = { kind: 'embedded', where: 'the embedded store' };
  t.match(status({}).store, { ...wantedText, problem: null, wanted: null });
  const switching = status({ stores: { used: embedded, wanted: other }, storeProblem: () => 'it does not answer' });
  t.match(switching.store, { problem: null, wanted: { ...wantedText, problem: 'it does not answer' } });
  const text = 'https://10.77.0.1:7712';
  const endpoints = [{ secure: true, host: '10.77.0.1', port: 7712, text }];
  const far = {
    kind: 'etcd',
    leaseTtlMs: 10_000,
    endpoints,
    prefix: '/legate',
    tls: {},
    credentialsFile: undefined,
  } as const;
  const ofMesh = status({ stores: { used: far, wanted: far }, isOfMesh: () => true });
  t.match(ofMesh.store, { kind: 'embedded', where: `the store of another host, at ${text}`, wanted: null });

  const none = { stores: { used: undefined, wanted: other }, store: () => undefined };
  const starting = status({ ...none, storeProblem: () => 'it does not answer' });
  t.match(starting.store, { ...wantedText, state: 'away', problem: 'it does not answer', wanted: null });
});

t.test('what the store and its session both say is shown once', async (t) => {
  const { conditions } = parts();
  const ids = (): string[] => status({ conditions }).todo.map(({ id }) => id);
  conditions.raise('store.etcd.away', 'error', 'etcd cannot be used: refused', '');
  conditions.raise('service.db.usable', 'error', 'etcd', '');
  t.same(ids(), ['store.etcd.away', 'service.db.usable']);
  conditions.raise('store.open', 'error', 'etcd cannot be used: refused; the embedded store is used until then', '');
  t.same(ids(), ['service.db.usable', 'store.open']);
  conditions.raise('store.etcd.away', 'error', 'another matter', '');
  t.equal(ids().length, 3);
});

t.test('a host that was revoked is told so once', async (t) => {
  const { conditions } = parts();
  conditions.raise('store.etcd.away', 'error', 'etcd cannot be used: it closes the connection at once', '');
  conditions.raise('tunnel.host.a', 'warning', 'no tunnel to host a: it refuses this host', comeBackHint);
  conditions.raise('tunnel.host.b', 'warning', 'no tunnel to host b: it refuses this host', comeBackHint);
  conditions.raise('service.db.usable', 'error', 'x', '');
  const { todo } = status({ conditions });
  t.same(
    todo.map(({ id }) => id),
    ['tunnel.host.a', 'service.db.usable'],
  );
  t.match(todo[0], { message: /^this host was revoked/, hint: /legate join ADDRESS --again/ });
});

t.test('a lost host that shows a bad certificate is told once', async (t) => {
  const { conditions } = parts();
  conditions.raise('host.lost.a', 'warning', 'host web-3 (10.77.0.3) is lost', 'is the machine up?');
  conditions.raise('host.lost.b', 'warning', 'host web-4 (10.77.0.4) is lost', 'is the machine up?');
  const ended = 'no tunnel to host web-3: 10.77.0.3:7711: its certificate ended 3 h ago';
  conditions.raise('tunnel.host.a', 'warning', ended, 'join again');
  t.match(status({ conditions }).todo, [
    {
      message: 'host web-3 (10.77.0.3) is lost: 10.77.0.3:7711: its certificate ended 3 h ago',
      hint: 'join again',
    },
    { message: 'host web-4 (10.77.0.4) is lost', hint: 'is the machine up?' },
  ]);
});

t.test('how old the picture is', async (t) => {
  t.same(pictureDocument(undefined, undefined, 5), { store: 'away', ageMs: null });
  t.same(pictureDocument({ state: 'connected', sinceMs: 0, storeId: 'a' }, 3, 5), { store: 'connected', ageMs: 2 });
});
