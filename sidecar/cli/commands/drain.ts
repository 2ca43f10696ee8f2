import { setTimeout as sleep } from 'node:timers/promises';
import { parseDuration } from '../../../src/base/duration.ts';
import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import type { DrainDocument, DrainResultDocument, InstanceDocument } from '../../admin/documents.ts';
import type { AdminClient } from '../admin-client.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session, withClient } from '../session.ts';
import { clean, plural, span } from '../words.ts';

const pollMs = 250;
const maxHostsNamed = 5;
/** Before this there is no progress to show. */
const progressAfterMs = 1000;

interface DrainOptions extends GlobalOptions {
  readonly host?: boolean;
  readonly timeout: string;
}

/** `drain` and `undrain`. */
export function addDrainCommands({ program, session, register }: CommandTools): void {
  const draining = program
    .command('drain')
    .description('lets no new connections in, waits for the running ones, and reports when the last has ended')
    .argument('[target]', 'an instance (HOST/NAME) or a service: its instances on this host')
    .option('--host', 'all instances of this host, also those that come later')
    .option('--timeout <duration>', 'how long to wait for running connections', '10m')
    .addHelpText(
      'after',
      examples(
        'legate drain web-1/db-5432',
        'legate drain db --timeout 30s',
        'legate drain --host && systemctl stop docker',
      ),
    );
  register<DrainOptions>(draining, (options, target) => drain(session, options, target));

  const undraining = program
    .command('undrain')
    .description('lets new connections in again')
    .argument('[target]', 'an instance (HOST/NAME) or a service: its instances on this host')
    .option('--host', 'all instances of this host')
    .addHelpText('after', examples('legate undrain web-1/db-5432', 'legate undrain --host'));
  register<DrainOptions>(undraining, async (options, target) => {
    const { terminal } = session;
    const json = { ...targetOf(options, target), undrain: true };
    const result = await withClient(session, options, (client) => order(client, json));
    if (options.json) printJson(terminal, result);
    else terminal.lines(listed(session, result, 'takes new connections again', 'nothing to undrain on this host'));
    return exitStatus.done;
  });
}

function targetOf(options: DrainOptions, target: string | undefined): DrainDocument {
  if ((target === undefined) === (options.host !== true)) {
    throw new LegateError('E_USAGE', 'name an instance or a service, or give --host, and not both', {
      hint: 'legate instances shows the ids',
    });
  }
  if (target === undefined) return { host: true };
  return target.includes('/') ? { id: target } : { service: target };
}

/** E_NOT_FOUND for a service without instances on the host that is asked, with where they are. */
async function order(client: AdminClient, json: DrainDocument): Promise<DrainResultDocument> {
  const result = await client.json<DrainResultDocument>('/api/drain', { method: 'POST', json });
  const { service } = json;
  if (service === undefined || result.instances.length > 0) return result;
  const path = `/api/instances?service=${encodeURIComponent(service)}`;
  const { instances } = clean(await client.json<{ instances: readonly InstanceDocument[] }>(path));
  const hosts = [...new Set(instances.map(({ host }) => host))].sort();
  const named = hosts.slice(0, maxHostsNamed).join(', ') + (hosts.length > maxHostsNamed ? ', …' : '');
  const where = hosts.length === 0 ? 'it has none anywhere' : `${plural(instances.length, 'instance')} on ${named}`;
  throw new LegateError('E_NOT_FOUND', `no instance of ${printable(service)} is on this host: ${where}`, {
    hint: hosts.length === 0 ? 'legate services lists what there is' : 'run it there',
  });
}

function listed(session: Session, result: DrainResultDocument, what: string, none: string): string[] {
  const { style } = session.terminal;
  if (result.instances.length === 0) return [` ${style.note} ${none}`];
  return result.instances.map((id) => ` ${style.paint(style.good, 'green')} ${printable(id)} ${what}`);
}

async function drain(session: Session, options: DrainOptions, target: string | undefined): Promise<number> {
  const { terminal } = session;
  const body = targetOf(options, target);
  const timeoutMs = parseDuration(options.timeout);
  if (timeoutMs === undefined) {
    throw new LegateError('E_USAGE', `--timeout "${printable(options.timeout)}" is not a duration (such as 30s, 5m)`);
  }
  return withClient(session, options, async (client) => {
    const begunMs = performance.now();
    const first = await order(client, body);
    if (!options.json) {
      terminal.lines(listed(session, first, 'takes no new connections', 'nothing to drain on this host'));
    }
    const end = await waitForConnections(session, client, body, first, begunMs + timeoutMs);
    terminal.progress('');
    if (options.json) printJson(terminal, end.result);
    else if (first.instances.length > 0) terminal.lines([` ${endText(session, end, performance.now() - begunMs)}`]);
    return end.reason === 'ended' ? exitStatus.done : exitStatus.failed;
  });
}

interface DrainEnd {
  readonly result: DrainResultDocument;
  readonly reason: 'ended' | 'timeout' | 'undrained' | 'interrupted';
}

function endText(session: Session, { result, reason }: DrainEnd, tookMs: number): string {
  const { style } = session.terminal;
  const left = `${plural(result.connections, 'connection')} still ${result.connections === 1 ? 'runs' : 'run'} after ${span(tookMs)}`;
  const bad = style.paint(style.bad, 'red');
  switch (reason) {
    case 'ended':
      return `${style.paint(style.good, 'green')} the last connection has ended, after ${span(tookMs)}`;
    case 'timeout':
      return `${bad} ${left}; the draining goes on`;
    case 'undrained':
      return `${bad} somebody ended the draining; ${left}`;
    case 'interrupted':
      return `${bad} not waited for: ${left}; the draining goes on`;
  }
}

async function waitForConnections(
  session: Session,
  client: AdminClient,
  body: DrainDocument,
  first: DrainResultDocument,
  untilMs: number,
): Promise<DrainEnd> {
  let result = first;
  if (result.connections === 0) return { result, reason: 'ended' };
  const signal = session.interruption();
  const begunMs = performance.now();
  while (result.connections > 0) {
    const nowMs = performance.now();
    if (nowMs >= untilMs) return { result, reason: 'timeout' };
    if (nowMs - begunMs >= progressAfterMs) {
      session.terminal.progress(` ${plural(result.connections, 'connection')} left after ${span(nowMs - begunMs)}`);
    }
    await sleep(Math.min(pollMs, untilMs - nowMs), undefined, { signal }).catch(() => undefined);
    if (signal.aborted) return { result, reason: 'interrupted' };
    // Asking again with the same order must not take back an undrain that came in between.
    if (await undrained(client, first.instances)) return { result, reason: 'undrained' };
    result = await client.json<DrainResultDocument>('/api/drain', { method: 'POST', json: body });
  }
  return { result, reason: 'ended' };
}

async function undrained(client: AdminClient, ids: readonly string[]): Promise<boolean> {
  const { instances } = await client.json<{ instances: readonly InstanceDocument[] }>('/api/instances');
  const known = new Set(ids);
  return clean(instances).some((instance) => known.has(instance.id) && !instance.draining);
}
