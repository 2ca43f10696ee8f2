import { systemClock } from '../../../src/base/clock.ts';
import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import type { AuthorityDocument, TokenDocument } from '../../admin/documents.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session, withClient } from '../session.ts';
import { authorityLines } from '../views/authority.ts';
import { clean, plural } from '../words.ts';
import { joinLine, readConfig, termsOf } from './mesh.ts';

interface TokenCommandOptions extends GlobalOptions {
  readonly ttl: string;
  readonly uses: string;
}

interface RotateCommandOptions extends GlobalOptions {
  readonly finish?: boolean;
}

interface BackupCommandOptions extends GlobalOptions {
  readonly passphraseFile?: string;
  readonly overwrite?: boolean;
}

/** `token` and `ca`: what the authority's host does. */
export function addAuthorityCommands(tools: CommandTools): void {
  const { program, session, register } = tools;
  const token = program
    .command('token')
    .description("prints a token to join with, on the authority's host")
    .option('--ttl <duration>', 'how long it holds', '1h')
    .option('--uses <number>', 'how many hosts may join with it', '1')
    .addHelpText('after', examples('legate token', 'legate token --ttl 24h --uses 5', 'legate token --json'));
  register<TokenCommandOptions>(token, (options) => giveToken(session, options));

  const ca = program
    .command('ca')
    .description("shows, replaces, saves and restores the mesh's certificate authority")
    .addHelpText(
      'after',
      examples('legate ca status', 'legate ca backup authority.backup -c legate.yaml --passphrase-file F'),
    );
  const status = ca.command('status').description("the authority's roots and the hosts' certificates");
  status.addHelpText('after', examples('legate ca status', 'legate ca status --json'));
  register<GlobalOptions>(status, async (options) => {
    const document = await withClient(session, options, (client) => client.json<AuthorityDocument>('/api/ca'));
    show(session, options, document);
    return exitStatus.done;
  });

  const rotate = ca
    .command('rotate')
    .description('replaces the root while all goes on: both are believed until no host needs the old one')
    .option('--finish', 'drops the old root now: hosts that are away have to join again');
  rotate.addHelpText('after', examples('legate ca rotate', 'legate ca status', 'legate ca rotate --finish'));
  register<RotateCommandOptions>(rotate, async (options) => {
    const json = options.finish === true ? { finish: true } : {};
    const call = { method: 'POST', json } as const;
    const document = await withClient(session, options, (client) =>
      client.json<AuthorityDocument>('/api/ca/rotate', call),
    );
    show(session, options, document);
    return exitStatus.done;
  });
  addBackupCommands(ca, tools);
}

function addBackupCommands(ca: CommandTools['program'], { session, register }: CommandTools): void {
  const passphrase = 'file with the passphrase of the backup, readable by its owner only';
  const backup = ca
    .command('backup')
    .description(
      "saves the authority's keys and what it knows, encrypted; on its host, whether the sidecar runs or not",
    )
    .argument('<file>', 'written whole or not at all, readable by its owner')
    .option('-c, --config <file>', 'the configuration, YAML')
    .option('--passphrase-file <file>', passphrase)
    .option('--overwrite', 'replaces FILE where it exists');
  backup.addHelpText(
    'after',
    examples('legate ca backup authority.backup -c legate.yaml --passphrase-file /root/backup.pass'),
  );
  register<BackupCommandOptions>(backup, async (options, file = '') => {
    const config = readConfig(session, options.config, 'nothing was saved.');
    if (config === undefined) return exitStatus.usage;
    const { backupAuthority } = await import('../../authority-backup.ts');
    const saved = await backupAuthority(config, {
      ...{ file, passphraseFile: passphraseFileOf(options) },
      overwrite: options.overwrite === true,
    });
    if (options.json) printJson(session.terminal, saved);
    else tell(session, `the authority of mesh ${saved.mesh}, ${plural(saved.hosts, 'host')}, is in ${printable(file)}`);
    return exitStatus.done;
  });

  const restore = ca
    .command('restore')
    .description('makes this host the authority again, from a backup; its sidecar must not run')
    .argument('<file>', 'what legate ca backup wrote')
    .option('-c, --config <file>', 'the configuration, YAML')
    .option('--passphrase-file <file>', passphrase);
  restore.addHelpText(
    'after',
    examples('legate ca restore authority.backup -c legate.yaml --passphrase-file /root/backup.pass'),
  );
  register<BackupCommandOptions>(restore, async (options, file = '') => {
    const config = readConfig(session, options.config, 'nothing was restored.');
    if (config === undefined) return exitStatus.usage;
    const { restoreAuthority } = await import('../../authority-backup.ts');
    const signal = session.interruption();
    const how = { file, passphraseFile: passphraseFileOf(options), clock: systemClock, signal };
    const restored = await restoreAuthority(config, how);
    if (options.json) printJson(session.terminal, restored);
    else
      tell(
        session,
        `host ${config.host} (host id ${restored.hostId}) is the authority of mesh ${restored.mesh}; start it now: legate agent -c ${printable(options.config ?? 'legate.yaml')}`,
        `decisions since the backup of ${restored.savedAt} come back from the other hosts; check \`legate intent list\``,
      );
    return exitStatus.done;
  });
}

function passphraseFileOf({ passphraseFile }: BackupCommandOptions): string {
  if (passphraseFile !== undefined) return passphraseFile;
  throw new LegateError('E_USAGE', 'say --passphrase-file FILE: a backup of the authority is always encrypted', {
    hint: 'for instance: (umask 077; openssl rand -base64 24 > backup.pass), and keep it apart from the backup',
  });
}

async function giveToken(session: Session, options: TokenCommandOptions): Promise<number> {
  const { terminal } = session;
  const call = { method: 'POST', json: termsOf(options) } as const;
  const given = await withClient(session, options, (client) => client.json<TokenDocument>('/api/tokens', call));
  const shown = clean(given);
  const join = joinLine(shown.address, shown.token, options.config?.startsWith('/') ? options.config : shown.config);
  if (options.json) printJson(terminal, { ...shown, join });
  else {
    terminal.lines([shown.token]);
    terminal.error(`until ${shown.expiresAt}, for ${plural(shown.uses, 'host')}: ${join}`);
  }
  return exitStatus.done;
}

function show({ terminal }: Session, options: GlobalOptions, document: AuthorityDocument): void {
  if (options.json) printJson(terminal, document);
  else terminal.lines(authorityLines(clean(document), terminal.view()));
}

function tell({ terminal }: Session, text: string, ...more: readonly string[]): void {
  const sign = terminal.style.paint(terminal.style.good, 'green');
  terminal.lines([` ${sign} ${text}`, ...more.map((line) => `   ${line}`)]);
}
