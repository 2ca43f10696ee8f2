import { hostname } from 'node:os';
import { Option } from 'commander';
import { describeError, isLegateError } from '../../../src/base/errors.ts';
import type { Config } from '../../../src/config/config.ts';
import { type LoadResult, loadConfig } from '../../../src/config/load.ts';
import { optionDocuments } from '../../../src/config/options-document.ts';
import { formatEndpoint } from '../../../src/model/address.ts';
import type { Reload } from '../../agent.ts';
import { exitStatus } from '../failure.ts';
import { defaultAddress } from '../machine.ts';
import { type CommandTools, examples, type GlobalOptions, type Session, withClient } from '../session.ts';
import { readConfigFile } from './config.ts';
import { printFaults } from './input.ts';

/** `legate agent`: reads the configuration and hands over to the daemon, which is loaded only then. */
export function addAgentCommand({ program, session, register }: CommandTools): void {
  const command = program
    .command('agent')
    .description('runs the sidecar in the foreground; SIGTERM drains and leaves, SIGHUP reloads the file')
    .option('-c, --config <file>', 'the configuration, YAML')
    .option('--replace', 'takes the place of the sidecar that runs; connections go on (needs workers)')
    .addHelpText(
      'after',
      examples(
        'legate agent -c legate.yaml',
        'legate agent --dns-listen 127.0.0.1:53',
        'LEGATE_LOG_LEVEL=debug legate agent',
      ),
    )
    .optionsGroup('Configuration, as in the file (legate config options tells more):');
  const keys = new Map<string, string>();
  for (const { key, flag, type, doc, default: text, available } of optionDocuments()) {
    const value = type === 'true or false' ? '[true or false]' : '<value>';
    const shown = text === '' ? '' : ` (default: ${text})`;
    const option = new Option(`${flag} ${value}`, `${doc}${available ? '' : ' (not yet)'}${shown}`);
    keys.set(option.attributeName(), key);
    command.addOption(option);
  }
  register<GlobalOptions & { config?: string; replace?: boolean }>(command, async (options) => {
    const flags: Record<string, string> = {};
    for (const [attribute, text] of Object.entries(options)) {
      const key = keys.get(attribute);
      // A flag of true or false may stand alone.
      if (key !== undefined) flags[key] = String(text);
    }
    return startAgent(session, options, flags);
  });
}

async function startAgent(
  session: Session,
  options: GlobalOptions & { readonly config?: string; readonly replace?: boolean },
  flags: Record<string, string>,
): Promise<number> {
  const { terminal } = session;
  const configFile = options.config;
  const load = (): LoadResult =>
    loadConfig({
      ...(configFile === undefined ? {} : { file: readConfigFile(configFile) }),
      env: session.env,
      flags,
      defaults: { hostname: hostname(), advertise: defaultAddress },
    });
  const first = load();
  if ('faults' in first) {
    printFaults((line) => terminal.error(line), first.faults, first.count, 'nothing started.');
    return exitStatus.usage;
  }
  const reload: Reload = () => {
    try {
      const next = load();
      if ('config' in next) return next;
      return { faults: next.faults.map((fault) => fault.text), count: next.count, file: configFile };
    } catch (error) {
      return { faults: [describeError(error)], count: 1, file: configFile };
    }
  };
  const { runAgent } = await import('../../agent.ts');
  const replace = options.replace === true ? () => askToHandOver(session, options, first.config) : undefined;
  return runAgent(first.config, { configFile, reload, replace });
}

/** Asks the sidecar that runs to let this one take its place; where none runs there is nothing to ask. */
async function askToHandOver(session: Session, options: GlobalOptions, { admin }: Config): Promise<void> {
  const [listen] = admin.listen;
  if (listen === undefined && options.admin === undefined) return;
  const address = listen?.kind === 'tcp' ? formatEndpoint(listen) : `unix:${listen?.path ?? ''}`;
  const where = { admin: options.admin ?? address, ...(listen?.kind === 'tcp' && { tokenFile: admin.tokenFile }) };
  try {
    await withClient(session, { ...options, ...where }, (client) => client.json('/api/handover', { method: 'POST' }));
  } catch (error) {
    if (!isLegateError(error, 'E_UNREACHABLE')) throw error;
  }
}
