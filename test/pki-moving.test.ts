import { cpSync, existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { AuthorityDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { temporaryFolder } from './support/agent.ts';
import {
  firstHost,
  identityOf,
  joinTo,
  legate,
  type MeshHost,
  meshHost,
  nextToken,
  tokenOf,
} from './support/mesh-host.ts';
import { waitFor } from './support/wait.ts';

t.test('the authority moves to another host, and the store stays where it is', async (t) => {
  const passphrases = temporaryFolder(t);
  const [pass, file] = [join(passphrases, 'pass'), join(passphrases, 'authority.backup')];
  writeFileSync(pass, 'one two three\n', { mode: 0o600 });
  const one = await firstHost(t);
  const two = await meshHost(t, 'db-1');
  const late = await meshHost(t, 'late-1');
  await one.agent.start();
  t.match(await joinTo(one, two, tokenOf(one.init)), { status: 0 });
  await two.agent.start();
  const authority = ({ dataDir }: MeshHost): string => join(dataDir, 'pki', 'authority');
  const before = join(passphrases, 'authority');
  cpSync(authority(one), before, { recursive: true });
  t.match(await legate(['ca', 'backup', file, '-c', one.agent.configFile, '--passphrase-file', pass]), { status: 0 });
  t.match(await joinTo(one, late, await nextToken(one)), { status: 0 }, 'a host that the backup does not know');
  const old = await nextToken(one);
  await late.agent.start();

  await two.agent.kill('SIGTERM');
  const moving = ['ca', 'restore', file, '-c', two.agent.configFile, '--passphrase-file', pass];
  t.match(await legate(moving), { status: 0 });
  await two.agent.start();
  await waitFor('it to be the authority', async () => (await identityOf(two)).role === 'authority');
  const { host } = await two.agent.json<StatusDocument>('/api/status');
  for (const each of [one, two, late]) {
    await waitFor('all to know', async () => {
      const { authority } = await each.agent.json<{ authority: { id: string } }>('/api/policy');
      return authority.id === host.id;
    });
  }
  await one.agent.kill('SIGTERM');
  await one.agent.start();
  t.match(await identityOf(one), { role: 'member', problem: null }, 'also after a restart');
  const todo = JSON.stringify((await one.agent.json<StatusDocument>('/api/status')).todo);
  t.match(todo, /pki\.elsewhere.*is on db-1 \(127\.0\.0\.1\) now: the keys of it that this host has are not used/);
  t.match(await one.agent.cli('token'), { status: 1, stderr: /authority of this mesh is on db-1/ });
  t.match(await one.agent.cli('intent', 'allow', 'web', 'db'), {
    status: 1,
    stderr: /authority's host, which is db-1/,
  });
  const next = await meshHost(t, 'next-1');
  t.match(await joinTo(one, next, old), { status: 1, stderr: /authority of this mesh is on db-1 .* by now/ });

  await waitFor('the new one to reach the store', async () => {
    const { status } = await two.agent.cli('intent', 'allow', 'web', 'db');
    return status === 0;
  });
  await waitFor('another host to hear of an intent', async () => {
    const { intents } = await late.agent.json<{ intents: unknown[] }>('/api/policy');
    return intents.length === 1;
  });

  const ca = (): Promise<AuthorityDocument> => two.agent.json<AuthorityDocument>('/api/ca');
  const alive = async (): Promise<string[]> => (await ca()).hosts.flatMap((each) => (each.alive ? [each.name] : []));
  await waitFor('all to live', async () => (await alive()).sort().join() === 'db-1,late-1,web-1');
  t.match(await two.agent.cli('ca', 'rotate'), { status: 0 });
  await waitFor('the new root to be the only one', async () => (await ca()).phase === 'none', { timeoutMs: 30_000 });
  for (const each of [one, late]) {
    const { roots, problem } = await waitFor('it to have renewed', async () => {
      const now = await identityOf(each);
      return now.roots.length === 1 && now;
    });
    t.same([roots, problem], [[(await ca()).roots[0]?.fingerprint], null]);
  }

  t.match(await joinTo(two, next, await nextToken(two)), { status: 0 }, 'it lets hosts in');

  // What was saved before the root was replaced is of no use any more.
  await two.agent.kill('SIGTERM');
  rmSync(authority(two), { recursive: true });
  t.match(await legate(moving), {
    status: 1,
    stderr:
      /the backup is of before a rotation: its root is [0-9a-f]{16}, and the mesh's is [0-9a-f]{16} by now; nothing was written/,
  });
  t.notOk(existsSync(authority(two)));
  // On a host that did not know it is told once the store has, and nothing else beside.
  cpSync(before, authority(two), { recursive: true });
  writeFileSync(join(authority(two), 'claim'), '2030-01-02T03:04:05Z');
  await two.agent.start();
  const problems = async (): Promise<string> =>
    JSON.stringify((await two.agent.json<StatusDocument>('/api/status')).todo);
  await waitFor('a word on it', async () => /its backup is of before a rotation/.test(await problems()));
  t.notMatch(await problems(), /takes over/);
  t.equal((await identityOf(late)).roots.length, 1, 'nothing has changed');
});
