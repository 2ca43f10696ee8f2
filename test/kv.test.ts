import { spawn } from 'node:child_process';
import t from 'tap';
import type { KvChangeDocument } from '../sidecar/admin/documents.ts';
import { Agent, legateMain, type Teardown } from './support/agent.ts';
import { statusOf } from './support/faults.ts';
import { waitFor } from './support/wait.ts';

async function startAgent(t: Teardown): Promise<Agent> {
  const agent = await new Agent(t).start();
  await waitFor('the store', async () => (await statusOf(agent)).store.snapshot.origin === 'store');
  return agent;
}

/** `legate kv watch … --json` as a user runs it: what it has printed so far. */
function watching(t: Teardown, agent: Agent, ...words: string[]): KvChangeDocument[] {
  const args = ['-u', 'NODE_OPTIONS', process.execPath, legateMain, 'kv', 'watch', ...words, '--json'];
  const child = spawn('env', [...args, '--admin', `unix:${agent.socket}`], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => void child.kill('SIGTERM'));
  const seen: KvChangeDocument[] = [];
  let rest = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    seen.push(...lines.map((line) => JSON.parse(line) as KvChangeDocument));
  });
  return seen;
}

const textsOf = (seen: readonly KvChangeDocument[]): string[] =>
  seen.map(
    (change) => `${change.key}=${'value' in change ? Buffer.from(change.value, 'base64').toString() : 'absent'}`,
  );

// They share nothing, and wait more than they work.
t.jobs = 2;

t.test('a key with a lease vanishes by itself, unless it is written again', async (t) => {
  const agent = await startAgent(t);
  const put = (key: string, ...more: string[]): Promise<{ status: number; stderr: string }> =>
    agent.cli('kv', 'put', key, 'mine', ...more);
  // Not by the command line, which may take seconds on a busy machine.
  t.equal((await agent.api('PUT', '/api/kv/jobs/leader?cas=0&lease_ttl=3s', 'mine')).status, 200);
  const second = await agent.api('PUT', '/api/kv/jobs/leader?cas=0&lease_ttl=3s', 'x');
  t.equal(second.status, 409, second.text);
  t.equal((await put('jobs/kept', '--lease-ttl', '1s')).status, 0);
  t.equal((await put('jobs/kept')).status, 0, 'written again without a lease');
  await waitFor('the key to vanish', async () => (await agent.api('GET', '/api/kv/jobs/leader')).status === 404);
  t.equal((await agent.cli('kv', 'get', 'jobs/leader')).status, 1);
  t.equal((await agent.cli('kv', 'get', 'jobs/kept')).stdout, 'mine');
  t.equal((await put('jobs/leader', '--cas', '0', '--lease-ttl', '1h')).status, 0, 'the next one takes it');
  const reason = /lease_ttl is not a duration of 1s to 7d/;
  for (const ttl of ['0s', '999ms', '8d', 'soon', '-1s']) {
    const refused = await agent.api('PUT', `/api/kv/jobs/x?lease_ttl=${ttl}`, 'mine');
    t.equal(refused.status, 400, ttl);
    t.match(refused.text, reason, ttl);
  }
  t.match(await put('jobs/x', '--lease-ttl', ''), { status: 1, stderr: reason });
});

t.test('a lease outlives the sidecar that granted it, and still ends', async (t) => {
  const agent = await startAgent(t);
  t.equal((await agent.cli('kv', 'put', 'brief', 'x', '--lease-ttl', '2s')).status, 0);
  await agent.kill('SIGKILL');
  await agent.start();
  await waitFor('the key to vanish', async () => (await agent.api('GET', '/api/kv/brief')).status === 404);
});

t.test('a hundred writes of one key with a lease leave one lease', async (t) => {
  const agent = await startAgent(t);
  const leases = async (): Promise<number> => {
    const { text } = await agent.api('GET', '/metrics');
    return Number(/^legate_store_leases_count (\d+)/m.exec(text)?.[1]);
  };
  const before = await leases();
  for (let index = 0; index < 100; index += 1) {
    t.equal((await agent.api('PUT', '/api/kv/turn?lease_ttl=1h', String(index))).status, 200);
  }
  t.equal(await leases(), before + 1);
  t.equal((await agent.api('PUT', '/api/kv/turn?lease_ttl=1h&cas=0', 'x')).status, 409);
  t.equal(await leases(), before + 1, 'what was refused gave its lease back');
  t.equal((await agent.api('DELETE', '/api/kv/turn')).status, 200);
  t.equal(await leases(), before);
});

t.test('watch tells what is there, then each change, over a restart of the sidecar', async (t) => {
  const agent = await startAgent(t);
  await agent.cli('kv', 'put', 'app/colour', 'blue');
  const one = watching(t, agent, 'app/colour');
  const all = watching(t, agent, 'app/', '--prefix');
  const none = watching(t, agent, 'app/none');
  await waitFor('what is there', () => one.length === 1 && all.length === 1 && none.length === 1);
  t.same(textsOf(none), ['app/none=absent']);
  await agent.cli('kv', 'put', 'app/colour', 'green');
  await agent.cli('kv', 'put', 'app/colour-of-roof', 'red');
  await waitFor('two changes', () => all.length === 3);
  await agent.kill();
  await agent.start();
  await waitFor('the store', async () => (await statusOf(agent)).store.snapshot.origin === 'store');
  await agent.cli('kv', 'delete', 'app/colour');
  await waitFor('the deletion', () => textsOf(one).at(-1) === 'app/colour=absent');
  await waitFor('the deletion', () => textsOf(all).at(-1) === 'app/colour=absent');
  t.same(textsOf(one), ['app/colour=blue', 'app/colour=green', 'app/colour=absent']);
  t.same(textsOf(all), ['app/colour=blue', 'app/colour=green', 'app/colour-of-roof=red', 'app/colour=absent']);
});
