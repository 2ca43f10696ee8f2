import { readFileSync } from 'node:fs';
import { routesAdvice } from '../../../proxy/http/routing/route-advice.ts';
import { describeError, LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import { Faults } from '../../../src/config/fault.ts';
import { parseSettingsValue } from '../../../src/config/settings-value.ts';
import { parseTree, plainValue } from '../../../src/config/tree.ts';
import { idleSettings } from '../../../src/model/idle-settings.ts';
import { nameFault } from '../../../src/model/names.ts';
import type { Weights } from '../../../src/model/routes.ts';
import { serviceFields, settingText, settingWord } from '../../../src/model/service.ts';
import {
  furtherDefault,
  furtherFields,
  furtherKinds,
  furtherText,
  sameSetting,
} from '../../../src/model/service-settings.ts';
import type { ForgottenDocument, ServiceDocument } from '../../admin/documents.ts';
import { exitStatus } from '../failure.ts';
import {
  type CommandTools,
  examples,
  type GlobalOptions,
  printJson,
  type Session,
  tellNotes,
  withClient,
} from '../session.ts';
import { settingsHelp } from '../views/settings.ts';
import { clean } from '../words.ts';

/** What changes a service for the whole mesh. */
export function addServiceCommands({ program, session, register }: CommandTools): void {
  const service = program
    .command('service')
    .description('sets a service for the whole mesh, or forgets one that nobody needs any more')
    .addHelpText('after', examples('legate service set db port=5432', 'legate service forget db'));

  const setting = service
    .command('set')
    .description('sets what holds for a service in the whole mesh; running links follow')
    .argument('<name>', 'a service; one that does not exist yet is made, and needs a port')
    .argument('<settings...>', 'key=value, as in `services:` of the configuration; key=default takes one back')
    .addHelpText('after', () => `\n${settingsHelp(session.terminal.proseWidth)}`)
    .addHelpText(
      'after',
      examples(
        'legate service set db port=5432 prefer=any park=5s',
        'legate service set web timeout=5s max_body=10MiB retries=default',
        'legate service set web routes=@routes.yaml',
      ),
    );
  register<GlobalOptions>(setting, async (options, name = '', ...words) => {
    const { terminal } = session;
    const json = settingsOf(words.filter((word) => word !== undefined));
    const document = await withClient(session, options, (client) =>
      client.json<ServiceDocument>(servicePath(name), { method: 'PUT', json }),
    );
    if (options.json) printJson(terminal, document);
    else {
      terminal.lines([done(session, setText(document, Object.keys(json)))]);
      tellNotes(session, { notes: notesOf(document, Object.keys(json)) });
    }
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
function settingsOf(words: readonly string[]): Readonly<Record<string, unknown>> {
  const values = new Map<string, unknown>();
  for (const word of words) {
    const equals = word.indexOf('=');
    const key = word.slice(0, equals);
    if (equals < 1 || equals === word.length - 1) {
      throw new LegateError('E_USAGE', `"${printable(word)}" is not key=value`, { hint: 'such as port=5432' });
    }
    if (values.has(key)) throw new LegateError('E_USAGE', `${printable(key)} is given twice`);
    const text = word.slice(equals + 1);
    if (text === 'default') values.set(key, null);
    else values.set(key, writtenAsYaml.has(key) ? structureOf(key, text) : text);
  }
  const result = parseSettingsValue(Object.fromEntries(values));
  if ('faults' in result) throw new LegateError('E_USAGE', result.faults.map((fault) => fault.text).join('; '));
  const { settings, unset } = result;
  const chosen = serviceFields.filter((field) => settings[field] !== undefined);
  const given = chosen.map((field): [string, unknown] => {
    const value = settings[field];
    const isText = typeof value !== 'object' && field !== 'port';
    return [settingWord(field), isText ? settingText(field, settings) : value];
  });
  return Object.fromEntries([...given, ...unset.map((field): [string, unknown] => [settingWord(field), null])]);
}

/** The settings that are maps or lists: written as YAML (JSON is some), or in a file whose name follows `@`. */
const writtenAsYaml: ReadonlySet<string> = new Set([settingWord('split'), settingWord('routes')]);

function structureOf(key: string, text: string): unknown {
  const faults = new Faults();
  const name = text.startsWith('@') ? text.slice(1) : key;
  const source = text.startsWith('@') ? readSmallFile(name) : text;
  const tree = parseTree(source, name, (line, column, order) => ({ text: `${name}:${line}:${column}`, order }), faults);
  if (tree !== undefined && faults.count === 0) return plainValue(tree);
  throw new LegateError(
    'E_USAGE',
    faults
      .list()
      .map((fault) => fault.text)
      .join('; '),
  );
}

function readSmallFile(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new LegateError('E_USAGE', `${printable(path)} cannot be read: ${describeError(error)}`);
  }
}

export function servicePath(name: string): string {
  const fault = nameFault(name);
  if (fault === undefined) return `/api/services/${name}`;
  throw new LegateError('E_USAGE', `the service's name "${printable(name)}" ${fault}`, {
    hint: 'legate services lists the names',
  });
}

export function done({ terminal: { style } }: Session, text: string): string {
  return ` ${style.paint(style.good, 'green')} ${text}`;
}

/** `given`: the words just set, which are told in any case. */
function setText(document: ServiceDocument, given: readonly string[]): string {
  const { name, port, protocol, balance, vip, ...settings } = clean(document);
  const words = [`port ${port}/${protocol}`, balance];
  const isSplit = Object.keys(settings.split ?? {}).length > 0;
  for (const field of furtherFields) {
    const value = settings[field];
    if (value === undefined || isUsual.get(field) === value) continue;
    const isUnused = !isSplit && sameSetting(ofNoSplit.get(field), value);
    if (isUnused && !given.includes(settingWord(field))) continue;
    if (field === 'routes') words.push(`${settings.routes?.length} routes`);
    else if (field === 'split') words.push(`split ${splitText(settings.split ?? {})}`);
    else words.push(`${furtherKinds[field].word} ${furtherText(field, value)}`);
  }
  if (vip !== null) words.push(`at ${vip}`);
  return `${name} is set: ${words.join(', ')}`;
}

/** What of the words just set has no effect, or another one than it seems to. */
function notesOf({ name, protocol, routes }: ServiceDocument, words: readonly string[]): readonly string[] {
  const idle = idleSettings(name, protocol, words);
  if (idle !== undefined) return [idle];
  if (!words.includes(settingWord('routes'))) return [];
  return routesAdvice(routes ?? []).map(({ path, message }) => `routes${path}: ${message}`);
}

/** What the API says also where nobody chose it. */
const isUsual = new Map<string, unknown>(
  (['prefer', 'parkMs', 'proxyProtocol'] as const).map((field) => [field, furtherDefault(field)]),
);

/** What a service that is not split may have kept from when it was. */
const ofNoSplit = new Map<string, unknown>([
  ['split', {}],
  ['sticky', furtherDefault('sticky')],
  ['splitGuard', furtherDefault('splitGuard')],
]);

function splitText(weights: Weights): string {
  const parts = Object.entries(weights).map(([tag, weight]) => `${tag}=${weight}`);
  return parts.length === 0 ? 'none' : parts.join(' ');
}

function forgottenText(document: ForgottenDocument): string {
  const { forgotten, vips } = clean(document);
  const freed = vips.length === 0 ? '' : `; ${vips.join(', ')} may go to another service`;
  return `${forgotten} is forgotten${freed}`;
}
