import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { openEmbeddedStore } from '../../src/store/embedded/embedded-store.ts';

const rounds = 20;
const writerFile = fileURLToPath(new URL('./crash-writer.js', import.meta.url));

/** Lets a child write until it has acknowledged `count` writes, kills it, and gives every line that it has printed. */
async function writeUntilKilled(path: string, round: number, count: number): Promise<string[]> {
  const child = spawn(process.execPath, [writerFile, path, String(round)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    // Without what the test runner would load into it.
    env: { PATH: process.env.PATH ?? '' },
  });
  let text = '';
  let lines = 0;
  child.stdout.setEncoding('latin1').on('data', (part: string) => {
    text += part;
    lines += part.split('\n').length - 1;
    if (lines > count) child.kill('SIGKILL');
  });
  const [, signal] = await once(child, 'close');
  if (signal !== 'SIGKILL') throw new Error(`the writer ended by itself: ${signal}`);
  return text.split('\n').slice(0, -1);
}

t.test('SIGKILL during a stream of writes loses nothing acknowledged', { timeout: 100_000 }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'legate-store-crash-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, 'store');
  const acknowledged = new Map<string, string>();
  const revisions: string[] = [];
  const opened: string[] = [];
  for (let round = 0; round < rounds; round += 1) {
    for (const line of await writeUntilKilled(path, round, 20 + ((round * 37) % 150))) {
      const [word, key = '', revision = ''] = line.split(' ');
      if (word === 'open') opened.push(key);
      else {
        acknowledged.set(key, revision);
        revisions.push(revision);
      }
      const previous = opened.at(-1) ?? '';
      if (word === 'put' && number(revision) <= number(previous)) t.fail(`${revision} after opening at ${previous}`);
    }
  }
  const store = await openEmbeddedStore({ path, clock: systemClock, log: silentLog, metrics: new Metrics() });
  t.teardown(() => store.close());
  const { entries, revision } = await store.range('/');
  const found = new Map(entries.map((entry) => [entry.key, entry]));
  const missing = [...acknowledged].filter(([key, wanted]) => found.get(key)?.revision !== wanted);
  t.same(missing, [], `${acknowledged.size} acknowledged writes are there, at their revisions`);
  const wrong = [...found.values()].filter(({ key, value }) => {
    return !key.startsWith('/shared/') && !Buffer.from(value).toString().startsWith(`${key} `);
  });
  t.same(wrong, [], 'with their values');
  t.equal(opened.length, rounds);
  t.same(
    [...opened].sort((a, b) => number(a) - number(b)),
    opened,
    'no start was behind an earlier one',
  );
  t.equal(new Set(revisions).size, revisions.length, 'no revision was given out twice');
  t.ok(
    revisions.every((each) => store.compareRevisions(each, revision) < 0),
    'and the last is greater than all',
  );
});

function number(revision: string): number {
  return Number(revision.split('.')[1]);
}
