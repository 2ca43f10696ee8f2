import { readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { checkout, run } from './support/agent.ts';
import { consulProgram, unlessConsul } from './support/consul.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';
import { Testbed, testbedNeeds, testbedTurn } from './testbed/testbed.ts';

/** What README tells people with three hosts to type, typed on three hosts. */
const readme = readFileSync(join(checkout, 'README.md'), 'utf8');
const skip = unless(...testbedNeeds, 'command:curl', 'command:dig', 'command:etcd');

function block(mark: string): string {
  const found = new RegExp(`^<!-- ${mark} -->\n\n\`\`\`sh\n(.*?)^\`\`\`$`, 'ms').exec(readme)?.[1];
  if (found === undefined) throw new Error(`README has no block ${mark}`);
  return found;
}

/** The commands by the host that the comment in front of them names. */
function byHost(text: string): { host: number; commands: string[] }[] {
  return [...text.matchAll(/^# on host (\d).*\n((?:[^#\n].*\n)+)/gm)].map(([, host, lines = '']) => ({
    host: Number(host),
    commands: lines.trimEnd().split('\n'),
  }));
}

async function threeHosts(t: Test, kind: 'etcd' | 'consul'): Promise<void> {
  const testbed = await Testbed.up(t, { hosts: 3, hasTurn: true });
  if (kind === 'consul') {
    for (const { folder } of testbed.hosts) symlinkSync(consulProgram(), join(folder, 'bin', 'consul'));
  }
  const each = block(`run on each: ${kind}`);
  t.match(each, /^N=1 .*\n/, 'the first line says which host it is');
  for (const { number, spawn } of testbed.hosts.map((host) => ({
    number: host.number,
    spawn: host.spawn.bind(host),
  }))) {
    await spawn('sh', '-c', `${each.replace(/^N=1 .*/, `N=${number}`)}wait`);
  }
  for (const { host, commands } of byHost(block(`run: ${kind}`))) {
    for (const command of commands) {
      const at = testbed.host(host);
      await waitFor(
        `${command} on host ${host}`,
        async () => {
          const { status, stdout, stderr } = await at.tryRun('sh', '-c', command);
          const expected = expectedOf(command);
          if (status !== 0 || !expected.test(stdout)) throw new Error(`${status}: ${stdout}${stderr}`);
          return true;
        },
        { timeoutMs: 60_000, everyMs: 500 },
      );
      t.pass(`host ${host}: ${command}`);
    }
  }
  const status = await testbed.host(3).run('legate', 'status');
  t.match(status, new RegExp(`store\\s+${kind}`), status);
}

/** What a command prints when it did what README says. */
function expectedOf(command: string): RegExp {
  if (command.startsWith('docker run')) return /^[0-9a-f]{64}$/m;
  if (command.startsWith('legate instances')) return /passing\s+host-2\/[0-9a-f]{12}-80 /;
  if (command.startsWith('curl')) return /^[0-9a-f]{12}$/m;
  if (command.startsWith('dig')) return /^1 \d+ 8080 /m;
  throw new Error(`what does ${command} print?`);
}

/** The mesh of the first block: what `init` prints last goes to the others. */
async function joinedHosts(t: Test): Promise<void> {
  const testbed = await Testbed.up(t, { hosts: 2, hasTurn: true });
  for (const host of testbed.hosts) await host.image('busybox');
  let token = '';
  for (const { host, commands } of byHost(block('run: join'))) {
    const at = testbed.host(host);
    for (const written of commands) {
      const command = written.replace('TOKEN', token);
      if (command.endsWith(' &')) {
        const [first = '', ...words] = command.slice(0, -2).split(' ');
        await at.spawn(first, ...words);
        await waitFor(`host ${host} to be ready`, async () => (await at.tryRun('legate', 'status')).status === 0);
        continue;
      }
      const expected = /^(?:mkdir|echo|legate (?:init|join)) /.test(command) ? /^/ : expectedOf(command);
      const stdout = await waitFor(
        `${written} on host ${host}`,
        async () => {
          const ran = await at.tryRun('sh', '-c', command);
          if (ran.status !== 0 || !expected.test(ran.stdout)) throw new Error(`${ran.stdout}${ran.stderr}`);
          return { text: ran.stdout };
        },
        { timeoutMs: 60_000, everyMs: 500 },
      );
      token = /^legate join \S+ --token (\S+)/m.exec(stdout.text)?.[1] ?? token;
      t.pass(`host ${host}: ${written}`);
    }
  }
}

if (skip === false) await testbedTurn(t);

t.test('two hosts that join, from nothing', { skip, timeout: 180_000 }, joinedHosts);

t.test('three hosts with etcd, from nothing', { skip, timeout: 240_000 }, (t) => threeHosts(t, 'etcd'));

t.test('three hosts with Consul, from nothing', { skip: skip || unlessConsul(), timeout: 240_000 }, (t) =>
  threeHosts(t, 'consul'),
);

t.test('every block for several hosts is run', async (t) => {
  const marks = [...readme.matchAll(/^<!-- (run[^>]*) -->$/gm)].map(([, mark]) => mark);
  t.same(marks, ['run: join', 'run on each: etcd', 'run: etcd', 'run on each: consul', 'run: consul']);
  t.equal((await run('sh', ['-n'], { input: marks.map((mark) => block(mark ?? '')).join('\n') })).status, 0);
});
