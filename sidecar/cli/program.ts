import { Command, CommanderError } from 'commander';
import { LegateError } from '../../src/base/errors.ts';
import { printable } from '../../src/base/text.ts';
import { ownVersion } from '../version.ts';
import { addAgentCommand } from './commands/agent.ts';
import { exitStatus, showFailure } from './failure.ts';
import { examples, type GlobalOptions, type Register, type Session } from './session.ts';
import { safeJson } from './words.ts';

/** Commands that later versions bring: asking for one is answered as such. */
const laterCommands = ['env', 'run', 'scan'];

/**
 * Runs one command line (without node and script) and gives the exit status: 0 done, 1 failed, 2 wrong usage or
 * configuration, 3 no sidecar reached. Failures are told on standard error, in one line.
 */
export async function runCommandLine(args: readonly string[], session: Session): Promise<number> {
  const { terminal } = session;
  let status: number = exitStatus.done;
  const program = await createProgram(args, session, (result) => {
    status = result;
  });
  try {
    await program.parseAsync([...args], { from: 'user' });
    return status;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return exitStatus.done;
    // A bare `legate` or `legate kv`: the help was printed, which says more than any line.
    if (error instanceof CommanderError && error.code === 'commander.help') return exitStatus.usage;
    const shown = showFailure(error, commandPath(program, args));
    terminal.progress('');
    terminal.error(args.includes('--json') ? safeJson(shown.document, 0) : shown.line);
    if (session.env.LEGATE_LOG_LEVEL === 'debug' && error instanceof Error) {
      terminal.error((error.stack ?? '').split('\n').map(printable).join('\n'));
    }
    return shown.status;
  }
}

async function createProgram(
  args: readonly string[],
  session: Session,
  onResult: (status: number) => void,
): Promise<Command> {
  const { terminal } = session;
  const program = new Command('legate')
    .description('names, links and failover for containers on plain Docker hosts')
    .version(ownVersion(), '-V, --version')
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.write(text),
      writeErr: (text) => terminal.error(text.trimEnd()),
      // Errors are thrown as well, and shown in one place.
      outputError: () => undefined,
      getOutHelpWidth: () => terminal.proseWidth,
      getErrHelpWidth: () => terminal.proseWidth,
      getOutHasColors: () => terminal.style.rich,
    })
    .configureHelp({ showGlobalOptions: true })
    .option('--admin <address>', "the sidecar's admin API: unix:/path or host:port (LEGATE_ADMIN)")
    .option('--token-file <file>', 'the token for it over TCP (LEGATE_TOKEN_FILE)')
    .option('--ca-file <file>', "the mesh's roots for it beyond loopback (LEGATE_CA_FILE)")
    .option('--json', 'prints documents for programs instead of tables')
    .addHelpText('after', examples('legate agent -c legate.yaml', 'legate status', 'legate resolve db'));
  const register: Register = <O extends GlobalOptions>(
    command: Command,
    run: (options: O, ...args: (string | undefined)[]) => Promise<number>,
  ) => {
    addConfigOption(command);
    command.action(async (...parts: unknown[]) => {
      // The words of a variadic argument come as one list.
      const args = parts.slice(0, command.registeredArguments.length).flat();
      const texts = args.map((arg) => (typeof arg === 'string' ? arg : undefined));
      onResult(await run(command.optsWithGlobals<O & Record<string, unknown>>(), ...texts));
    });
  };
  const tools = { program, session, register };
  addAgentCommand(tools);
  if (args[0] !== 'agent') (await import('./commands/others.ts')).addOtherCommands(tools);
  for (const name of laterCommands) addLater(program, name);
  return program;
}

/** All that ask a sidecar take its configuration instead of where its admin API is; some need it for more. */
function addConfigOption(command: Command): void {
  if (command.parent?.name() === 'config' || command.options.some(({ long }) => long === '--config')) return;
  command.option('-c, --config <file>', "the sidecar's configuration, which says where its admin API is");
}

function addLater(program: Command, name: string): void {
  program
    .command(name, { hidden: true })
    .helpOption(false)
    .allowUnknownOption()
    .argument('[rest...]')
    .action(() => {
      throw new LegateError('E_USAGE', 'this command is not yet in this version', {
        hint: 'legate -h lists those that are',
      });
    });
}

/** The command that the arguments name, as far as there is one: `legate kv get`. */
function commandPath(program: Command, args: readonly string[]): string {
  let path = program.name();
  let command = program;
  for (const word of args) {
    const next = command.commands.find((candidate) => candidate.name() === word);
    if (next === undefined) continue;
    command = next;
    path += ` ${word}`;
  }
  return path;
}
