import type { ConditionDocument, NameServerDocument, StatusDocument } from '../../admin/documents.ts';
import { wrap, wrapParts } from '../table.ts';
import type { Colour, View } from '../terminal.ts';
import { grouped, plural, since, span } from '../words.ts';

const labelWidth = 9;
/** More bridges than these are counted instead of named. */
const maxBridgesNamed = 4;
/** Of more lost hosts than these only the first is named. */
const maxLostNamed = 4;
const lostPrefix = 'host.lost.';

/** The state of this host on one screen: about five lines, then what to do. */
export function statusLines(status: StatusDocument, view: View): string[] {
  return [
    ...headLine(status, view),
    ...field('store', storeParts(status, view), view),
    ...field('here', hereParts(status, view), view),
    ...field('names', nameParts(status.names, view), view),
    ...field('links', [linksText(status, view)], view),
    ...field('callers', [callersText(status, view)], view),
    ...policyField(status, view),
    ...identityField(status, view),
    ...todoLines(status, view),
  ];
}

function headLine({ host, mesh, version, uptimeMs, policy }: StatusDocument, view: View): string[] {
  const parts = [host.name, `up ${span(uptimeMs)}`, `legate ${version}`, `mesh ${mesh}`, host.address];
  if (policy?.setAt) parts.push(`policy of ${since(policy.setAt, view.nowMs)} ago (default ${policy.default})`);
  const lines = wrap(parts.join('   '), view.width - 1);
  return lines.map((line) => view.style.paint(` ${line}`, 'bold'));
}

/** A label and what there is to say, wrapped beside it between its parts where that can be. */
function field(label: string, parts: readonly string[], view: View, colour?: Colour): string[] {
  const lines = wrapParts(parts, view.style.separator, view.width - labelWidth - 1);
  return lines.map((line, index) => {
    const start = ` ${(index === 0 ? label : '').padEnd(labelWidth)}`;
    return start + view.style.paint(line, colour);
  });
}

function storeParts(status: StatusDocument, view: View): string[] {
  const { store } = status;
  const { style } = view;
  const { origin, ageMs } = store.snapshot;
  // Another sidecar's own is told by its host.
  const name = store.wanted || store.where.startsWith('the store of ') ? store.where : store.kind;
  const picture =
    origin === 'none' ? 'nothing is known yet' : `snapshot ${span(ageMs)} old${origin === 'disk' ? ', from disk' : ''}`;
  if (store.state === 'connected') {
    return [`${name} ${style.good}`, `revision ${grouped(store.revision)}`, picture, ...wantedParts(status, view)];
  }
  const problem = store.problem === null ? '' : `: ${store.problem}`;
  const going = origin === 'none' ? '' : '; names and links go on from it';
  return [
    `${style.bad} ${name} ${store.state} for ${since(store.since, view.nowMs)}${problem}; ${picture}${going}`,
    ...wantedParts(status, view),
  ];
}

/** Another store that is to be used; a sidecar of an earlier version does not tell. */
function wantedParts({ store: { wanted }, todo }: StatusDocument, { style }: View): string[] {
  if (!wanted) return [];
  const { where, problem } = wanted;
  const told = problem !== null && todo.some(({ message }) => message.includes(problem));
  const why = problem === null ? '' : told ? ' (see todo)' : `: ${problem}`;
  return [`${style.bad} ${where} is wanted, and not in use yet${why}`];
}

/** Hosts that one line names: those in trouble come first. */
const maxTunnelsNamed = 6;

/** `3 tunnels (cache-1 ✘ 4 min: connection refused, db-1 db-2 ✔)`. */
function tunnelParts(tunnels: StatusDocument['tunnels'], { style, nowMs }: View): string[] {
  if (tunnels === undefined || tunnels.length === 0) return [];
  const bad = tunnels.filter(({ state }) => state !== 'ready');
  const good = tunnels.filter(({ state }) => state === 'ready').map(({ host }) => host);
  const told = bad.slice(0, maxTunnelsNamed).map(({ host, since: begun, problem }) => {
    return `${host} ${style.bad} ${since(begun, nowMs)}${problem === null ? '' : `: ${problem}`}`;
  });
  if (bad.length > told.length) told.push(`${bad.length - told.length} more ${style.bad}`);
  const named = good.length > maxTunnelsNamed ? `${good.length} hosts` : good.join(' ');
  if (good.length > 0) told.push(`${named} ${style.good}`);
  return [`${plural(tunnels.length, 'tunnel')} (${told.join(', ')})`];
}

function hereParts({ here, docker, tunnels }: StatusDocument, view: View): string[] {
  const { style } = view;
  const counts = [
    plural(here.containers, 'container'),
    plural(here.instances, 'instance'),
    plural(here.services, 'service'),
    plural(here.links, 'link'),
  ];
  const version = docker.version === null ? '' : ` ${docker.version}`;
  const problem = docker.problem === null ? '' : `: ${docker.problem}`;
  const good = docker.state === 'connected' || docker.state === 'off';
  const engine = good ? '' : `${style.bad} `;
  const state = docker.state === 'connected' ? ` ${style.good}` : ` ${docker.state}`;
  return [...counts, ...tunnelParts(tunnels, view), `${engine}Docker${version}${state}${problem}`];
}

/** Which name servers answer; those that cannot come first and say why, the same reason once. */
function nameParts(names: readonly NameServerDocument[], view: View): string[] {
  const { style } = view;
  if (names.length === 0) return ['no name server is configured'];
  const text = ({ listen, purpose, state, problem }: NameServerDocument): string => {
    const where = purpose === 'configured' ? listen : `${listen} (${purpose})`;
    return state === 'up' ? `${where} ${style.good}` : `${style.bad} ${where}: ${problem ?? 'it does not listen'}`;
  };
  const down = names.filter((server) => server.state !== 'up');
  const up = names.filter((server) => server.state === 'up');
  const reasonOf = ({ listen, problem }: NameServerDocument): string => (problem ?? '').replaceAll(listen, '');
  const troubles = grouping(down, reasonOf).map(
    ([first, ...others]) => text(first) + (others.length === 0 ? '' : ` (and ${others.length} more alike)`),
  );
  const bridges = up.filter(({ purpose }) => purpose.startsWith('bridge '));
  if (bridges.length <= maxBridgesNamed) return [...troubles, ...up.map(text)];
  const others = up.filter((server) => !bridges.includes(server));
  return [...troubles, ...others.map(text), `${bridges.length} bridges ${style.good}`];
}

function linksText({ vip, todo }: StatusDocument, view: View): string {
  const { style } = view;
  if (vip.state === 'on') return `virtual addresses in ${vip.range} ${style.good}`;
  const { reason: cause } = vip;
  const told = cause !== null && todo.some(({ message }) => message.includes(cause));
  const reason = cause === null ? '' : told ? ' (see todo)' : `: ${cause}`;
  return `${style.note} no virtual addresses${reason}; consumers need \`listen\` addresses`;
}

/** Whether it is known who calls. */
function callersText({ callers, vip, todo }: StatusDocument, { style }: View): string {
  const { state, reason, bound } = callers;
  if (state === 'on') return `${plural(bound, 'address', 'addresses')} of containers bound ${style.good}`;
  const told = reason === null || reason === vip.reason || todo.some(({ message }) => message.includes(reason));
  return `${style.note} all but the host are anonymous${told ? '' : `: ${reason}`}`;
}

/** Who may call and offer what, in numbers. A host without an authority, or of an earlier version, has no such line. */
function policyField({ policy }: StatusDocument, view: View): string[] {
  if (!policy) return [];
  const { style } = view;
  if (policy.setAt === null)
    return field('policy', [`${style.bad} unreadable: nobody may call anybody (see todo)`], view);
  const parts = [
    plural(policy.intents, 'intent'),
    policy.fromLinks ? 'declared links are permission' : 'declared links are no permission',
    policy.grants === 'any' ? 'any host may offer any service' : plural(policy.grants, 'grant'),
  ];
  if (policy.revoked > 0) parts.push(`${plural(policy.revoked, 'host')} revoked`);
  if (policy.mode === 'learn') parts.unshift(`${style.note} learning: nothing is refused`);
  return field('policy', parts, view);
}

/** Letters of a fingerprint that people compare. */
const shownFingerprint = 8;

/** Who this host is to the others. A host without an authority, or of an earlier version, has no such line. */
function identityField({ identity }: StatusDocument, view: View): string[] {
  if (!identity || identity.role === 'none') return [];
  const { role, certificateUntil, roots, problem, authority } = identity;
  const { style, nowMs } = view;
  const words = { authority: 'authority: this host', member: 'member', outside: 'certificate of the configuration' };
  const parts = [words[role]];
  if (role === 'member' && authority) parts[0] = `member (authority: ${authority})`;
  if (certificateUntil !== null) {
    const leftMs = Date.parse(certificateUntil) - nowMs;
    const left = leftMs > 0 ? `in ${span(leftMs)}` : `${style.bad} ${span(-leftMs)} ago`;
    parts.push(`certificate until ${certificateUntil.replace(/\.\d+Z$/, 'Z')} (${left})`);
  }
  if (roots.length > 0) {
    const shown = roots.map((root) => root.slice(0, shownFingerprint)).join(' and ');
    parts.push(`${roots.length === 1 ? 'root' : 'roots'} ${shown}`);
  }
  if (problem !== null) parts.push(`${style.bad} not renewed (see todo)`);
  return field('identity', parts, view);
}

const colours = { error: 'red', warning: 'yellow', note: 'dim' } as const;

/**
 * What is to be done; of several addresses that the name server lacks for the same reason, and of many
 * lost hosts, only the first is told.
 */
function todoLines({ todo }: StatusDocument, view: View): string[] {
  if (todo.length === 0) return field('todo', ['nothing, all is well'], view, 'green');
  const manyLost = todo.filter(({ id }) => id.startsWith(lostPrefix)).length > maxLostNamed;
  const kindOf = ({ id, severity, hint }: ConditionDocument): string =>
    id.startsWith('dns.listen.') || (manyLost && id.startsWith(lostPrefix)) ? JSON.stringify([severity, hint]) : id;
  return grouping(todo, kindOf).flatMap(([first, ...others], index) => {
    const { severity, message, hint, since: begun, count } = first;
    const repeated = count > 1 ? `, ${grouped(String(count))} times` : '';
    const alike = others.length === 0 ? '' : `, and ${others.length} more like it`;
    const advice = hint === '' ? '' : ` → ${hint}`.replace('→', view.style.rich ? '→' : '->');
    const text = `${index + 1}: ${message} (for ${since(begun, view.nowMs)}${repeated})${alike}${advice}`;
    return field(index === 0 ? 'todo' : '', [text], view, colours[severity]);
  });
}

/** Items of equal key together, in the order of the first of each. */
function grouping<T>(items: readonly T[], keyOf: (item: T) => string): [T, ...T[]][] {
  const groups = new Map<string, [T, ...T[]]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group === undefined) groups.set(keyOf(item), [item]);
    else group.push(item);
  }
  return [...groups.values()];
}
