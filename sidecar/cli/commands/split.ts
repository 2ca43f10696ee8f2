import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import { parseSettingsValue } from '../../../src/config/settings-value.ts';
import { settingWord } from '../../../src/model/service.ts';
import { sameSetting } from '../../../src/model/service-settings.ts';
import type { ServiceDocument, SplitDocument } from '../../admin/documents.ts';
import { splitCommand } from '../../splits/words.ts';
import type { AdminClient } from '../admin-client.ts';
import { exitStatus } from '../failure.ts';
import {
  type CommandTools,
  examples,
  type GlobalOptions,
  renderDocument,
  type Session,
  tellNotes,
  withClient,
} from '../session.ts';
import { guardText, sharesText, splitLines, splitNotes, stickyText } from '../views/split.ts';
import { watch } from '../watch.ts';
import { clean, safeJson } from '../words.ts';
import { done, servicePath } from './service.ts';

interface SplitOptions extends GlobalOptions {
  readonly back?: boolean;
  readonly off?: boolean;
  readonly sticky?: string;
  readonly guard?: string;
  readonly watch?: boolean;
}

/** Rates are taken so often. */
const watchEveryMs = 2000;

/** Divides a service's requests by tag, live, and shows how that goes. */
export function addSplitCommand({ program, session, register }: CommandTools): void {
  const command = program
    .command('split')
    .description("divides a service's requests among instances by tag, live, and shows how that goes")
    .argument('<service>', 'of protocol http, http2 or grpc')
    .argument('[weights...]', 'tag=weight, all of them: a tag that is not named gets nothing')
    .option('--back', 'sets the split before this one again')
    .option('--off', 'divides no more: all instances get requests')
    .option('--sticky <by>', 'keeps clients on their side: cookie, cookie:NAME, header:NAME or off')
    .option(
      '--guard <factor>',
      'takes a side back to 0 that has so many times the error rate of the heaviest, from 1 (any rate that is clearly higher) to 100; or off',
    )
    .option('-w, --watch', 'keeps a table of what the sides carry current until Ctrl-C')
    .addHelpText(
      'after',
      examples('legate split web stable=95 canary=5 --guard 3', 'legate split web --watch', 'legate split web --back'),
    );
  register<SplitOptions>(command, async (options, service = '', ...words) => {
    const { terminal } = session;
    const path = servicePath(service).replace('/services/', '/splits/');
    const change = changeOf(
      options,
      words.filter((word) => word !== undefined),
    );
    const lines = async (client: AdminClient, traffic: boolean, signal?: AbortSignal): Promise<string[]> => {
      const document = await client.json<SplitDocument>(path, signal === undefined ? {} : { signal });
      if (options.json) return [safeJson(document, signal === undefined ? 2 : 0)];
      return renderDocument(document, (each, view) => splitLines(each, view, traffic), terminal.view());
    };
    await withClient(session, options, async (client) => {
      if (change !== undefined) await set(session, client, { service, path, change, json: options.json === true });
      if (options.watch) {
        const signal = session.interruption();
        await watch(client, terminal, () => lines(client, true, signal), signal, watchEveryMs);
      } else if (change === undefined || options.json) terminal.lines(await lines(client, false));
    });
    return exitStatus.done;
  });
}

/** What is to be set, as the API takes it; `back` instead of weights, which only the sidecar knows. */
interface Change {
  readonly back: boolean;
  readonly settings: Readonly<Record<string, unknown>>;
}

function changeOf({ back, off, sticky, guard }: SplitOptions, words: readonly string[]): Change | undefined {
  const ways = [words.length > 0 && 'weights', back && '--back', off && '--off'].filter(
    (way) => typeof way === 'string',
  );
  if (ways.length > 1) throw new LegateError('E_USAGE', `${ways.join(' and ')} exclude each other`);
  const settings = {
    ...(words.length > 0 && { [settingWord('split')]: weightsOf(words) }),
    ...(off && { [settingWord('split')]: {} }),
    ...(sticky !== undefined && { [settingWord('sticky')]: sticky }),
    ...(guard !== undefined && { [settingWord('splitGuard')]: guard === 'off' ? 0 : guard }),
  };
  if (Object.keys(settings).length === 0) return back ? { back, settings } : undefined;
  const result = parseSettingsValue(settings);
  if ('faults' in result) throw new LegateError('E_USAGE', result.faults.map(({ text }) => text).join('; '));
  return { back: back === true, settings };
}

function weightsOf(words: readonly string[]): Readonly<Record<string, string>> {
  const weights = new Map<string, string>();
  for (const word of words) {
    const equals = word.lastIndexOf('=');
    const tag = word.slice(0, equals);
    if (equals < 1 || equals === word.length - 1) {
      throw new LegateError('E_USAGE', `"${printable(word)}" is not tag=weight`, {
        hint: 'such as stable=95 canary=5',
      });
    }
    if (weights.has(tag)) throw new LegateError('E_USAGE', `${printable(tag)} is given twice`);
    weights.set(tag, word.slice(equals + 1));
  }
  return Object.fromEntries(weights);
}

interface Setting {
  readonly service: string;
  readonly path: string;
  readonly change: Change;
  readonly json: boolean;
}

async function set(session: Session, client: AdminClient, { service, path, change, json }: Setting): Promise<void> {
  const before = await client.json<SplitDocument>(path);
  const settings = change.back ? { ...change.settings, [settingWord('split')]: formerOf(before) } : change.settings;
  await client.json<ServiceDocument>(servicePath(service), { method: 'PUT', json: settings });
  const after = await client.json<SplitDocument>(path);
  tellNotes(session, { notes: after.split === null ? [] : splitNotes(after) });
  if (!json) session.terminal.lines(doneLines(session, clean(before), clean(after)));
}

/** The split to go back to. Where a guard has gone back already, the one before is the one that failed. */
function formerOf({ service, former, split, takenBack }: SplitDocument): NonNullable<SplitDocument['split']> {
  if (takenBack !== null) {
    const { tag, weight } = clean(takenBack);
    throw new LegateError('E_CONFLICT', `the guard has taken ${tag} back already; before that it failed`, {
      hint: `when it is mended, try again: ${splitCommand(service, clean({ ...split, [tag]: weight }))}`,
    });
  }
  if (former !== null) return former;
  throw new LegateError('E_NOT_FOUND', `${service} had no other split before`, {
    hint: `legate split ${service} shows the present one, --off ends it`,
  });
}

function doneLines(session: Session, before: SplitDocument, after: SplitDocument): string[] {
  const { service, split, former, sticky, guard } = after;
  const now = split ?? {};
  const was = before.split ?? {};
  const isSame = sameSetting(now, was);
  const what = split === null ? 'is not split' : `is split: ${sharesText(now)}`;
  const lines = [done(session, `${service} ${what}${isSame ? '; as before' : `; before: ${sharesText(was)}`}`)];
  const others = [
    ...(sticky === before.sticky ? [] : [stickyText(sticky)]),
    ...(guard === before.guard ? [] : [guardText(guard)]),
  ];
  for (const text of others) lines.push(`   ${text}`);
  if (!isSame && former !== null) lines.push(`   back: legate split ${service} --back`);
  return lines;
}
