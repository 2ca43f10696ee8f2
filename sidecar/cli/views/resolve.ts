import type { ResolveDocument } from '../../admin/documents.ts';
import { renderTable, wrap } from '../table.ts';
import type { View } from '../terminal.ts';
import { plural } from '../words.ts';

const meanings: Readonly<Record<string, string>> = {
  NXDOMAIN: 'there is no such name',
  SERVFAIL: 'the name server could not tell: nothing is known yet, or no upstream answered',
  REFUSED: 'the name server does not answer for this zone (dns.upstream is off)',
};

/** What a name server answered, where that came from, and what was left out and why. */
export function resolveLines(document: ResolveDocument, view: View): string[] {
  const { style } = view;
  const { name, type, status, answers, additionals, server, origin, leftOut, note, hint } = document;
  const lines: string[] = [];
  const records = [
    ...answers.map((record) => ({ record, part: '' })),
    ...additionals.map((record) => ({ record, part: 'additional' })),
  ];
  if (records.length > 0) {
    const rows = records.map(({ record, part }) => ({
      cells: [record.name, record.type, `${record.ttl} s`, record.data, part],
    }));
    const columns = [
      { title: 'NAME', cut: 'middle', least: 20 },
      { title: 'TYPE' },
      { title: 'TTL', align: 'right' },
      { title: 'ANSWER', cut: 'end', least: 20 },
      { title: '' },
    ] as const;
    lines.push(...renderTable(columns, rows, view));
  }
  if (status !== 'NOERROR') {
    const meaning = meanings[status];
    lines.push(
      ` ${style.paint(style.bad, 'red')} ${name} ${type}: ${status}${meaning === undefined ? '' : `, ${meaning}`}`,
    );
    if (hint) lines.push(...wrap(hint, view.width - 4).map((line) => `   ${line}`));
  } else if (answers.length === 0) {
    // A sidecar of an earlier version gives no hint.
    const text = `${name} exists, and has no ${type} record now (NODATA)${hint ? `; ${hint}` : ''}`;
    const [first = '', ...rest] = wrap(text, view.width - 3);
    lines.push(` ${style.paint(style.note, 'yellow')} ${first}`, ...rest.map((line) => `   ${line}`));
  }
  if (note) {
    const [first = '', ...rest] = wrap(note, view.width - 3);
    lines.push(` ${style.paint(style.note, 'yellow')} ${first}`, ...rest.map((line) => `   ${line}`));
  }
  lines.push(...wrap(`answered by ${server} (${origin})`, view.width - 1).map((line) => ` ${line}`));
  if (leftOut.length > 0) {
    lines.push(` left out: ${plural(leftOut.length, 'instance')}`);
    const rows = leftOut.map(({ id, reason }) => ({
      cells: [{ text: style.rich ? style.bad : '', colour: 'red' as const }, id, reason],
    }));
    const columns = [
      { title: '' },
      { title: 'ID', cut: 'middle', least: 20 },
      { title: 'WHY', cut: 'end', least: 20 },
    ] as const;
    lines.push(...renderTable(columns, rows, view));
  }
  return lines;
}
