import { hostname } from 'node:os';
import { systemClock } from '../../../src/base/clock.ts';
import { parseDuration } from '../../../src/base/duration.ts';
import { LegateError } from '../../../src/base/errors.ts';
import type { Config } from '../../../src/config/config.ts';
import { loadConfig } from '../../../src/config/load.ts';
import { ownVersion } from '../../version.ts';
import { exitStatus } from '../failure.ts';
import { defaultAddress } from '../machine.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session } from '../session.ts';
import { readConfigFile } from './config.ts';
import { printFaults, readInputBytes } from './input.ts';

interface InitCommandOptions extends GlobalOptions {
  readonly ttl: string;
  readonly uses: string;
  readonly certificateLife: string;
}

interface JoinCommandOptions extends GlobalOptions {
  readonly token?: string;
  readonly again?: boolean;
}

const maxTokenBytes = 1024;

/** `init` and `join`: both write into data_dir and end. */
export function addMeshCommands({ program, session, register }: CommandTools): void {
  const init = program
    .command('init')
    .description('makes this host the first of a mesh: its authority, its policy key, and a token for the next host')
    .option('-c, --config <file>', 'the configuration, YAML')
    .option('--ttl <duration>', 'how long the first token holds', '1h')
    .option('--uses <number>', 'how many hosts may join with it', '1')
    .option('--certificate-life <duration>', "how long hosts' certificates hold; they are renewed at half of it", '7d')
    .addHelpText('after', examples('legate init -c legate.yaml', 'legate init -c legate.yaml --uses 5 --ttl 24h'));
  register<InitCommandOptions>(init, (options) => initialise(session, options));

  const join = program
    .command('join')
    .description('makes this host one of a mesh; then start it with legate agent')
    .argument('<address>', "the authority's host: address, or address:port when it is not 7711")
    .option('--token <token>', 'what legate init or legate token printed; - reads it from standard input')
    .option('--again', 'this host is in a mesh, whose hosts refuse it: its certificate ended, or it was revoked')
    .option('-c, --config <file>', 'the configuration, YAML')
    .addHelpText(
      'after',
      examples(
        'legate join 10.77.0.1 --token - -c legate.yaml < token',
        'legate join 10.77.0.1 --token lgt1_… -c legate.yaml',
        'legate join 10.77.0.1 --again --token - -c legate.yaml < token',
      ),
    );
  register<JoinCommandOptions>(join, (options, address = '') => joinHost(session, options, address));
}

async function initialise(session: Session, options: InitCommandOptions): Promise<number> {
  const { terminal } = session;
  const terms = termsOf(options);
  const certificateLifeMs = durationOf(options.certificateLife, '--certificate-life', 10_000, 365 * 86_400_000);
  const config = readConfig(session, options.config, 'nothing was made.');
  if (config === undefined) return exitStatus.usage;
  const { initMesh } = await import('../../init.ts');
  const signal = session.interruption();
  const made = await initMesh(config, { clock: systemClock, signal, terms, certificateLifeMs });
  const line = joinLine(made.address, made.token, options.config);
  if (options.json) {
    printJson(terminal, { ...made, join: line });
    return exitStatus.done;
  }
  const { style } = terminal;
  const good = style.paint(style.good, 'green');
  const keys = made.encrypted ? 'encrypted with the passphrase' : 'readable by their owner only; not encrypted';
  terminal.lines([
    ` ${good} host ${made.host} is the authority of mesh ${made.mesh} (host id ${made.hostId})`,
    ` ${good} its keys and the policy key are in ${config.dataDir}/pki/authority, ${keys}`,
    ` ${good} its root is ${made.fingerprint.slice(0, 16)}, the mesh is in ${made.store}, and the policy allows what no intent denies`,
    ` ${style.note} start it now: legate agent${configFlag(options.config)}`,
    ` ${style.note} keep a backup: legate ca backup FILE --passphrase-file F${configFlag(options.config)}`,
    ` ${style.note} on the next host, until ${made.tokenExpiresAt} (${terms.uses === 1 ? 'one host' : `${terms.uses} hosts`}):`,
    line,
  ]);
  return exitStatus.done;
}

async function joinHost(session: Session, options: JoinCommandOptions, address: string): Promise<number> {
  const { terminal } = session;
  // A token on the command line is to be seen in the list of processes as short as can be.
  process.title = 'legate join';
  if (options.token === undefined) {
    throw new LegateError('E_USAGE', 'say --token TOKEN, or --token - to read it from standard input', {
      hint: "legate token on the authority's host prints one",
    });
  }
  const token =
    options.token === '-' ? (await readInputBytes(session.stdin, maxTokenBytes)).toString('utf8') : options.token;
  const config = readConfig(session, options.config, 'nothing was joined.');
  if (config === undefined) return exitStatus.usage;
  const { joinMesh } = await import('../../join.ts');
  const signal = session.interruption();
  const how = { again: options.again === true, version: ownVersion(), clock: systemClock, signal };
  const joined = await joinMesh(config, { address, token, ...how });
  if (options.json) {
    printJson(terminal, joined);
    return exitStatus.done;
  }
  const { style } = terminal;
  const good = style.paint(style.good, 'green');
  terminal.lines([
    ` ${good} host ${joined.host} is in mesh ${joined.mesh} (host id ${joined.hostId})`,
    ` ${good} certificate until ${joined.certificateUntil}, which renews itself; the store is ${joined.store}`,
    ...(joined.before === null ? [] : [` ${style.note} ${joined.before}`]),
    ...(joined.difference === null ? [] : [` ${style.note} ${joined.difference}: the configuration wins`]),
    ` ${style.note} start it now: legate agent${configFlag(options.config)}`,
  ]);
  return exitStatus.done;
}

/** The configuration as the sidecar would have it; undefined when it has faults, which are printed. */
export function readConfig(session: Session, file: string | undefined, consequence: string): Config | undefined {
  const result = loadConfig({
    ...(file === undefined ? {} : { file: readConfigFile(file) }),
    env: session.env,
    flags: {},
    defaults: { hostname: hostname(), advertise: defaultAddress },
  });
  if ('config' in result) return result.config;
  printFaults((line) => session.terminal.error(line), result.faults, result.count, consequence);
  return undefined;
}

/** What a token is to be worth. E_USAGE. */
export function termsOf(options: { readonly ttl: string; readonly uses: string }): { ttlMs: number; uses: number } {
  const uses = Number(options.uses);
  if (!/^\d{1,4}$/.test(options.uses) || uses < 1) {
    throw new LegateError('E_USAGE', '--uses is not a whole number from 1 to 9999');
  }
  return { ttlMs: durationOf(options.ttl, '--ttl', 1000, 30 * 86_400_000), uses };
}

function durationOf(text: string, option: string, minMs: number, maxMs: number): number {
  const ms = parseDuration(text);
  if (ms !== undefined && ms >= minMs && ms <= maxMs) return ms;
  throw new LegateError('E_USAGE', `${option} is not a duration from ${minMs / 1000}s to ${maxMs / 86_400_000}d`, {
    hint: 'write it such as 30m, 1h or 7d',
  });
}

/** The one line to paste on another host. */
export function joinLine(address: string, token: string, file: string | undefined): string {
  // A relative path says nothing of where the file is on another host.
  return `legate join ${address} --token ${token}${configFlag(file?.startsWith('/') ? file : 'legate.yaml')}`;
}

function configFlag(file: string | undefined): string {
  if (file === undefined) return '';
  return ` -c ${/^[A-Za-z0-9_./-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`}`;
}
