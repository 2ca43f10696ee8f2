import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { hostname } from 'node:os';
import { describeError, LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import type { Config } from '../../../src/config/config.ts';
import { type Fault, Faults } from '../../../src/config/fault.ts';
import { loadConfig, readTree } from '../../../src/config/load.ts';
import { optionDocuments, optionsMarkdown, optionsText } from '../../../src/config/options-document.ts';
import { placeIn, treeLimits } from '../../../src/config/tree.ts';
import { servicesAdvice } from '../../config-advice.ts';
import { exitStatus } from '../failure.ts';
import { defaultAddress } from '../machine.ts';
import { type CommandTools, examples, type GlobalOptions, printJson } from '../session.ts';
import { printFaults } from './input.ts';

/** Reads a configuration file. What is over the limit is refused before it is read. */
export function readConfigFile(path: string): { readonly path: string; readonly text: string } {
  try {
    const size = statSync(path).size;
    if (size > treeLimits.bytes) throw new Error(`${size} bytes are over the limit of ${treeLimits.bytes}`);
    return { path, text: readFileSync(path, 'utf8') };
  } catch (error) {
    throw new LegateError('E_CONFIG', `${printable(path)} cannot be read (${describeError(error)})`, { cause: error });
  }
}

export function addConfigCommands({ program, session, register }: CommandTools): void {
  const config = program
    .command('config')
    .description('checks a configuration file, or lists the options')
    .addHelpText('after', examples('legate config check legate.yaml', 'legate config options'));

  const check = config
    .command('check')
    .description('prints every fault of a configuration file, and what in it has no effect')
    .argument('<file>');
  check.addHelpText('after', examples('legate config check legate.yaml', 'legate config check legate.yaml --json'));
  register<GlobalOptions>(check, async (options, path = '') => {
    const { terminal } = session;
    const file = readConfigFile(path);
    // The file is checked, and the files that it names; whether this machine has a route is not its fault.
    const sources = {
      file,
      env: {},
      flags: {},
      defaults: { hostname: hostname(), advertise: addressOrLoopback },
    };
    const result = loadConfig({ ...sources, fileFault });
    const loaded = loadConfig(sources);
    const starts = 'config' in loaded;
    const faults = 'faults' in result ? result.faults : [];
    const count = 'faults' in result ? result.count : 0;
    const warnings = 'config' in loaded ? warningsOf(loaded.config, file) : [];
    if (options.json) {
      printJson(terminal, { file: path, count, faults, warnings });
      return count === 0 ? exitStatus.done : exitStatus.usage;
    }
    terminal.lines(warnings.map(({ place, path: at, message }) => `${place}: warning: ${at}: ${message}`));
    if (count === 0) {
      const also =
        warnings.length === 0 ? '' : `, ${warnings.length} ${warnings.length === 1 ? 'warning' : 'warnings'}`;
      terminal.lines([`${printable(path)}: no faults${also}`]);
    } else
      printFaults(
        (line) => terminal.lines([line]),
        faults,
        count,
        starts ? 'it would start, and not work as written.' : 'it would not start.',
      );
    return count === 0 ? exitStatus.done : exitStatus.usage;
  });

  const list = config.command('options').description('prints the table of options: key, type, default, flag, variable');
  list.option('--markdown', "prints README's table");
  list.addHelpText('after', examples('legate config options', "legate config options --json | jq -r '.options[].key'"));
  register<GlobalOptions & { markdown?: boolean }>(list, async (options) => {
    if (options.markdown) session.terminal.write(optionsMarkdown());
    else if (options.json) printJson(session.terminal, { options: optionDocuments() });
    else session.terminal.write(optionsText());
    return exitStatus.done;
  });
}

/** What is no fault, and will not do what it seems to, with its place in the file. */
function warningsOf({ services }: Config, file: { readonly path: string; readonly text: string }): readonly Fault[] {
  const warnings = new Faults();
  const tree = readTree(file, warnings);
  for (const { path, message } of servicesAdvice(services)) {
    warnings.add(tree === undefined ? { text: file.path, order: 0 } : placeIn(tree, path), path, message);
  }
  return warnings.list();
}

function fileFault(path: string): string | undefined {
  try {
    accessSync(path, constants.R_OK);
    return undefined;
  } catch (error) {
    return describeError(error);
  }
}

function addressOrLoopback(): string {
  try {
    return defaultAddress();
  } catch {
    return '127.0.0.1';
  }
}
