import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { temporaryFolder } from '../test/support/agent.ts';
import { parts } from '../test/support/records.ts';
import { waitFor } from '../test/support/wait.ts';
import { openDataDir, watchDataDir } from './data-dir.ts';

const { signal } = new AbortController();

/** A shell command as a process of its own; what it printed first. */
async function started(t: Test, command: string) {
  const child = spawn('/bin/sh', ['-c', command], { stdio: ['ignore', 'pipe', 'ignore'] });
  const end = once(child, 'exit');
  t.teardown(async () => {
    child.kill('SIGKILL');
    await end;
  });
  const [printed] = await once(child.stdout, 'data');
  return { pid: Number(String(printed)), kill: () => child.kill('SIGKILL'), end };
}

function stateAndStart(pid: number): readonly string[] {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? [];
  return [fields[0] ?? '', fields[19] ?? ''];
}

function heldBy(t: Test, pid: number): string {
  const path = temporaryFolder(t);
  writeFileSync(join(path, 'agent.pid'), `${pid} ${stateAndStart(pid)[1]}\n`);
  return path;
}

const skip = process.platform === 'linux' ? false : 'needs /proc';

t.test('a holder that was killed and that nobody waited for is gone', { skip }, async (t) => {
  // The shell becomes a program that never waits for the child that it began.
  const { pid } = await started(
    t,
    '(until [ "$(cat /proc/$$/comm)" = sleep ]; do sleep 0.01; done) & echo $!; exec sleep 60',
  );
  await waitFor('the child to be a zombie', async () => stateAndStart(pid)[0] === 'Z');
  const path = heldBy(t, pid);
  const clock = new ManualClock();
  const dataDir = await openDataDir(path, { clock, signal });
  t.equal(clock.monotonicMs(), 0, 'at once');
  t.equal(readFileSync(join(path, 'agent.pid'), 'utf8').split(' ')[0], String(process.pid));
  dataDir.release();
});

t.test('a holder that is just dying is waited for', { skip }, async (t) => {
  const holder = await started(t, 'echo $$; exec sleep 60');
  const clock = new ManualClock();
  const opening = openDataDir(heldBy(t, holder.pid), { clock, signal });
  await clock.advance(1000);
  holder.kill();
  await holder.end;
  await clock.advance(100);
  (await opening).release();
});

t.test('a living holder is named after 2 s', { skip }, async (t) => {
  const { pid } = await started(t, 'echo $$; exec sleep 60');
  const clock = new ManualClock();
  const path = heldBy(t, pid);
  const refused = t.rejects(openDataDir(path, { clock, signal }), {
    code: 'E_IN_USE',
    message: `data_dir ${path} is in use by another sidecar (pid ${pid})`,
  });
  await clock.advance(1900);
  t.equal(clock.pending, 1, 'still waiting');
  await clock.advance(150);
  await refused;
  t.equal(clock.pending, 0);
});

t.test('a directory that others can enter, and keys of a former authority, are told until that is over', async (t) => {
  const clock = new ManualClock();
  const { conditions } = parts(clock);
  const path = join(temporaryFolder(t), 'data');
  mkdirSync(join(path, 'pki', 'authority'), { recursive: true });
  writeFileSync(join(path, 'host.json'), '{}');
  chmodSync(path, 0o755);
  conditions.raise('pki.elsewhere', 'warning', 'the keys of it that this host has are not used any more', '');
  const ended = new AbortController();
  const watching = watchDataDir(path, { clock, conditions, signal: ended.signal });
  t.teardown(async () => {
    ended.abort();
    await watching.catch(() => undefined);
  });
  const ids = (): readonly string[] => conditions.list().map(({ id }) => id);
  t.same(ids(), ['pki.elsewhere', 'agent.data_dir.mode']);
  t.match(conditions.list()[1], { message: `data_dir ${path} can be entered by others (mode 0755)` });
  await clock.advance(5000);
  t.equal(ids().length, 2);
  chmodSync(path, 0o700);
  rmSync(join(path, 'pki'), { recursive: true });
  await clock.advance(5000);
  t.same(ids(), []);
});

t.test('an empty directory is closed to others, and one that holds something is left as it is', async (t) => {
  const modeOf = (path: string): number => statSync(path).mode & 0o777;
  const clock = new ManualClock();
  for (const [name, mode] of [
    ['empty', 0o700],
    ['full', 0o755],
  ] as const) {
    const path = join(temporaryFolder(t), name);
    mkdirSync(path);
    chmodSync(path, 0o755);
    if (name === 'full') writeFileSync(join(path, 'of somebody else'), '');
    (await openDataDir(path, { clock, signal })).release();
    t.equal(modeOf(path), mode, name);
  }
});
