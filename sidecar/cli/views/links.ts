import type { LinkDocument } from '../../admin/documents.ts';
import { type Cell, renderTable } from '../table.ts';
import type { View } from '../terminal.ts';
import { bytes, grouped, since, span } from '../words.ts';
import { compare } from './hosts.ts';

const rank = { down: 0, refusing: 1, open: 3, empty: 4 } as const;
const colours = { down: 'red', refusing: 'yellow', open: 'green', empty: 'dim' } as const;

/**
 * Links of this host, those in trouble first, each with what is wrong with it; last those of services that nobody
 * provides now.
 */
export function linkLines({ links }: { readonly links: readonly LinkDocument[] }, view: View): string[] {
  if (links.length === 0) return [' no links: no service has a virtual address or a listener on this host'];
  const { style } = view;
  const symbols = { down: style.bad, refusing: style.bad, open: style.good, empty: style.note };
  const sorted = [...links].sort((a, b) => rankOf(a, view) - rankOf(b, view) || compare(a.service, b.service));
  const rows = sorted.map((link) => ({
    cells: [
      { text: style.rich ? (symbols[stateOf(link)] ?? '') : '', colour: colours[stateOf(link)] },
      link.service,
      link.address,
      { text: link.state, colour: colours[stateOf(link)] },
      String(link.backends.length),
      grouped(String(link.connections.active)),
      grouped(String(link.connections.total)),
      grouped(String(link.connections.failed)),
      grouped(String(link.connections.retried)),
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
    { title: 'BACKENDS', align: 'right', optional: true },
    { title: 'OPEN', align: 'right' },
    { title: 'TOTAL', align: 'right' },
    { title: 'FAILED', align: 'right' },
    { title: 'RETRIED', align: 'right', optional: true },
    { title: 'IN', align: 'right', optional: true },
    { title: 'OUT', align: 'right', optional: true },
  ] as const;
  return renderTable(columns, rows, view);
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
  for (const { id, address, ejectedUntil } of ejected(link, view)) {
    const left = span(Date.parse(ejectedUntil ?? '') - view.nowMs);
    lines.push({
      text: `${style.bad} ${id} at ${address} is avoided for ${left} more: it kept failing`,
      colour: 'yellow',
    });
  }
  if (link.lastError !== null && link.state !== 'down') {
    const { at, message } = link.lastError;
    lines.push({ text: `${style.note} last failure ${since(at, view.nowMs)} ago: ${message}`, colour: 'dim' });
  }
  return lines;
}
