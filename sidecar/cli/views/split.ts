import type { Weights } from '../../../src/model/routes.ts';
import { parseSticky } from '../../../src/model/routes.ts';
import { weightsText } from '../../../src/model/taken-back.ts';
import type { SplitDocument, SplitSideDocument } from '../../admin/documents.ts';
import { percent, seenText, splitCommand } from '../../splits/words.ts';
import { type Cell, renderTable, wrap } from '../table.ts';
import type { Colour, View } from '../terminal.ts';
import { grouped, plural, since } from '../words.ts';

/** How a service's requests are divided, and with `traffic` what the sides carry. */
export function splitLines(document: SplitDocument, view: View, traffic: boolean): string[] {
  const { service, split, host } = document;
  const notes = noteLines(document, view);
  if (split === null) {
    const none = ` ${service} is not split: its requests go to all of its instances`;
    return [none, ...notes];
  }
  const sides = [...document.sides].sort((a, b) => b.weight - a.weight || (a.tag < b.tag ? -1 : 1));
  const rows = sides.map((side) => ({ cells: [...cells(side), ...(traffic ? figures(side) : [])], below: [] }));
  const columns = [
    { title: 'TAG', cut: 'middle', least: 8 },
    { title: 'WEIGHT', align: 'right' },
    { title: 'SHARE', align: 'right' },
    { title: 'INSTANCES', align: 'right', optional: true },
    { title: 'USABLE', align: 'right' },
    { title: 'REQUESTS', align: 'right' },
    { title: 'ERRORS', align: 'right' },
    { title: 'ERROR RATE', align: 'right' },
    { title: 'MEAN', align: 'right' },
    { title: 'GUARD' },
  ] as const;
  const head = traffic ? [` ${service}, as consumers on ${host} get it; rates of the last 10 s`] : [];
  return [...head, ...renderTable(traffic ? columns : columns.slice(0, 5), rows, view), ...notes];
}

/** `stable 95 %, canary 5 %`, the heaviest first. */
export function sharesText(weights: Weights): string {
  const sum = Object.values(weights).reduce((total, weight) => total + weight, 0);
  const entries = Object.entries(weights).sort(([a, one], [b, other]) => other - one || (a < b ? -1 : 1));
  return entries.length === 0
    ? 'not split'
    : entries.map(([tag, weight]) => `${tag} ${percent(weight / sum)}`).join(', ');
}

/** What is no error and may be a mistake. */
export function splitNotes({ service, protocol, splits, sides, without }: SplitDocument): string[] {
  const notes: string[] = [];
  if (!splits && sides.length > 0) {
    notes.push(`${service} is of protocol ${protocol}: only http, http2 and grpc are divided by request`);
  }
  const isVoid = sides.length > 0 && sides.every(({ weight, usable }) => weight === 0 || usable === 0);
  if (isVoid)
    notes.push('no tag with a weight has a usable instance: requests go to all instances, whatever their tags');
  for (const { tag, weight, instances, usable } of sides) {
    if (usable > 0 || weight === 0) continue;
    const why =
      instances === 0 ? 'no instance has this tag' : `none of ${plural(instances, 'instance')} can be used now`;
    notes.push(isVoid ? `${tag}: ${why}` : `${tag}: ${why}; its share goes to the others meanwhile`);
  }
  if (without.instances > 0) {
    const count = plural(without.instances, 'instance has', 'instances have');
    const tags = without.tags.length === 0 ? 'no tags' : without.tags.join(', ');
    const share = isVoid ? '' : ` and ${without.instances === 1 ? 'gets' : 'get'} nothing`;
    notes.push(`${count} none of these tags${share}; there: ${tags}`);
  }
  return notes;
}

/** How clients are kept on their side. */
export function stickyText(sticky: string): string {
  const parsed = parseSticky(sticky);
  return parsed === undefined ? 'not sticky' : `sticky by the ${parsed.kind} ${parsed.name}`;
}

export function guardText(guard: number): string {
  if (guard === 0) return 'no guard';
  if (guard === 1) return 'guard: a side with a clearly higher error rate than the heaviest goes back to 0';
  return `guard: a side with over ${guard} times the error rate of the heaviest goes back to 0`;
}

function noteLines(document: SplitDocument, view: View): string[] {
  const { service, split, former, sticky, guard, takenBack } = document;
  const { style, nowMs } = view;
  const lines: [text: string, colour: Colour | undefined][] = [];
  if (takenBack !== null) {
    const { tag, weight, host, at } = takenBack;
    const ago = `${since(at, nowMs)} ago`;
    lines.push([
      `${style.bad} ${tag} was taken back to 0 by the guard of ${host} ${ago}: ${seenText(takenBack)}`,
      'red',
    ]);
    lines.push([`  when it is mended, try again: ${splitCommand(service, { ...split, [tag]: weight })}`, undefined]);
  }
  for (const note of splitNotes(document)) lines.push([`${style.bad} ${note}`, 'yellow']);
  const settings = split === null ? [] : [stickyText(sticky), guardText(guard)];
  for (const text of settings) lines.push([`${style.note} ${text}`, 'dim']);
  if (former !== null && takenBack === null) {
    const text = weightsText(former);
    lines.push([`${style.note} before: ${text === '' ? 'not split' : text} (legate split ${service} --back)`, 'dim']);
  }
  return lines.flatMap(([text, colour]) =>
    wrap(text, view.width - 4).map((line, index) => style.paint(`${index === 0 ? ' ' : '   '}${line}`, colour)),
  );
}

function cells({ tag, weight, share, instances, usable }: SplitSideDocument): Cell[] {
  const colour = usable === 0 && weight > 0 ? 'yellow' : undefined;
  return [
    { text: tag, colour },
    grouped(String(weight)),
    percent(share),
    String(instances),
    { text: String(usable), colour },
  ];
}

const colours = { failing: 'red', 'taken back': 'red', good: 'green' } as const;

function figures({ rates, errorRate, latencyMs, verdict }: SplitSideDocument): Cell[] {
  return [
    `${rates.requests}/s`,
    { text: `${rates.errors}/s`, colour: rates.errors > 0 ? 'yellow' : undefined },
    { text: errorRate === null ? '-' : percent(errorRate), colour: errorRate ? 'yellow' : undefined },
    latencyMs === null ? '-' : `${latencyMs} ms`,
    { text: verdict, colour: Object.entries(colours).find(([word]) => word === verdict)?.[1] },
  ];
}
