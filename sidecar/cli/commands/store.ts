import { open } from 'node:fs/promises';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describeError, isLegateError, LegateError, systemCode } from '../../../src/base/errors.ts';
import { writeFileAtomically } from '../../../src/base/files.ts';
import { printable } from '../../../src/base/text.ts';
import type { StoreCopyDocument, StoreCopyRequest, StoreRestoreDocument } from '../../admin/documents.ts';
import type { AdminClient } from '../admin-client.ts';
import { AdminError, exitStatus, isErrorCode } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session, withClient } from '../session.ts';
import { bytes, clean, grouped, plural, span } from '../words.ts';
import { readInputBytes } from './input.ts';

const pollMs = 200;
/** Before this there is no progress to show. */
const progressAfterMs = 1000;
/** As much as a sidecar takes. */
const maxBackupBytes = 256 * 1024 * 1024;
const maxHeaderBytes = 4096;

interface CopyCommandOptions extends GlobalOptions {
  readonly to?: string;
  readonly prefix?: string;
  readonly tlsCa?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly credentialsFile?: string;
  readonly dryRun?: boolean;
}

interface RestoreCommandOptions extends GlobalOptions {
  readonly overwrite?: boolean;
  readonly foreign?: boolean;
}

/** `store copy`, `store backup` and `store restore`. */
export function addStoreCommands({ program, session, register }: CommandTools): void {
  const store = program
    .command('store')
    .description('moves the mesh to another store, saves it and restores it')
    .addHelpText('after', examples('legate store copy --to http://10.77.0.1:2379', 'legate store backup mesh.backup'));

  const copy = store
    .command('copy')
    .description('moves the running mesh to another store; names and links go on')
    .option('--to <url>', 'https://HOST:PORT[,…] for etcd, consul+http://HOST:PORT, embedded[://ADDRESS:PORT]')
    .option('--prefix <prefix>', 'in front of all keys there (default: /legate)')
    .option('--tls-ca <file>', 'authority of its servers')
    .option('--tls-cert <file>', 'client certificate')
    .option('--tls-key <file>', 'private key of that certificate')
    .option('--credentials-file <file>', '`user:password` for etcd, or the token for Consul')
    .option('--dry-run', 'only looks whether it could be done, and says how much it would be')
    .addHelpText(
      'after',
      examples(
        'legate store copy --to http://127.0.0.1:2379 --dry-run',
        'legate store copy --to https://10.77.0.1:2379,https://10.77.0.2:2379 --tls-ca ca.pem --credentials-file etcd.pass',
        'legate store copy --to consul+http://127.0.0.1:8500',
        'legate store copy --to embedded://10.77.0.1:7712',
      ),
    );
  register<CopyCommandOptions>(copy, (options) => copyStore(session, options));

  const backup = store
    .command('backup')
    .description('saves all that lasts of the mesh, from one moment, settings and your own keys included')
    .argument('<file>', 'written whole or not at all, readable by its owner; - is standard output');
  backup.addHelpText(
    'after',
    examples('legate store backup mesh.backup', 'legate store backup - | age -r … > mesh.age'),
  );
  register<GlobalOptions>(backup, (options, file = '') => saveBackup(session, options, file));

  const restore = store
    .command('restore')
    .description('writes what a backup has and the store has not')
    .argument('<file>', 'what legate store backup wrote; - reads standard input')
    .option('--overwrite', 'also what the store has otherwise; records of living hosts stay')
    .option('--foreign', 'takes the backup of another mesh');
  restore.addHelpText(
    'after',
    examples('legate store restore mesh.backup', 'legate store restore mesh.backup --overwrite'),
  );
  register<RestoreCommandOptions>(restore, (options, file = '') => restoreBackup(session, options, file));
}

async function copyStore(session: Session, options: CopyCommandOptions): Promise<number> {
  const { terminal } = session;
  if (options.to === undefined) {
    throw new LegateError('E_USAGE', 'say where to with --to URL', { hint: 'legate store copy -h shows examples' });
  }
  const request = requestOf(options, options.to);
  return await withClient(session, options, async (client) => {
    const end = await follow(session, client, request);
    terminal.progress('');
    if (end.error !== null) {
      const { code, message, hint } = end.error;
      throw new AdminError(isErrorCode(code) ? code : 'E_INVALID', message, 0, hint === '' ? {} : { hint });
    }
    if (options.json) printJson(terminal, end);
    else terminal.lines(copyLines(session, clean(end)));
    return exitStatus.done;
  });
}

/** The files are the sidecar's to read, whose working directory is another one. */
function requestOf(options: CopyCommandOptions, to: string): StoreCopyRequest {
  const { prefix, tlsCa, tlsCert, tlsKey, credentialsFile, dryRun } = options;
  return {
    to,
    ...(prefix !== undefined && { prefix }),
    ...(tlsCa !== undefined && { ca: resolve(tlsCa) }),
    ...(tlsCert !== undefined && { cert: resolve(tlsCert) }),
    ...(tlsKey !== undefined && { key: resolve(tlsKey) }),
    ...(credentialsFile !== undefined && { credentialsFile: resolve(credentialsFile) }),
    ...(dryRun === true && { dryRun }),
  };
}

/** Begins the copy and looks how it goes until it has ended; Ctrl-C calls it off as long as that can be. */
async function follow(session: Session, client: AdminClient, request: StoreCopyRequest): Promise<StoreCopyDocument> {
  const path = '/api/store/copy';
  const signal = session.interruption();
  const begunMs = performance.now();
  let calledOff = false;
  let document = await client.json<StoreCopyDocument>(path, { method: 'POST', json: request });
  while (document.state === 'running') {
    await sleep(pollMs, undefined, calledOff ? {} : { signal }).catch(() => undefined);
    if (signal.aborted && !calledOff) {
      calledOff = true;
      document = await client.json<StoreCopyDocument>(path, { method: 'DELETE' });
      continue;
    }
    document = await client.json<StoreCopyDocument>(path);
    if (performance.now() - begunMs >= progressAfterMs) session.terminal.progress(` ${progressText(clean(document))}`);
  }
  return document;
}

function progressText({ phase, keys, ofKeys, bytes: count, waiting }: StoreCopyDocument): string {
  switch (phase) {
    case 'following':
      return `waits for ${plural(waiting.length, 'host')} to follow`;
    case 'copying':
    case 'comparing':
      return `${phase}: ${grouped(String(keys))} of ${plural(ofKeys, 'key')}, ${bytes(count)}`;
    default:
      return `${phase ?? 'ends'}`;
  }
}

function copyLines({ terminal }: Session, document: StoreCopyDocument): string[] {
  const { style } = terminal;
  const { keys, bytes: count, leased, refusedMs, moved, waiting, from, to, dryRun } = document;
  const good = style.paint(style.good, 'green');
  const much = `${plural(keys, 'key')}, ${bytes(count)}`;
  if (dryRun) return [` ${good} ${much} would move from ${from ?? '?'} to ${to ?? '?'}; nothing was written`];
  const lines = [
    ` ${good} the mesh has moved from ${from ?? '?'} to ${to ?? '?'}: ${much}`,
    ` ${style.note} writes of keys and settings were refused for ${span(refusedMs)}`,
  ];
  if (leased > 0) {
    lines.push(` ${style.note} ${plural(leased, 'key')} with a time to live began it anew`);
  }
  if (moved.length > 0) lines.push(` ${good} uses it now: ${moved.join(', ')}`);
  if (waiting.length > 0) {
    lines.push(` ${style.paint(style.bad, 'red')} does not use it yet: ${waiting.join(', ')}`);
    lines.push(' there, legate status says what to write into the configuration file');
  }
  lines.push(' the configuration files still say where the mesh was: legate status of each host shows what to write');
  return lines;
}

async function saveBackup(session: Session, options: GlobalOptions, file: string): Promise<number> {
  const { terminal } = session;
  return await withClient(session, options, async (client) => {
    const begunMs = performance.now();
    let head = Buffer.alloc(0);
    let length = 0;
    const parts = async function* (): AsyncGenerator<Uint8Array> {
      for await (const part of client.body('/api/store/backup', session.interruption())) {
        if (head.length < maxHeaderBytes) head = Buffer.concat([head, part]).subarray(0, maxHeaderBytes);
        length += part.byteLength;
        yield part;
        if (performance.now() - begunMs >= progressAfterMs) terminal.progress(` ${bytes(length)}`);
      }
    };
    if (file === '-') {
      for await (const part of parts()) terminal.write(part);
      return exitStatus.done;
    }
    await writeFileAtomically(file, parts()).catch((error: unknown) => {
      if (isLegateError(error) || session.interruption().aborted) throw error;
      throw cannotSave(file, error);
    });
    terminal.progress('');
    const header = headerOf(head);
    if (options.json) printJson(terminal, { file, bytes: length, ...header });
    else {
      const { good } = terminal.style;
      const left = Number(header.leasedLeftOut ?? 0);
      const more = left === 0 ? '' : `; ${plural(left, 'key')} with a time to live left out`;
      const text = `${plural(Number(header.count), 'key')}, ${bytes(length)}, written to ${printable(file)}${more}`;
      terminal.lines([` ${terminal.style.paint(good, 'green')} ${text}`]);
    }
    return exitStatus.done;
  });
}

function headerOf(head: Buffer): Record<string, unknown> {
  try {
    const document: unknown = JSON.parse(head.toString('utf8').split('\n', 1)[0] ?? '');
    return clean(document as Record<string, unknown>);
  } catch {
    return {};
  }
}

function cannotSave(file: string, error: unknown): LegateError {
  const full = ['ENOSPC', 'EDQUOT'].includes(systemCode(error) ?? '');
  const hint = full
    ? 'free some space there, or choose another place'
    : 'choose a file in a folder that you may write to';
  const message = `${printable(file)} cannot be written: ${full ? 'no space left' : describeError(error)}`;
  return new LegateError('E_PERMISSION', message, { hint: `${hint}; nothing is left of it` });
}

async function restoreBackup(session: Session, options: RestoreCommandOptions, file: string): Promise<number> {
  const { terminal } = session;
  const body = file === '-' ? await readInputBytes(session.stdin, maxBackupBytes) : await readBackup(file);
  const query = new URLSearchParams({
    ...(options.overwrite === true && { overwrite: '1' }),
    ...(options.foreign === true && { foreign: '1' }),
  });
  const path = `/api/store/restore?${query.toString()}`;
  const call = { method: 'POST', body, contentType: 'application/x-ndjson' } as const;
  const answer = await withClient(session, options, (client) => client.raw(path, call));
  const result = clean(JSON.parse(answer.body.toString('utf8')) as StoreRestoreDocument);
  if (options.json) printJson(terminal, result);
  else terminal.lines(restoreLines(session, result));
  return exitStatus.done;
}

async function readBackup(file: string): Promise<Buffer> {
  try {
    const handle = await open(file, 'r');
    try {
      const { size } = await handle.stat();
      if (size <= maxBackupBytes) return await handle.readFile();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw new LegateError('E_NOT_FOUND', `${printable(file)} cannot be read: ${describeError(error)}`, {
      hint: 'name a file that legate store backup wrote',
      cause: error,
    });
  }
  throw new LegateError('E_TOO_LARGE', `${printable(file)} is larger than ${maxBackupBytes} bytes`);
}

function restoreLines({ terminal }: Session, result: StoreRestoreDocument): string[] {
  const { style } = terminal;
  const { written, replaced, same, different, ofLivingHosts, named } = result;
  const good = style.paint(style.good, 'green');
  const lines = [` ${good} ${plural(written, 'key')} written, ${replaced} replaced, ${same} were the same`];
  if (ofLivingHosts > 0) {
    lines.push(` ${style.note} ${plural(ofLivingHosts, 'record')} of hosts that are alive were left to them`);
  }
  if (different > 0) {
    const more = different > named.length ? ` and ${different - named.length} more` : '';
    lines.push(` ${style.note} ${plural(different, 'key')} left as the store has them: ${named.join(', ')}${more}`);
    lines.push(' --overwrite replaces them');
  }
  return lines;
}
