/** `npm run testbed -- …`: the testbed by hand. README.md beside this file says how to use it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { parseArgs } from 'node:util';
import { describeError } from '../../src/base/errors.ts';
import { newerEngine } from './engines.ts';
import { Testbed } from './testbed.ts';

const usage = `npm run testbed -- COMMAND

  up [--hosts 3] [--newer N]    hosts 1 to 3 at 10.77.0.N, each with its own network, processes and Docker Engine;
                                --newer: host N runs the newer engine of Debian's next release
  status                        which hosts are on, and which faults there are
  sh N [COMMAND…]               a shell, or a command, on host N; legate is this checkout's build
  fault cut A B                 nothing passes between two hosts (silently)
        cut-one-way A B         nothing passes from A to B
        isolate N               as with the cable of N pulled
        loss N PERCENT          packets to and from N are lost
        rate N KBIT             the cable of N is slow
        heal [A [B]]            takes these back: all, those of A, those between A and B
        power-off N, boot N     the power of N; its disk stays
        kill-engine N, start-engine N
  faults [--store etcd|consul|embedded] [--down 60] [--tunnels] [--certificate-life 7d] [--only WORDS]
                                brings three hosts up with that store, makes every fault while a consumer asks 50 times
                                a second, prints what it noticed, and takes them down; --down: seconds without store;
                                --tunnels: through tunnels, and with the faults of these; --only: those named so
  why [PATTERN]                 joins three hosts, makes each fault that legate why has to name, and prints what it says
  down                          ends and removes everything

Examples:
  npm run testbed -- up --hosts 3
  npm run testbed -- sh 2 docker run -d -p 8080:80 busybox httpd -f
  npm run testbed -- fault cut 1 2
  npm run testbed -- down`;

class Usage extends Error {}

function number(text: string | undefined, what: string): number {
  if (text === undefined || !/^\d+$/.test(text)) throw new Usage(`${what} is missing or not a number`);
  return Number(text);
}

function attached(): Testbed {
  const testbed = Testbed.attach();
  if (testbed === undefined) throw new Error('no testbed is up: npm run testbed -- up');
  return testbed;
}

async function up(args: readonly string[]): Promise<void> {
  const options = { hosts: { type: 'string' }, newer: { type: 'string' } } as const;
  const { values } = parseArgs({ args: [...args], options });
  const engines: Record<number, string> = {};
  if (values.newer !== undefined) {
    const engine = await newerEngine(console.log);
    if ('missing' in engine) throw new Error(engine.missing);
    engines[number(values.newer, '--newer')] = engine.folder;
  }
  const hosts = values.hosts === undefined ? 3 : number(values.hosts, '--hosts');
  await Testbed.upToStay({ hosts, engines, say: console.log });
  console.log('a shell: npm run testbed -- sh 1        the end: npm run testbed -- down');
}

async function status(): Promise<void> {
  const testbed = attached();
  for (const host of testbed.hosts) {
    const off = host.isOn ? '' : '  off';
    console.log(`${host.name}  ${host.address}  docker -H unix://${host.dockerSocket}${off}`);
  }
  const { cuts, isolated, loss, rate } = testbed.faults;
  for (const [from, to] of cuts) console.log(`cut: ${from} -> ${to}`);
  for (const host of isolated) console.log(`isolated: ${host}`);
  for (const [host, percent] of Object.entries(loss)) console.log(`loss: ${host} ${percent} %`);
  for (const [host, kbit] of Object.entries(rate)) console.log(`rate: ${host} ${kbit} kbit/s`);
}

async function shell([host, ...command]: readonly string[]): Promise<number> {
  const wanted = number(host, 'the host');
  const at = attached().host(wanted);
  const words = command.length > 0 ? command : ['bash', '--norc', '-i'];
  const [first = '', ...rest] = [...at.inside({ PS1: `${at.name}# ` }), ...words];
  const child = spawn(first, rest, { stdio: 'inherit' });
  // Ctrl-C is for what runs there.
  for (const signal of ['SIGINT', 'SIGQUIT'] as const) process.on(signal, () => undefined);
  await once(child, 'exit');
  return child.exitCode ?? 1;
}

async function fault([what, first, second]: readonly string[]): Promise<void> {
  const testbed = attached();
  const a = (): number => number(first, 'the host');
  const b = (name: string): number => number(second, name);
  const optional = (text: string | undefined): number | undefined =>
    text === undefined ? undefined : number(text, 'the host');
  switch (what) {
    case 'cut':
      return testbed.cut(a(), b('the second host'));
    case 'cut-one-way':
      return testbed.cutOneWay(a(), b('the second host'));
    case 'isolate':
      return testbed.isolate(a());
    case 'loss':
      return testbed.loss(a(), b('the percentage'));
    case 'rate':
      return testbed.rate(a(), b('the rate in kbit/s'));
    case 'heal':
      return testbed.heal(optional(first), optional(second));
    case 'power-off':
      return testbed.host(a()).powerOff();
    case 'boot':
      return testbed.host(a()).boot();
    case 'kill-engine':
      return testbed.host(a()).killEngine();
    case 'start-engine':
      return testbed.host(a()).startEngine();
    default:
      throw new Usage(what === undefined ? 'which fault?' : `there is no fault ${what}`);
  }
}

async function faults(args: readonly string[]): Promise<number> {
  const options = {
    store: { type: 'string', default: 'etcd' },
    down: { type: 'string', default: '60' },
    tunnels: { type: 'boolean', default: false },
    'certificate-life': { type: 'string', default: '7d' },
    only: { type: 'string' },
  } as const;
  const { values } = parseArgs({ args: [...args], options });
  const kind = (['etcd', 'consul', 'embedded'] as const).find((each) => each === values.store);
  if (kind === undefined) throw new Usage(`there is no store ${values.store}`);
  const { printFaults } = await import('../faults/print.ts');
  return printFaults(kind, number(values.down, '--down') * 1000, {
    way: values.tunnels ? 'tunnels' : 'clear',
    certificateLife: values['certificate-life'],
    ...(values.only !== undefined && { only: new RegExp(values.only, 'i') }),
  });
}

async function main([command, ...args]: readonly string[]): Promise<number> {
  switch (command) {
    case 'up':
      await up(args);
      return 0;
    case 'status':
      await status();
      return 0;
    case 'sh':
      return shell(args);
    case 'fault':
      await fault(args);
      return 0;
    case 'faults':
      return faults(args);
    case 'why': {
      const { printWhy } = await import('../faults/why-print.ts');
      const [pattern] = args;
      return printWhy(pattern === undefined ? undefined : new RegExp(pattern, 'i'));
    }
    case 'down':
      await Testbed.takeDown();
      return 0;
    case '--help':
    case '-h':
    case 'help':
      console.log(usage);
      return 0;
    default:
      throw new Usage(command === undefined ? 'which command?' : `there is no command ${command}`);
  }
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const wrong = error instanceof Usage || (error as NodeJS.ErrnoException).code?.startsWith('ERR_PARSE_ARGS') === true;
  console.error(`testbed: ${describeError(error)}${wrong ? `\n\n${usage}` : ''}`);
  process.exitCode = wrong ? 2 : 1;
}
