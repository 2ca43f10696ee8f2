import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { Latest } from '../src/base/feed.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Host } from '../src/model/host.ts';
import { hostId, hostRecord, parts } from '../test/support/records.ts';
import { watchHostNames } from './host-names-watch.ts';
import { appearanceGraceMs, watchLostHosts } from './lost-hosts-watch.ts';

t.test('lost hosts are told of until they return or are forgotten', async (t) => {
  const clock = new ManualClock(0);
  const { conditions } = parts(clock);
  const snapshots = new Latest<Snapshot>(emptySnapshot);
  const end = watchLostHosts(snapshots, conditions, { selfId: hostId(1), clock });
  const put = async (number: number, alive: boolean | undefined): Promise<string[]> => {
    const id = hostId(number);
    const host = { ...hostRecord(id, `web-${number}`), address: `10.77.0.${number}`, revision: '1' };
    const { value } = snapshots;
    const hosts = alive === undefined ? value.hosts.with([], [id]) : value.hosts.with([[id, { ...host, alive }]], []);
    snapshots.set({ ...value, hosts });
    await clock.advance(0);
    return conditions.list().map(({ message, count }) => `${message} ${count}`);
  };
  t.same(await put(1, false), [], 'not of itself');
  t.same(await put(2, true), []);
  t.same(await put(2, false), ['host web-2 (10.77.0.2) is lost 1']);
  t.same(await put(2, false), ['host web-2 (10.77.0.2) is lost 1']);
  t.same(await put(4, false), ['host web-2 (10.77.0.2) is lost 1'], 'its sign of life comes after its record');
  t.same(await put(4, true), ['host web-2 (10.77.0.2) is lost 1']);
  t.same(await put(3, false), ['host web-2 (10.77.0.2) is lost 1']);
  await clock.advance(appearanceGraceMs);
  t.same(await put(3, false), ['host web-2 (10.77.0.2) is lost 1', 'host web-3 (10.77.0.3) is lost 1']);
  t.same(await put(2, true), ['host web-3 (10.77.0.3) is lost 1']);
  t.same(await put(3, undefined), []);
  end();
  t.same(await put(2, false), []);
});

t.test('living hosts of one name are told of, once', async (t) => {
  const { conditions } = parts();
  const snapshots = new Latest<Snapshot>(emptySnapshot);
  const end = watchHostNames(snapshots, conditions);
  const put = async (number: number, name: string, alive = true): Promise<string> => {
    const id = hostId(number);
    const host: Host = { ...hostRecord(id, name), address: `10.77.0.${number}`, alive, revision: '1' };
    const { value } = snapshots;
    snapshots.set({ ...value, hosts: value.hosts.with([[id, host]], []) });
    await Promise.resolve();
    return conditions
      .list()
      .map((condition) => `${condition.id}: ${condition.message}`)
      .join();
  };
  t.equal(await put(1, 'web-1'), '');
  t.equal(await put(2, 'web-1', false), '', 'a lost one may be the same machine, before');
  const two = `host.name.web-1: 2 hosts are called web-1: 10.77.0.1 (${hostId(1)}), 10.77.0.2 (${hostId(2)})`;
  t.equal(await put(2, 'web-1'), two);
  t.match(await put(3, 'web-1'), /^host.name.web-1: 3 hosts are called web-1/);
  t.equal(await put(3, 'web-3'), two);
  t.equal(await put(2, 'web-2'), '');
  end();
  t.equal(await put(2, 'web-1'), '');
});
