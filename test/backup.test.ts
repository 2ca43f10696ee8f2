import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { StoreRestoreDocument } from '../sidecar/admin/documents.ts';
import { Agent, temporaryFolder } from './support/agent.ts';
import { mountSmallDisk, sayingServer } from './support/faults.ts';
import { unless } from './support/needs.ts';

/** `legate store backup` and `restore` with whole sidecars. */

t.test('a backup on a full disk', { skip: unless('root', 'netns') }, async (t) => {
  const agent = await new Agent(t).start();
  for (let index = 0; index < 6; index += 1) await agent.api('PUT', `/api/kv/${index}`, 'x'.repeat(900_000));
  const folder = join(temporaryFolder(t), 'small');
  mkdirSync(folder);
  mountSmallDisk(t, folder, 2);
  const ran = await agent.cli('store', 'backup', join(folder, 'mesh.backup'));
  t.equal(ran.status, 1);
  t.match(ran.stderr, /mesh\.backup cannot be written: no space left; free some space there/);
  t.same(readdirSync(folder), [], 'nothing is left of it');
  const good = join(temporaryFolder(t), 'mesh.backup');
  t.equal((await agent.cli('store', 'backup', good)).status, 0);
  t.match((await agent.cli('store', 'restore', good)).stdout, /0 keys written, 0 replaced, 6 were the same/);
});

t.test('backup and restore', async (t) => {
  const { port } = await sayingServer(t, 'db');
  const agent = await new Agent(t, { instances: [{ service: 'db', address: '127.0.0.1', port }] }).start();
  const file = join(temporaryFolder(t), 'mesh.backup');
  const put = (key: string, value: string) => agent.api('PUT', `/api/kv/${key}`, value);
  for (const key of ['a', 'b', 'c']) await put(key, `old ${key}`);
  await put('lock?lease_ttl=60s', 'mine');
  t.equal((await agent.cli('kv', 'put', 'text', 'täxt')).status, 0);
  const saved = await agent.cli('store', 'backup', file);
  t.match(saved.stdout, /keys, .* written to .*mesh\.backup; 1 key with a time to live left out/, saved.stderr);
  t.equal(statSync(file).mode & 0o777, 0o600);
  const text = readFileSync(file, 'utf8');
  t.equal((await agent.cli('store', 'backup', '-')).stdout.split('\n').length, text.split('\n').length);

  const restore = async (...words: string[]): Promise<StoreRestoreDocument> => {
    const ran = await agent.cli('store', 'restore', file, '--json', ...words);
    t.equal(ran.status, 0, ran.stderr);
    return JSON.parse(ran.stdout) as StoreRestoreDocument;
  };
  t.match(await restore(), { written: 0, replaced: 0, different: 0 });
  await agent.api('DELETE', '/api/kv/a');
  await put('b', 'new b');
  t.match(await restore(), { written: 1, different: 1, named: ['kv/b'], ofLivingHosts: 2 });
  t.equal((await agent.api('GET', '/api/kv/a')).text, 'old a');
  t.equal((await agent.api('GET', '/api/kv/b')).text, 'new b');
  t.match(await restore('--overwrite'), { replaced: 1, different: 0 });
  t.equal((await agent.api('GET', '/api/kv/b')).text, 'old b');

  const refused = async (changed: string, expected: RegExp): Promise<void> => {
    const damaged = join(temporaryFolder(t), 'damaged');
    writeFileSync(damaged, changed);
    await put('b', 'untouched');
    const ran = await agent.cli('store', 'restore', damaged, '--overwrite');
    t.equal(ran.status, 1);
    t.match(ran.stderr, expected);
    t.equal((await agent.api('GET', '/api/kv/b')).text, 'untouched', 'nothing was written');
  };
  await refused(text.slice(0, -10), /cut off/);
  await refused(`${text.trimEnd().split('\n').slice(0, -1).join('\n')}\n`, /cut off: \d+ of \d+ records/);
  await refused(text.replace('"value":"', '"value":"AAAA'), /checksum is wrong|not base64/);
  await refused(text.replace('"v":1', '"v":2'), /newer version/);
  await refused(text.replace(/"meshId":"\w{8}/, '"meshId":"00000000'), /the backup is of mesh 0{8}/);
  await refused('{}\n', /does not begin/);
});
