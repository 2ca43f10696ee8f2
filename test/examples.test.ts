import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, cpSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Consumed } from '../examples/demo/world.ts';
import { checkout, must, run, type Teardown, temporaryFolder } from './support/agent.ts';
import { freePort } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** The examples and the demonstration, run by the very commands that their readers are given. */

interface Shell {
  readonly status: number;
  /** What it printed, by the block of the README that printed it. */
  readonly blocks: readonly string[];
  readonly all: string;
}

/**
 * Runs the shell blocks of an example's README, one after another in one shell that ends at the first failure. They run
 * in a copy of the checkout's folder in which `names` are replaced in every file, so that others on this machine are not
 * met: ports, container names, ranges.
 */
async function runReadme(t: Teardown, example: string, names: ReadonlyMap<string, string>): Promise<Shell> {
  const root = temporaryFolder(t);
  const folder = join(root, 'examples', example);
  mkdirSync(join(root, 'build'));
  cpSync(join(checkout, 'examples', example), folder, { recursive: true });
  await must('ln', '-s', join(checkout, 'build', 'sidecar'), join(root, 'build', 'sidecar'));
  const replace = (text: string): string => {
    const pattern = new RegExp([...names.keys()].map((name) => name.replaceAll('.', '\\.')).join('|'), 'g');
    return text.replace(pattern, (name) => names.get(name) ?? name);
  };
  for (const file of readdirSync(folder)) {
    const path = join(folder, file);
    writeFileSync(path, replace(readFileSync(path, 'utf8')), { mode: statSync(path).mode });
  }
  const found = [...readFileSync(join(folder, 'README.md'), 'utf8').matchAll(/^```sh\n(.*?)^```$/gms)];
  const mark = '-----next block-----';
  const script = ['set -e', ...found.map(([, block = '']) => `${block}echo '${mark}'`)].join('\n');
  const env = { ...process.env, TMPDIR: root };
  const child = spawn('bash', ['-c', script], { cwd: root, env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
  t.teardown(() => endGroup(child));
  let all = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      all += text;
    });
  }
  const [code] = (await once(child, 'close')) as [number | null];
  return { status: code ?? -1, blocks: all.split(`${mark}\n`), all };
}

/** Ends whatever is left of a shell and its children; SIGTERM first, so that a sidecar takes back what it did. */
async function endGroup(child: ChildProcess): Promise<void> {
  const { pid } = child;
  if (pid === undefined) return;
  const alive = (signal: NodeJS.Signals | 0): boolean => {
    try {
      return process.kill(-pid, signal);
    } catch {
      return false;
    }
  };
  if (!alive('SIGTERM')) return;
  await waitFor('the processes of an example to end', () => !alive(0)).catch(() => alive('SIGKILL'));
}

// What is not one after another below shares nothing, and waits more than it works.
t.jobs = 2;

/** The words that an example's consumers were answered with, each once. */
const answers = (block = ''): string[] => [...new Set(block.match(/^(?:blue|green)$/gm))].sort();

t.test('the examples', { timeout: 280_000 }, async (t) => {
  await t.test(
    'services from a file',
    { skip: unless('command:curl', 'command:bash'), timeout: 120_000 },
    async (t) => {
      const ports = ['17753', '18080', '18081', '18082'];
      const names = new Map<string, string>();
      for (const port of ports) names.set(port, String(await freePort()));
      const ran = await runReadme(t, 'services-from-a-file', names);
      t.equal(ran.status, 0, ran.all);
      const [started, both, one] = ran.blocks;
      t.match(started, /no faults/);
      t.match(started, /shop .* 2/);
      t.same(answers(both), ['blue', 'green'], 'both answer at one address');
      t.match(both, new RegExp(`${names.get('18082')}`), 'SRV tells the port of the instance with the tag');
      t.match(one, /critical .*shop-blue/);
      t.same(answers(one), ['green'], 'the other one answers at the same address');
    },
  );

  await t.test(
    'labelled containers',
    { skip: unless('docker', 'nft', 'command:bash'), timeout: 240_000 },
    async (t) => {
      const image = `legate-test-example-${process.pid}`;
      const shop = `shop-${process.pid}`;
      const names = new Map([
        ['legate-example', image],
        ['service=shop', `service=${shop}`],
        ['instances shop', `instances ${shop}`],
        ['blue.shop', `blue.${shop}`],
        ['http://shop', `http://${shop}`],
        ['  shop: ', `  ${shop}: `],
        ['240.77.', '240.94.'],
        [
          'host: web-1',
          'host: web-1\nvip: {range: 240.94.0.0/16, local_range: 240.95.0.0/16}\ndns: {listen: ["127.0.0.1:0"], bridges: off}',
        ],
      ]);
      t.teardown(async () => {
        await run('docker', ['rm', '-f', '-v', `${image}-blue`, `${image}-green`]);
        await run('docker', ['rmi', '-f', image]);
      });
      const ran = await runReadme(t, 'labelled-containers', names);
      t.equal(ran.status, 0, ran.all);
      const [, , registered, reached, stopped] = ran.blocks;
      t.match(registered, new RegExp(`${shop}-figures`));
      t.same(answers(reached), ['blue', 'green'], 'a consumer reaches both by one name');
      t.match(reached, /shop_pages_served_total\{instance="(?:blue|green)"\} [1-9]/, 'and the second port of each');
      t.same(answers(stopped), ['green'], 'after docker stop the same name leads to the other one');
      await nothingLeft(t, image, '240.94.');
    },
  );

  await t.test('a stack labelled for registrator', { skip: stackNeeds(), timeout: 240_000 }, async (t) => {
    const image = `legate-test-stack-${process.pid}`;
    const own = (name: string): string => `${name}-${process.pid}`;
    const names = new Map([
      ['legate-stack', image],
      ['docker-compose up', `docker-compose -p ${image} up`],
      ['docker-compose down', `docker-compose -p ${image} down`],
      ...['web', 'api', 'figures', 'db', 'reports', 'console'].map((name): [string, string] => [
        `stack-${name}`,
        own(`stack-${name}`),
      ]),
      ['Stack_DB', `Stack_DB_${process.pid}`],
      ['240.77.', '240.102.'],
      [
        'host: web-1',
        'host: web-1\nvip: {range: 240.102.0.0/16, local_range: 240.103.0.0/16}\ndns: {listen: ["127.0.0.1:0"], bridges: off}',
      ],
    ]);
    t.teardown(async () => {
      const left = await run('docker', ['ps', '-aq', '--filter', `name=${image}`]);
      for (const id of left.stdout.split('\n').filter((line) => line !== ''))
        await run('docker', ['rm', '-f', '-v', id]);
      await run('docker', ['network', 'rm', `${image}_default`]);
      await run('docker', ['rmi', '-f', image]);
    });
    const ran = await runReadme(t, 'registrator-stack', names);
    t.equal(ran.status, 0, ran.all);
    const [, , registered = '', reached] = ran.blocks;
    for (const name of ['web', 'api', 'figures', 'db', 'reports'])
      t.match(registered, new RegExp(`passing.*${own(`stack-${name}`)}|${own(`stack-${name}`)}.*passing`));
    t.notMatch(registered, own('stack-console'), 'what is to be ignored is');
    t.match(registered, /"tags":\s*\[\s*"public",\s*"eu"\s*\]/);
    t.match(registered, /"region":\s*"eu-1"/);
    t.match(reached, /^hello from the stack$/m, 'by its plain name, at its virtual address');
    t.match(reached, /^ok$/m, 'and the other one at its own port');
    await nothingLeft(t, image, '240.102.');
  });
});

t.test('the consumer of the demonstration tells every attempt, also of a question that was cut twice', async (t) => {
  let taken = 0;
  const server = createServer((socket) => {
    taken += 1;
    if (taken <= 2) socket.once('data', () => socket.resetAndDestroy());
    else socket.end('db-1\n');
  }).listen(0, '127.0.0.1');
  t.teardown(() => server.close());
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  const consumer = join(checkout, 'examples', 'demo', 'consumer.mjs');
  const seen = JSON.parse(
    await must(process.execPath, consumer, '127.0.0.1', String(port), '1', '1', '5000'),
  ) as Consumed;
  t.match(seen, { asked: 1, answers: { 'db-1': 1 }, unanswered: 0, failures: { length: 2 } });
  t.ok(seen.failures.every(({ beganAt, endedAt }) => beganAt > 0 && endedAt >= beganAt));
});

function stackNeeds(): false | string {
  return unless('docker', 'nft', 'busybox', 'command:bash', 'command:docker-compose');
}

/** Fails when containers, images or the kernel still hold what bears `name`, or the range that begins with `range`. */
async function nothingLeft(t: Test, name: string, range: string): Promise<void> {
  if (!unless('docker')) {
    t.equal(await must('docker', 'ps', '-aq', '--filter', `name=${name}`), '', 'no container is left');
    t.equal(await must('docker', 'ps', '-aq', '--filter', `label=${name}`), '', 'no labelled container is left');
    t.notMatch(await must('docker', 'images', '--format', '{{.Repository}}:{{.Tag}}'), name, 'no image is left');
  }
  if (!unless('nft')) {
    t.notMatch(await must('nft', 'list', 'tables'), `legate_${range.replaceAll('.', '_')}`, 'no table is left');
    t.notMatch(await must('ip', 'route', 'show', 'table', 'local'), range, 'no route is left');
  }
}

/** Ranges of a demonstration's own, so that it is shown with virtual addresses and meets nobody. */
const vips = (range: number): NodeJS.ProcessEnv => ({
  LEGATE_VIP_RANGE: `240.${range}.0.0/16`,
  LEGATE_VIP_LOCAL_RANGE: `240.${range + 1}.0.0/16`,
});
const start = join(checkout, 'examples', 'demo', 'start.mjs');

class Demonstration {
  readonly child: ChildProcess;
  readonly #temporary: string;
  readonly #range: string;
  text = '';

  /** In a process group of its own, as a shell starts it, with its temporary files in `temporary`. */
  constructor(t: Test, temporary: string, env: NodeJS.ProcessEnv, prefix: readonly string[] = []) {
    // Without the test runner's hooks, which it puts into each child, and which write where only its own user may.
    const bare = ['env', '-u', 'NODE_OPTIONS', process.execPath, start, '--once'];
    const [command = '', ...words] = [...prefix, ...bare];
    const variables = { ...process.env, ...env, TMPDIR: temporary, HOME: temporary };
    this.#temporary = temporary;
    this.#range = (env.LEGATE_VIP_RANGE ?? '240.77.').replace(/0\.0\/16$/, '');
    this.child = spawn(command, words, { env: variables, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.text += text;
      });
    }
    // SIGTERM, not SIGKILL: it takes back what it started.
    t.teardown(() => endGroup(this.child));
  }

  async ended(): Promise<number | null> {
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, 'close');
    return this.child.exitCode;
  }

  async leavesNothing(t: Test): Promise<void> {
    t.same(
      readdirSync(this.#temporary).filter((name) => name.startsWith('legate-')),
      [],
      'no folder is left',
    );
    const processes = await must('ps', '-eo', 'args');
    t.notMatch(processes, this.#temporary, 'no process is left');
    await nothingLeft(t, `legate-demo-${this.child.pid}`, this.#range);
    if (!unless('docker'))
      t.equal(await must('docker', 'images', '-q', `legate-demo:${this.child.pid}`), '', 'no image is left');
  }

  /** It ended by itself, each step was observed, and nothing is left. */
  async observed(t: Test): Promise<void> {
    t.equal(await this.ended(), 0, this.text);
    const lines = this.text.trimEnd().split('\n');
    const steps = lines.filter((line) => line.startsWith(' ✔ '));
    t.ok(steps.length >= 8, `${steps.length} things were observed`);
    for (const line of lines) {
      t.match(line, /^(?: ✔ | {3}\S)/, 'a step that was observed, or a remark');
      if (!line.includes(this.#temporary)) t.ok([...line].length <= 100, `fits 100 columns: ${line}`);
      t.notMatch(line, /[\u0000-\u001f\u007f]/, 'no control characters');
    }
    await this.leavesNothing(t);
  }
}

const noDocker = { DOCKER_HOST: 'unix:///nonexistent/docker.sock' };

/** Ctrl-C when `line` was printed takes everything back. */
async function interrupted(t: Test, env: NodeJS.ProcessEnv, line: RegExp): Promise<void> {
  const demo = new Demonstration(t, temporaryFolder(t), env);
  await waitFor(String(line), () => line.test(demo.text), { timeoutMs: 60_000 });
  if (demo.child.pid !== undefined) process.kill(-demo.child.pid, 'SIGINT');
  t.equal(await demo.ended(), 1, demo.text);
  t.match(demo.text, /Everything that was started has been removed/);
  await demo.leavesNothing(t);
}

// One after another: of two that begin at once on one engine, neither sees that the other takes the service's name.
t.test('the demonstration with containers', { skip: unless('docker'), timeout: 240_000 }, async (t) => {
  await t.test('to its end', async (t) => {
    const demo = new Demonstration(t, temporaryFolder(t), vips(82));
    await demo.observed(t);
    t.match(demo.text, /2 containers registered by label/);
    t.match(demo.text, /web-2 .*joined with a token/);
  });
  await t.test('Ctrl-C while the services start', (t) => interrupted(t, vips(82), /joined with a token/));
  await t.test('Ctrl-C while a consumer asks', (t) => interrupted(t, vips(82), / SRV /));
});

t.test('the demonstration without Docker: plain processes', { timeout: 240_000 }, async (t) => {
  await t.test('to its end', async (t) => {
    const demo = new Demonstration(t, temporaryFolder(t), { ...vips(84), ...noDocker });
    await demo.observed(t);
    t.match(demo.text, /2 processes registered/);
    t.match(demo.text, /a client on web-2 reached 127\.0\.0\.2:\d+ 400 times/, 'a link across the hosts');
  });
  await t.test('Ctrl-C under traffic', (t) => interrupted(t, { ...vips(84), ...noDocker }, /answered: /));
  await t.test('without root', { skip: unless('root', 'command:setpriv') }, async (t) => {
    const temporary = temporaryFolder(t);
    chownSync(temporary, 65534, 65534);
    const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    if ((await run('setpriv', [...nobody.slice(1), 'test', '-r', start])).status !== 0) {
      t.comment('the checkout lies where only root can read; not shown');
      return;
    }
    const demo = new Demonstration(t, temporary, vips(84), nobody);
    await demo.observed(t);
    t.match(demo.text, /No virtual addresses here/, 'it says what more it would show');
  });
});
