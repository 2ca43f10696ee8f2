import type {
  GrantChangeDocument,
  IntentCheckDocument,
  LearnedDocument,
  OfferDocument,
  PolicyDocument,
} from '../../admin/policy-documents.ts';
import { renderTable, wrap } from '../table.ts';
import type { View } from '../terminal.ts';
import { grouped, plural, since } from '../words.ts';
import { compare } from './hosts.ts';

/** What an intent is decided by besides its names: those that name most come first, as they do when they are looked for. */
function rankOf({ consumer, service }: { readonly consumer: string; readonly service: string }): number {
  return (service === '*' ? 2 : 0) + (consumer === '*' ? 1 : 0);
}

/** All that the policy says, on one screen: the defaults, the intents in the order in which they win, grants, revocations. */
export function policyLines(policy: PolicyDocument, view: View): string[] {
  return [
    headText(policy, view),
    ...intentLines(policy, view),
    ...grantLines(policy, view),
    ...revokedLines(policy, view),
  ];
}

function headText(policy: PolicyDocument, view: View): string {
  const parts = [
    `default ${policy.default}`,
    policy.mode === 'learn' ? 'mode learn: nothing is refused, what would be is reported' : 'mode enforce',
    policy.fromLinks ? 'declared links are permission' : 'declared links are no permission',
    `set ${since(policy.setAt, view.nowMs)} ago`,
  ];
  const { authority, stored } = policy;
  if (!authority.self) parts.push(`changed on ${authority.name ?? `host ${authority.id}`}`);
  if (stored === false) parts.push('not in the store yet');
  return ` ${parts.join(view.style.separator)}`;
}

function intentLines({ intents }: PolicyDocument, view: View): string[] {
  if (intents.length === 0) return [' no intents: the default decides'];
  const sorted = [...intents].sort(
    (a, b) => rankOf(a) - rankOf(b) || compare(a.service, b.service) || compare(a.consumer, b.consumer),
  );
  const rows = sorted.map(({ consumer, service, action, setAt }) => ({
    cells: [
      consumer,
      service,
      { text: action, colour: action === 'allow' ? 'green' : 'red' } as const,
      `${since(setAt, view.nowMs)} ago`,
    ],
  }));
  const columns = [
    { title: 'CONSUMER', cut: 'middle', least: 8 },
    { title: 'SERVICE', cut: 'middle', least: 8 },
    { title: 'ACTION' },
    { title: 'SET' },
  ] as const;
  return renderTable(columns, rows, view);
}

function grantLines({ grants }: PolicyDocument, view: View): string[] {
  if (grants.length === 0) return [' every host may offer every service: legate host allow HOST SERVICE limits that'];
  const byHost = new Map<string, string[]>();
  for (const { host, hostId, service } of grants) {
    const name = host ?? hostId;
    byHost.set(name, [...(byHost.get(name) ?? []), service === '*' ? 'any service' : service]);
  }
  const texts = [...byHost]
    .sort(([a], [b]) => compare(a, b))
    .map(([host, list]) => `${host}: ${list.sort().join(', ')}`);
  return wrap(`may offer: ${texts.join('; ')}`, view.width - 1).map((line) => ` ${line}`);
}

function revokedLines({ revoked }: PolicyDocument, view: View): string[] {
  if (revoked.length === 0) return [];
  const texts = revoked.map(
    ({ host, hostId, revokedAt }) => `${host} (${hostId}, ${since(revokedAt, view.nowMs)} ago)`,
  );
  return wrap(`revoked: ${texts.join(', ')}`, view.width - 1).map((line) => ` ${line}`);
}

/** The verdict on one pair, and where it is no, the command that would make it yes. */
export function checkLines(check: IntentCheckDocument, view: View): string[] {
  const { consumer, service, allowed, message, intent } = check;
  const { style } = view;
  const set = intent === null ? '' : ` (set ${since(intent.setAt, view.nowMs)} ago)`;
  const symbol = style.paint(allowed ? style.good : style.bad, allowed ? 'green' : 'red');
  const lines = [` ${symbol} ${consumer} ${allowed ? 'may' : 'may not'} call ${service}: ${message}${set}`];
  if (!allowed && check.by !== 'locked') lines.push(` fix, if it is to: legate intent allow ${consumer} ${service}`);
  return lines;
}

/** What would be refused, each with the command that allows it, ready to be pasted. */
export function learnedLines({ mode, pairs }: LearnedDocument, view: View): string[] {
  if (pairs.length === 0) {
    const off = mode === 'learn' ? '' : '; the mode is enforce: legate intent mode learn has them collected';
    return [` nothing was learned that is not allowed${off}`];
  }
  const rows = pairs.map(({ consumer, service, count, last, hosts }) => ({
    cells: [
      `legate intent allow ${consumer} ${service}`,
      grouped(String(count)),
      `${since(last, view.nowMs)} ago`,
      hosts.join(','),
    ],
  }));
  const columns = [
    { title: 'WOULD BE ALLOWED BY' },
    { title: 'CALLS', align: 'right' },
    { title: 'LAST' },
    { title: 'SEEN ON', cut: 'end', least: 8, optional: true },
  ] as const;
  return renderTable(columns, rows, view);
}

/** What is left out because of a grant, how it would stay, and how all is as before. */
function leftOutLines({ host, service, offers, leftOut, keep }: GrantChangeDocument, { style }: View): string[] {
  if (leftOut.length === 0) return [];
  const on = offers?.includes(service) === true;
  const undo = `legate host ${on ? 'disallow' : 'allow'} ${host} ${service === '*' ? "'*'" : service}`;
  const kept = keep ? [`to keep ${leftOut.length === 1 ? 'it' : 'them'}: ${keep.join(' && ')}`] : [];
  return [
    ...leftOut.map((offer) => ` ${style.paint(style.note, 'yellow')} left out from now on: ${offerText(offer)}`),
    ...[...kept, `to undo this: ${undo}`].map((text) => ` ${style.note} ${text}`),
  ];
}

/** What became of a grant: what is left out because of it, what the host may offer, and who may offer the service. */
export function grantChangeLines(change: GrantChangeDocument, view: View): string[] {
  const { host, service, changed, offers, offeredBy, letIn, stored } = change;
  const { style } = view;
  const may =
    offers === null
      ? `${host} may offer any service that is granted to nobody else`
      : offers.includes('*')
        ? `${host} may offer any service`
        : `${host} may now offer only ${offers.join(', ')}`;
  const by = offeredBy === null || service === '*' ? '' : `; ${service} may be offered only by ${offeredBy.join(', ')}`;
  const unchanged = changed ? '' : 'nothing changed: ';
  const lines = [...leftOutLines(change, view), ` ${style.paint(style.good, 'green')} ${unchanged}${may}${by}`];
  for (const offer of letIn) lines.push(` ${style.note} let in: ${offerText(offer)}`);
  if (!stored) lines.push(` ${style.note} the store does not have it yet: other hosts follow when it answers`);
  return lines;
}

function offerText({ host, service, instances }: OfferDocument): string {
  return `${plural(instances, 'instance')} of ${service} on ${host}`;
}
