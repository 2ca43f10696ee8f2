import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { AuthorityDocument, HostsDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import type { Ran } from './support/agent.ts';
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

const slow = { timeoutMs: 40_000 };

async function joinAgain(to: MeshHost, host: MeshHost): Promise<Ran> {
  const token = await nextToken(to);
  const args = ['join', `127.0.0.1:${to.ports.tunnel}`, '--again', '--token', '-', '-c', host.agent.configFile];
  return legate(args, `${token}\n`);
}

function idOf({ dataDir }: MeshHost): string {
  return JSON.parse(readFileSync(join(dataDir, 'host.json'), 'utf8')).hostId;
}

async function todoOf({ agent }: MeshHost): Promise<string> {
  return JSON.stringify((await agent.json<StatusDocument>('/api/status')).todo);
}

const fine = (host: MeshHost) => async (): Promise<boolean> => (await todoOf(host)) === '[]';

/** Two hosts, db-1 beside the authority. */
async function twoHosts(t: Test): Promise<{ one: MeshHost; two: MeshHost; ca: () => Promise<AuthorityDocument> }> {
  const one = await firstHost(t);
  const two = await meshHost(t, 'db-1');
  await one.agent.start();
  t.match(await joinTo(one, two, tokenOf(one.init)), { status: 0 });
  await two.agent.start();
  const ca = (): Promise<AuthorityDocument> => one.agent.json<AuthorityDocument>('/api/ca');
  await waitFor('db-1 to live', async () => (await ca()).hosts.filter(({ alive }) => alive).length === 2);
  return { one, two, ca };
}

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('a host that was off while the root was replaced joins again', async (t) => {
  const { one, two, ca } = await twoHosts(t);
  const { serial } = await identityOf(two);
  t.match(await one.agent.cli('ca', 'rotate', '--finish'), { status: 1, stderr: /not to be dropped now/ });

  // The authority's sidecar is killed in each phase: what was decided goes on.
  await two.agent.kill('SIGTERM');
  t.match(await one.agent.cli('ca', 'rotate'), { status: 0, stdout: /backups from before are of no use then/ });
  await one.agent.kill('SIGKILL');
  await one.agent.start();
  const replacing = await waitFor(
    'it to wait for db-1',
    async () => {
      const now = await ca();
      return now.phase === 'replacing' && now;
    },
    slow,
  );
  t.same(replacing.waitingFor.includes('db-1'), true);
  await one.agent.kill('SIGKILL');
  await one.agent.start();
  const waiting = await waitFor('its own certificate to be of the new root', async () => {
    const now = await ca();
    return now.waitingFor.join() === 'db-1' && now;
  });
  t.same([waiting.phase, waiting.roots.length], ['replacing', 2], 'a restart forgets nothing');
  t.match(await one.agent.cli('ca', 'rotate', '--finish'), { status: 0, stdout: /web-1/ });
  await one.agent.kill('SIGKILL');
  // As if it had been killed before the last key was gone.
  writeFileSync(join(one.dataDir, 'pki', 'authority', 'root-0123456789abcdef.key'), '', { mode: 0o600 });
  await one.agent.start();
  await waitFor('the policy to have dropped the old root', async () => (await identityOf(one)).roots.length === 1);
  t.match(await ca(), { phase: 'none', roots: { length: 1 }, waitingFor: [] });
  t.match(await identityOf(one), { problem: null });
  const keys = readdirSync(join(one.dataDir, 'pki', 'authority')).filter((name) => /^root-.*key$/.test(name));
  t.equal(keys.length, 1, 'no key of an old root is left');

  await two.agent.start();
  const told = await waitFor('db-1 to be told', async () => /--again/.exec(await todoOf(two)) && todoOf(two), slow);
  t.match(told, /root was replaced while this host was away: legate token on .* legate join \S+ --again --token TOKEN/);
  const beside = await joinAgain(one, two);
  t.match(beside, { status: 1, stderr: /in use by another sidecar \(pid \d+\).*stop that one first/ });
  const id = idOf(two);
  await two.agent.kill('SIGTERM');
  t.match(await joinTo(one, two, await nextToken(one)), { status: 1, stderr: /legate join --again/ });
  t.match(await joinAgain(one, two), { status: 0, stdout: /was in this mesh before, and keeps its id/ });
  t.equal(idOf(two), id);
  await two.agent.start();
  await waitFor('nothing to do', fine(two), slow);
  t.not((await identityOf(two)).serial, serial);
  t.match(await one.agent.cli('ca', 'status'), { stdout: /db-1 .*alive/ });
});

t.test('a host that was revoked joins again, and is another one', async (t) => {
  const { one, two } = await twoHosts(t);
  const id = idOf(two);
  t.match(await one.agent.cli('host', 'revoke', 'db-1'), { status: 0, stdout: /legate join --again there/ });
  await waitFor('it to be told', async () => /revoked.*legate join ADDRESS --again/.test(await todoOf(two)), slow);
  await two.agent.kill('SIGKILL');
  t.match(await joinAgain(one, two), { status: 0, stdout: new RegExp(`ran before as host ${id}, and has a new id`) });
  t.not(idOf(two), id, 'what was revoked stays so');
  await two.agent.start();
  await waitFor('nothing to do', fine(two), slow);
  await waitFor('the others to see it under its name', async () => {
    const { hosts } = await one.agent.json<HostsDocument>('/api/hosts');
    return hosts.some((host) => host.alive && host.name === 'db-1' && host.id === idOf(two));
  });
  const { stdout } = await one.agent.cli('ca', 'status');
  t.match(stdout, new RegExp(`db-1 .* alive .* ${idOf(two)}\\n db-1 .* revoked .* ${id}\\n`), 'both of that name');
  t.match(await joinAgain(one, one), { status: 1, stderr: /has the keys of an authority; nothing was changed/ });

  // Only who has the key of the last certificate is the host that it says to be.
  const thief = await meshHost(t, 'db-1');
  t.match(await joinAgain(one, thief), { status: 1, stderr: /the name db-1 is that of host db-1 .*join --again/ });
});
