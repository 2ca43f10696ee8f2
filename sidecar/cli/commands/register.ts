import { readFile } from 'node:fs/promises';
import { describeError, LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import { checkEntry } from '../../../src/config/check-type.ts';
import type { StaticInstance } from '../../../src/config/config.ts';
import { parseInstancesFile } from '../../../src/config/instances-file.ts';
import type { ErrorDocument, InstanceDocument, RegisterDocument, StatusDocument } from '../../admin/documents.ts';
import type { AdminClient } from '../admin-client.ts';
import { exitStatus, NoSidecarError, showFailure } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session, withClient } from '../session.ts';
import { clean } from '../words.ts';
import { printFaults, readInput } from './input.ts';

/** The commands for instances that are not containers. */
export function addRegisterCommands({ program, session, register }: CommandTools): void {
  const registering = program
    .command('register')
    .description('registers instances that are not containers; they survive restarts until deregistered')
    .requiredOption(
      '-f, --file <file>',
      'YAML with a list `instances:` as in the configuration; - reads standard input',
    )
    .addHelpText(
      'after',
      examples(
        'legate register -f db.yaml',
        "echo '[{service: db, address: 127.0.0.1, port: 5432}]' | legate register -f -",
        'legate instances db',
      ),
    );
  register<GlobalOptions & { file: string }>(registering, (options) => registerAll(session, options));

  const deregistering = program
    .command('deregister')
    .description('takes back what `legate register` registered')
    .argument('<id>', 'as `legate instances` shows it: HOST/NAME, or NAME for this host')
    .addHelpText('after', examples('legate deregister web-1/db-5432', 'legate deregister db-5432'));
  register<GlobalOptions>(deregistering, async (options, id = '') => {
    const { terminal } = session;
    const answer = await withClient(session, options, async (client) => {
      const full = id.includes('/') ? id : `${await hostName(client)}/${id}`;
      return { id: full, document: await client.json<unknown>(instancePath(full), { method: 'DELETE' }) };
    });
    if (options.json) printJson(terminal, answer.document);
    else
      terminal.lines([
        ` ${terminal.style.paint(terminal.style.good, 'green')} ${printable(answer.id)} is deregistered`,
      ]);
    return exitStatus.done;
  });
}

async function registerAll(session: Session, options: GlobalOptions & { readonly file: string }): Promise<number> {
  const { terminal } = session;
  const { style } = terminal;
  const fromStdin = options.file === '-';
  const text = fromStdin ? await readInput(session.stdin) : await readText(options.file);
  const parsed = parseInstancesFile(text, fromStdin ? 'standard input' : options.file);
  if ('faults' in parsed) {
    printFaults((line) => terminal.error(line), parsed.faults, parsed.faults.length, 'nothing registered.');
    return exitStatus.usage;
  }
  const registered: InstanceDocument[] = [];
  const failed: ({ readonly id: string } & ErrorDocument)[] = [];
  await withClient(session, options, async (client) => {
    const host = await hostName(client);
    for (const instance of parsed.instances) {
      const id = `${host}/${instance.name}`;
      try {
        const document = await client.json<InstanceDocument>(instancePath(id), {
          method: 'PUT',
          json: bodyOf(instance),
        });
        registered.push(document);
        if (!options.json) terminal.lines([` ${style.paint(style.good, 'green')} ${registeredText(document, id)}`]);
      } catch (error) {
        if (error instanceof NoSidecarError) throw error;
        const shown = showFailure(error, printable(id));
        failed.push({ id, ...shown.document });
        if (!options.json) terminal.error(` ${style.bad} ${shown.line}`);
      }
    }
  });
  if (options.json) printJson(terminal, { registered, failed });
  return failed.length === 0 ? exitStatus.done : exitStatus.failed;
}

function registeredText(document: InstanceDocument, id: string): string {
  const { service, address, port, status } = clean(document);
  return `${printable(id)} is registered: ${service} at ${address}:${port}, ${status}`;
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new LegateError('E_USAGE', `${path} cannot be read (${describeError(error)})`, { cause: error });
  }
}

export async function hostName(client: AdminClient): Promise<string> {
  const status = await client.json<StatusDocument>('/api/status');
  return status.host.name;
}

/** The path of an id; its slash stays a slash. */
export function instancePath(id: string): string {
  const parts = id.split('/');
  if (parts.length !== 2 || parts.some((part) => /^\.{0,2}$/.test(part))) {
    throw new LegateError('E_USAGE', `"${printable(id)}" is not an id (HOST/NAME)`, {
      hint: 'legate instances shows the ids',
    });
  }
  return `/api/instances/${parts.map(encodeURIComponent).join('/')}`;
}

/** The entry as the file would have it. */
function bodyOf(instance: StaticInstance): RegisterDocument {
  return { ...instance, checks: instance.checks.map(checkEntry) };
}
