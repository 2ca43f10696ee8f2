import { formatDuration } from '../../../src/base/duration.ts';
import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import { parseSettingsValue } from '../../../src/config/settings-value.ts';
import { nameFault } from '../../../src/model/names.ts';
import { serviceFields, settingText, settingWord } from '../../../src/model/service.ts';
import type { ForgottenDocument, ServiceDocument } from '../../admin/documents.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session, withClient } from '../session.ts';
import { clean } from '../words.ts';

/** What changes a service for the whole mesh. */
export function addServiceCommands({ program, session, register }: CommandTools): void {
  const service = program
    .command('service')
    .description('sets a service for the whole mesh, or forgets one that nobody needs any more')
    .addHelpText('after', examples('legate service set db port=5432', 'legate service forget db'));

  const setting = service
    .command('set')
    .description(
      `sets ${serviceFields.map(settingWord).join(', ')} of a service for the whole mesh; running links follow`,
    )
    .argument('<name>', 'a service; one that does not exist yet is made, and needs a port')
    .argument('<settings...>', 'key=value, as in `services:` of the configuration')
    .addHelpText(
      'after',
      examples(
        'legate service set db port=5432',
        'legate service set db prefer=any park=5s',
        'legate service set web port=80 protocol=http',
      ),
    );
  register<GlobalOptions>(setting, async (options, name = '', ...words) => {
    const { terminal } = session;
    const json = settingsOf(words.filter((word) => word !== undefined));
    const document = await withClient(session, options, (client) =>
      client.json<ServiceDocument>(servicePath(name), { method: 'PUT', json }),
    );
    if (options.json) printJson(terminal, document);
    else terminal.lines([done(session, setText(document))]);
    return exitStatus.done;
  });

  const forgetting = service
    .command('forget')
    .description('removes a service without instances and gives its virtual address back')
    .argument('<name>', "a service that nobody's configuration names; if another host's does, it comes back")
    .addHelpText('after', examples('legate service forget db', 'legate service forget db --json'));
  register<GlobalOptions>(forgetting, async (options, name = '') => {
    const { terminal } = session;
    const document = await withClient(session, options, (client) =>
      client.json<ForgottenDocument>(servicePath(name), { method: 'DELETE' }),
    );
    if (options.json) printJson(terminal, document);
    else terminal.lines([done(session, forgottenText(document))]);
    return exitStatus.done;
  });
}

/** Reads the words `key=value` with the rules of the file, in whose names and units the API takes them. */
function settingsOf(words: readonly string[]): Readonly<Record<string, string | number>> {
  const values = new Map<string, string>();
  for (const word of words) {
    const equals = word.indexOf('=');
    const key = word.slice(0, equals);
    if (equals < 1 || equals === word.length - 1) {
      throw new LegateError('E_USAGE', `"${printable(word)}" is not key=value`, { hint: 'such as port=5432' });
    }
    if (values.has(key)) throw new LegateError('E_USAGE', `${printable(key)} is given twice`);
    values.set(key, word.slice(equals + 1));
  }
  const result = parseSettingsValue(Object.fromEntries(values));
  if ('faults' in result) throw new LegateError('E_USAGE', result.faults.map((fault) => fault.text).join('; '));
  const { settings } = result;
  const chosen = serviceFields.filter((field) => settings[field] !== undefined);
  return Object.fromEntries(
    chosen.map((field) => [
      settingWord(field),
      field === 'port' ? Number(settings.port) : settingText(field, settings),
    ]),
  );
}

function servicePath(name: string): string {
  const fault = nameFault(name);
  if (fault === undefined) return `/api/services/${name}`;
  throw new LegateError('E_USAGE', `the service's name "${printable(name)}" ${fault}`, {
    hint: 'legate services lists the names',
  });
}

function done({ terminal: { style } }: Session, text: string): string {
  return ` ${style.paint(style.good, 'green')} ${text}`;
}

function setText(document: ServiceDocument): string {
  const { name, port, protocol, balance, prefer, parkMs = 0, proxyProtocol, vip } = clean(document);
  const words = [`port ${port}/${protocol}`, balance];
  if (prefer === 'any') words.push('prefer any');
  if (parkMs > 0) words.push(`park ${formatDuration(parkMs)}`);
  if (proxyProtocol === 'v2') words.push('PROXY protocol v2');
  if (vip !== null) words.push(`at ${vip}`);
  return `${name} is set: ${words.join(', ')}`;
}

function forgottenText(document: ForgottenDocument): string {
  const { forgotten, vips } = clean(document);
  const freed = vips.length === 0 ? '' : `; ${vips.join(', ')} may go to another service`;
  return `${forgotten} is forgotten${freed}`;
}
