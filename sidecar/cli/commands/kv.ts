import { setTimeout as sleep } from 'node:timers/promises';
import { Backoff } from '../../../src/base/backoff.ts';
import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import type { KvChangeDocument, KvListDocument, KvResetDocument } from '../../admin/documents.ts';
import type { AdminClient, RawAnswer } from '../admin-client.ts';
import { exitStatus } from '../failure.ts';
import {
  type CommandTools,
  examples,
  type GlobalOptions,
  printJson,
  renderDocument,
  type Session,
  withClient,
} from '../session.ts';
import { renderTable } from '../table.ts';
import type { View } from '../terminal.ts';
import { bytes, safeJson } from '../words.ts';
import { readInputBytes } from './input.ts';

const firstRetryMs = 200;
const maxRetryMs = 5000;
/** Bytes of a value that lists on a terminal and `watch` show of it. */
const previewBytes = 400;

interface WriteOptions extends GlobalOptions {
  readonly cas?: string;
  readonly leaseTtl?: string;
}

interface WatchOptions extends GlobalOptions {
  readonly prefix?: boolean;
}

/** The users' own keys in the store. */
export function addKvCommands({ program, session, register }: CommandTools): void {
  const kv = program
    .command('kv')
    .description("reads and writes the users' own keys in the store")
    .addHelpText('after', examples('legate kv put app/colour blue', 'legate kv get app/colour', 'legate kv list app/'));

  const get = kv.command('get').description("prints a key's value, byte for byte").argument('<key>');
  get.addHelpText(
    'after',
    examples('legate kv get app/colour', 'legate kv get app/blob > blob', 'legate kv get app/colour --json'),
  );
  register<GlobalOptions>(get, async (options, key = '') => {
    const answer = await withClient(session, options, (client) => client.raw(keyPath(key)));
    if (options.json) printJson(session.terminal, entryOf(key, answer));
    else writeValue(session, key, answer.body);
    return exitStatus.done;
  });

  const put = kv
    .command('put')
    .description('writes a key')
    .argument('<key>')
    .argument('<value>', 'the value; - reads standard input')
    .option('--cas <revision>', 'only if the key is still at this revision; 0: only if it is absent')
    .option('--lease-ttl <duration>', 'it vanishes so long after it was last written: 1s to 7d')
    .addHelpText(
      'after',
      examples(
        'legate kv put app/colour blue',
        'legate kv put app/colour green --cas 42',
        'legate kv put jobs/leader web-1 --cas 0 --lease-ttl 30s',
      ),
    );
  register<WriteOptions>(put, async (options, key = '', value = '') => {
    const body = value === '-' ? await readInputBytes(session.stdin) : Buffer.from(value);
    const path = keyPath(key) + writeQuery(options);
    const call = { method: 'PUT', body, contentType: 'application/octet-stream' } as const;
    const answer = await withClient(session, options, (client) => client.raw(path, call));
    reportWrite(session, options, key, answer, 'is written');
    return exitStatus.done;
  });

  const remove = kv.command('delete').description('deletes a key').argument('<key>');
  remove.option('--cas <revision>', 'only if the key is still at this revision');
  remove.addHelpText('after', examples('legate kv delete app/colour', 'legate kv delete app/colour --cas 42'));
  register<WriteOptions>(remove, async (options, key = '') => {
    const path = keyPath(key) + writeQuery(options);
    const answer = await withClient(session, options, (client) => client.raw(path, { method: 'DELETE' }));
    reportWrite(session, options, key, answer, 'is deleted');
    return exitStatus.done;
  });

  const list = kv.command('list').description('lists the keys that begin with a prefix').argument('[prefix]', '', '');
  list.addHelpText(
    'after',
    examples('legate kv list', 'legate kv list app/', "legate kv list --json | jq -r '.entries[].key'"),
  );
  register<GlobalOptions>(list, async (options, prefix = '') => {
    const { terminal } = session;
    const path = `${prefix === '' ? '/api/kv/' : keyPath(prefix)}?recurse=1`;
    const document = await withClient(session, options, (client) => client.json<KvListDocument>(path));
    if (options.json) printJson(terminal, document);
    else terminal.lines(renderDocument(document, listLines, terminal.view()));
    return exitStatus.done;
  });

  const watch = kv.command('watch').description('prints a key now and whenever it changes, until Ctrl-C');
  watch.argument('<key>').option('--prefix', 'all keys that begin so');
  watch.addHelpText(
    'after',
    examples('legate kv watch app/colour', 'legate kv watch app/ --prefix', 'legate kv watch app/colour --json'),
  );
  register<WatchOptions>(watch, async (options, key = '') => {
    await withClient(session, options, (client) => watchKeys(session, options, client, key));
    return exitStatus.done;
  });
}

function keyPath(key: string): string {
  const parts = key.split('/');
  if (key === '' || parts.some((part) => part === '.' || part === '..')) {
    throw new LegateError('E_USAGE', `"${printable(key)}" is not a key: it is empty, or a part of it is "." or ".."`);
  }
  // A lone surrogate has no encoding.
  return `/api/kv/${parts.map((part) => encodeURIComponent(Buffer.from(part).toString())).join('/')}`;
}

function writeQuery({ cas, leaseTtl }: WriteOptions): string {
  const query = { ...(cas !== undefined && { cas }), ...(leaseTtl !== undefined && { lease_ttl: leaseTtl }) };
  return Object.keys(query).length === 0 ? '' : `?${new URLSearchParams(query).toString()}`;
}

function entryOf(key: string, { body, revision }: RawAnswer): object {
  return { key, value: body.toString('base64'), revision };
}

/** Raw bytes go to a pipe or file only: on a terminal they could be commands to it. */
function writeValue({ terminal }: Session, key: string, value: Buffer): void {
  if (!terminal.interactive) {
    terminal.write(value);
    return;
  }
  const text = textOf(value);
  if (text === undefined) {
    throw new LegateError('E_INVALID', `the value of "${printable(key)}" is ${bytes(value.length)} that are no text`, {
      hint: 'send it to a file or another command: legate kv get KEY > FILE',
    });
  }
  terminal.lines(text.replace(/\n$/, '').split('\n').map(printable));
}

/** Undefined when it is no text. Of a value that is `cut` off the last character may be incomplete. */
function textOf(value: Buffer, cut = false): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(value, { stream: cut });
  } catch {
    return undefined;
  }
}

function reportWrite(
  { terminal }: Session,
  options: GlobalOptions,
  key: string,
  answer: RawAnswer,
  what: string,
): void {
  let revision = answer.revision;
  if (revision === '') {
    try {
      revision = String((JSON.parse(answer.body.toString('utf8')) as { revision?: unknown } | null)?.revision ?? '');
    } catch {
      revision = '';
    }
  }
  if (options.json) printJson(terminal, { key, revision });
  else {
    const at = revision === '' ? '' : `, revision ${printable(revision)}`;
    terminal.lines([` ${terminal.style.paint(terminal.style.good, 'green')} ${printable(key)} ${what}${at}`]);
  }
}

function listLines({ entries }: KvListDocument, view: View): string[] {
  if (entries.length === 0) return [' no keys'];
  const columns = [
    { title: 'KEY', cut: 'middle', least: 20 },
    { title: 'REVISION', align: 'right' },
    { title: 'SIZE', align: 'right' },
    { title: 'VALUE', cut: 'end', least: 20 },
  ] as const;
  const rows = entries.map(({ key, value, revision }) => {
    const content = Buffer.from(value, 'base64');
    const text = Number.isFinite(view.width) ? textOf(content.subarray(0, previewBytes), true) : textOf(content);
    return { cells: [key, revision, bytes(content.length), text === undefined ? '(no text)' : printable(text)] };
  });
  return renderTable(columns, rows, view);
}

/** Follows the stream of changes; when it breaks off after it had begun, it is begun again. */
async function watchKeys(session: Session, options: WatchOptions, client: AdminClient, key: string): Promise<void> {
  const signal = session.interruption();
  const backoff = new Backoff(firstRetryMs, maxRetryMs);
  const shown = new Map<string, string>();
  const show = (change: KvChangeDocument): void => {
    const revision = 'revision' in change ? change.revision : 'absent';
    if (shown.get(change.key) === revision) return;
    shown.set(change.key, revision);
    session.terminal.lines([options.json ? safeJson(change, 0) : changeLine(change)]);
  };
  let begun = false;
  while (!signal.aborted) {
    try {
      const path = `${keyPath(key)}?watch=1${options.prefix ? '&recurse=1' : ''}`;
      for await (const event of client.events<KvChangeDocument | KvResetDocument>(path, signal)) {
        begun = true;
        backoff.reset();
        if (!('keys' in event)) show(event);
        else {
          const present = new Set(event.keys);
          for (const name of shown.keys()) if (!present.has(name)) show({ key: name, deleted: true });
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!begun) throw error;
    }
    await sleep(backoff.nextMs(), undefined, { signal }).catch(() => undefined);
  }
}

function changeLine(change: KvChangeDocument): string {
  if (!('revision' in change)) return ` ${printable(change.key)}  is absent`;
  const value = Buffer.from(change.value, 'base64');
  const text = textOf(value.subarray(0, previewBytes), true);
  const shown = text === undefined ? '(no text)' : printable(text);
  return ` ${printable(change.key)}  revision ${printable(change.revision)}, ${bytes(value.length)}: ${shown}`;
}
