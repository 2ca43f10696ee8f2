import { ejectionText } from '../../../proxy/link-document.ts';
import type { DeclaredLinkDocument, LinkDocument, LinksDocument } from '../../admin/documents.ts';
import { type Cell, renderTable } from '../table.ts';
import type { View } from '../terminal.ts';
import { bytes, grouped, plural, since, span } from '../words.ts';
import { compare } from './hosts.ts';

const distances = ['host', 'zone', 'other'] as const;
const rank = { down: 0, refusing: 1, holding: 2, open: 3, empty: 4 } as const;
const colours = { down: 'red', refusing: 'yellow', holding: 'yellow', open: 'green', empty: 'dim' } as const;

/** Links of this host, and below what containers declare. A sidecar of an earlier version knows nothing of that. */
export function linkLines(document: Pick<LinksDocument, 'links'> & Partial<LinksDocument>, view: View): string[] {
  const { links, declared = [] } = document;
  if (declared.length === 0) return placeLines(links, view);
  return [...placeLines(links, view), '', ...declaredLines(declared, view)];
}

/** Links in trouble first, each with what is wrong with it; last those of services that nobody provides now. */
function placeLines(links: readonly LinkDocument[], view: View): string[] {
  if (links.length === 0) return [' no links: no service has a virtual address or a listener on this host'];
  const { style } = view;
  const symbols = { down: style.bad, refusing: style.bad, holding: style.note, open: style.good, empty: style.note };
  const sorted = [...links].sort((a, b) => rankOf(a, view) - rankOf(b, view) || compare(a.service, b.service));
  const rows = sorted.map((link) => ({
    cells: [
      { text: style.rich ? (symbols[stateOf(link)] ?? '') : '', colour: colours[stateOf(link)] },
      link.service,
      // A sidecar of an earlier version knows no TLS.
      link.tls ? `https://${link.address}` : link.address,
      { text: link.state, colour: colours[stateOf(link)] },
      where(link),
      grouped(String(link.connections.active)),
      grouped(String(link.connections.total)),
      grouped(String(link.connections.failed)),
      grouped(String(link.connections.retried)),
      rate(link),
      bytes(link.bytes.received),
      bytes(link.bytes.sent),
    ],
    below: troubles(link, view),
  }));
  const columns = [
    { title: '' },
    { title: 'SERVICE', cut: 'middle', least: 8 },
    { title: 'ADDRESS', cut: 'middle', least: 21 },
    { title: 'STATE' },
    { title: 'INSTANCES', optional: true },
    { title: 'OPEN', align: 'right' },
    { title: 'TOTAL', align: 'right' },
    { title: 'FAILED', align: 'right' },
    { title: 'RETRIED', align: 'right', optional: true },
    { title: 'RATE', align: 'right', optional: true },
    { title: 'IN', align: 'right', optional: true },
    { title: 'OUT', align: 'right', optional: true },
  ] as const;
  return renderTable(columns, rows, view);
}

/** How many instances there are, and where: on this host, in its zone, elsewhere. */
function where({ backends }: LinkDocument): string {
  const counts = { host: 0, zone: 0, other: 0 };
  // A sidecar of an earlier version has none but near ones.
  for (const { near = 'host' } of backends) counts[near] += 1;
  const words = { host: 'here', zone: 'in zone', other: 'far' } as const;
  const parts = distances.filter((near) => counts[near] > 0).map((near) => `${counts[near]} ${words[near]}`);
  return parts.length === 0 ? '0' : parts.join(', ');
}

function rate({ rates }: LinkDocument): string {
  const { received = 0, sent = 0 } = rates ?? {};
  return received + sent === 0 ? '-' : `${bytes(Math.round(received + sent))}/s`;
}

/** Hosts that cannot be reached now, each once. */
function brokenTunnels({ backends }: LinkDocument): string[] {
  const lines = new Map<string, string>();
  for (const { host, tunnel } of backends) {
    if (!tunnel || tunnel.state === 'ready') continue;
    lines.set(host, `the tunnel to ${host} is ${tunnel.state}${tunnel.problem === null ? '' : `: ${tunnel.problem}`}`);
  }
  return [...lines.values()];
}

function ejected(link: LinkDocument, view: View): LinkDocument['backends'] {
  return link.backends.filter(({ ejectedUntil }) => ejectedUntil !== null && Date.parse(ejectedUntil) > view.nowMs);
}

/** The state, or that it refuses as a matter of course. */
function stateOf({ state, instances }: LinkDocument): keyof typeof rank {
  return state === 'refusing' && instances === 0 ? 'empty' : state;
}

function rankOf(link: LinkDocument, view: View): number {
  return ejected(link, view).length > 0 ? Math.min(2, rank[link.state]) : (rank[stateOf(link)] ?? 0);
}

function troubles(link: LinkDocument, view: View): Cell[] {
  const lines: Cell[] = [];
  const { style } = view;
  if (link.problem !== null) lines.push({ text: `${style.bad} ${link.problem}`, colour: colours[link.state] });
  else if (stateOf(link) === 'refusing') {
    lines.push({
      text: `${style.bad} nothing usable behind it: legate instances ${link.service} says why`,
      colour: 'yellow',
    });
  } else if (stateOf(link) === 'empty') lines.push({ text: `${style.note} no instances`, colour: 'dim' });
  for (const text of brokenTunnels(link)) lines.push({ text: `${style.bad} ${text}`, colour: 'yellow' });
  if (link.connections.held > 0) {
    const waiting = plural(link.connections.held, 'connection waits', 'connections wait');
    lines.push({ text: `${style.note} ${waiting} for an instance`, colour: 'yellow' });
  }
  for (const { id, address, ejectedUntil, ejectedFor } of ejected(link, view)) {
    const left = span(Date.parse(ejectedUntil ?? '') - view.nowMs);
    lines.push({
      text: `${style.bad} ${id} at ${address} is avoided for ${left} more: ${ejectionText(ejectedFor)}`,
      colour: 'yellow',
    });
  }
  if (link.lastError !== null && link.state !== 'down') {
    const { at, message } = link.lastError;
    lines.push({ text: `${style.note} last failure ${since(at, view.nowMs)} ago: ${message}`, colour: 'dim' });
  }
  // A sidecar of an earlier version knows no policy.
  const last = link.denied?.last ?? null;
  if (last !== null) {
    const count = `${grouped(String(link.denied.total))} denied by policy`;
    lines.push({
      text: `${style.note} ${count}, last ${since(last.at, view.nowMs)} ago: ${last.message}`,
      colour: 'dim',
    });
  }
  return lines;
}

const declaredRank = { down: 0, refusing: 1, waiting: 2, open: 3 } as const;
const declaredColours = { down: 'red', refusing: 'yellow', waiting: 'yellow', open: 'green' } as const;

/** What containers say that they depend on, what is in trouble first. */
function declaredLines(declared: readonly DeclaredLinkDocument[], view: View): string[] {
  const { style } = view;
  const symbols = { down: style.bad, refusing: style.bad, waiting: style.note, open: style.good };
  const order = (link: DeclaredLinkDocument): number => declaredRank[link.state] ?? 0;
  const sorted = [...declared].sort(
    (a, b) => order(a) - order(b) || compare(a.container, b.container) || compare(a.alias, b.alias),
  );
  const rows = sorted.map((link) => {
    const colour = declaredColours[link.state];
    const cells = [
      { text: style.rich ? (symbols[link.state] ?? '') : '', colour },
      link.container,
      link.alias,
      link.service,
      link.address ?? '-',
      { text: link.state, colour },
    ];
    return { cells, below: declaredTroubles(link, view) };
  });
  const columns = [
    { title: '' },
    { title: 'CONTAINER', cut: 'middle', least: 8 },
    { title: 'ALIAS', cut: 'middle', least: 8 },
    { title: 'SERVICE', cut: 'middle', least: 8 },
    { title: 'ADDRESS', cut: 'middle', least: 21 },
    { title: 'STATE' },
  ] as const;
  return renderTable(columns, rows, view);
}

function declaredTroubles({ state, problem, service, since: at }: DeclaredLinkDocument, view: View): Cell[] {
  const { style } = view;
  if (problem !== null) return [{ text: `${style.bad} ${problem}`, colour: declaredColours[state] }];
  if (state === 'refusing') {
    return [{ text: `${style.bad} nothing usable behind it: legate instances ${service} says why`, colour: 'yellow' }];
  }
  if (state !== 'waiting') return [];
  const long = at === null ? '' : ` for ${since(at, view.nowMs)}`;
  return [{ text: `${style.note} ${service} has no instances: waiting${long}`, colour: 'dim' }];
}
