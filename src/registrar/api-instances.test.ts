import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { parts } from '../../test/support/records.ts';
import type { Change } from '../base/feed.ts';
import { FieldFault } from '../base/fields.ts';
import type { StaticInstance } from '../config/config.ts';
import type { DesiredInstance } from '../model/instance.ts';
import { ApiInstances } from './api-instances.ts';
import { parseStaticInstances } from './static-file.ts';
import { staticReset } from './static-source.ts';

const entry = (name: string): StaticInstance => ({
  name,
  service: 'db',
  address: '127.0.0.1',
  port: 5432,
  protocol: 'tcp',
  reach: 'host',
  tags: ['a'],
  meta: { k: 'v' },
  weight: 1,
  checks: [
    { kind: 'http', path: '/health', port: 80, method: 'HEAD', intervalMs: 2000, timeoutMs: 1000, rise: 2, fall: 3 },
  ],
});

function bench(t: Test, place = mkdtempSync(join(tmpdir(), 'legate-api-'))) {
  t.teardown(() => rmSync(place, { recursive: true, force: true }));
  const path = join(place, 'instances.json');
  const changes: Change<DesiredInstance>[] = [];
  const { conditions } = parts();
  return {
    place,
    path,
    changes,
    conditions,
    api: new ApiInstances({ path, conditions, onChange: (change) => changes.push(change) }),
  };
}

t.test('an entry becomes a wish', async (t) => {
  t.match(staticReset([entry('a')], 'file'), {
    kind: 'reset',
    items: [{ name: 'a', source: 'file', draining: false, incarnation: '127.0.0.1:5432' }],
  });
});

t.test('what is registered survives a restart until it is deregistered', async (t) => {
  const first = bench(t);
  await first.api.load();
  t.same(first.changes, [{ kind: 'reset', items: [], revision: '' }]);
  await Promise.all([first.api.put(entry('a')), first.api.put(entry('b')), first.api.put(entry('c'))]);
  t.equal(await first.api.delete('b'), true);
  t.equal(await first.api.delete('b'), false);
  t.equal(first.changes.length, 5);
  t.equal(statSync(first.path).mode & 0o777, 0o600);
  const second = bench(t, first.place);
  await second.api.load();
  t.same(second.api.list(), [entry('a'), entry('c')]);
  t.match(second.changes, [{ kind: 'reset', items: [{ name: 'a', source: 'api' }, { name: 'c' }] }]);
});

t.test('a damaged file is kept, told of, and not written over', async (t) => {
  const b = bench(t);
  writeFileSync(b.path, '{"v":1,"instances":[');
  await b.api.load();
  t.same(b.changes, [], 'what is remembered stays');
  t.match(b.conditions.list(), [{ severity: 'error', message: /cannot be read/ }]);
  await t.rejects(b.api.put(entry('a')), { code: 'E_STORE_DAMAGED' });
  t.equal(readFileSync(b.path, 'utf8'), '{"v":1,"instances":[');
  const partly = bench(t);
  writeFileSync(partly.path, JSON.stringify({ v: 1, instances: [entry('a'), { ...entry('b'), port: 0 }] }));
  await partly.api.load();
  t.match(partly.changes, [{ items: [{ name: 'a' }] }]);
  t.match(partly.conditions.list(), [{ severity: 'warning', message: /1 entries .*port: 0 is not/ }]);
});

t.test('what cannot be written is not acknowledged', async (t) => {
  const b = bench(t);
  await b.api.load();
  rmSync(b.place, { recursive: true });
  await t.rejects(b.api.put(entry('a')), { code: 'E_PERMISSION', hint: /data_dir/ });
  t.same(b.api.list(), []);
  t.equal(b.changes.length, 1);
});

t.test('whatever is in the file, reading it gives entries or a plain fault', async () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.constantFrom('checks', 'name', 'tags', 'meta', 'port'), (value, field) => {
      parseStaticInstances(JSON.stringify({ v: 1, instances: [{ ...entry('a'), [field]: value }] }));
      try {
        parseStaticInstances(JSON.stringify(value));
      } catch (error) {
        if (!(error instanceof FieldFault)) throw error;
      }
    }),
    { numRuns: 300 },
  );
});
