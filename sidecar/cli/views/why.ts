import type { Verdict, WhyDetailDocument, WhyDocument, WhyStepDocument } from '../../admin/why-document.ts';
import { wrap } from '../table.ts';
import type { Colour, View } from '../terminal.ts';
import { grouped, plural, since } from '../words.ts';

/** The longest name of a step, and a gap. */
const labelWidth = 10;
const dayMs = 24 * 3_600_000;
const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

const colours: Readonly<Record<Verdict, Colour>> = { ok: 'green', note: 'yellow', unknown: 'dim', bad: 'red' };

/** Who connects, a line for each step, and at the end what to do. */
export function whyLines(document: WhyDocument, view: View): string[] {
  const lines = allLines(document, view);
  return view.style.rich ? lines : lines.map(ascii);
}

function allLines(document: WhyDocument, view: View): string[] {
  const [first, ...steps] = document.steps;
  const isHead = first?.name === 'consumer' && first.verdict === 'ok';
  const head = isHead ? headLines(first, view) : [];
  const rest = isHead || first === undefined ? steps : [first, ...steps];
  return [...head, ...rest.flatMap((step) => stepLines(step, view)), ...endLines(document, view)];
}

function headLines({ text, details }: WhyStepDocument, view: View): string[] {
  const lines = wrap(text, view.width - 1).map((line) => view.style.paint(` ${line}`, 'bold'));
  return [...lines, ...details.flatMap((detail) => detailLines(detail, view))];
}

function stepLines({ name, verdict, text, since: begun, details }: WhyStepDocument, view: View): string[] {
  const { style, nowMs } = view;
  const symbols = { ok: style.good, note: style.note, unknown: style.note, bad: style.bad };
  // A sidecar of a later version may know more verdicts.
  const symbol = (symbols[verdict] ?? style.note).padEnd(style.good.length);
  const told = verdict === 'unknown' ? text : text + sinceText(begun, nowMs);
  const start = `  ${style.paint(symbol, colours[verdict])} ${name.padEnd(labelWidth)}`;
  const indent = ' '.repeat(3 + symbol.length + labelWidth);
  const lines = wrap(told, view.width - indent.length);
  return [
    ...lines.map(
      (line, index) => (index === 0 ? start : indent) + style.paint(line, verdict === 'bad' ? 'red' : undefined),
    ),
    ...details.flatMap((detail) => detailLines(detail, view, indent)),
  ];
}

function detailLines(
  { text, since: begun }: WhyDetailDocument,
  { style, width, nowMs }: View,
  indent = '  ',
): string[] {
  const mark = style.rich ? '· ' : '- ';
  const lines = wrap(text + sinceText(begun, nowMs), width - indent.length - mark.length);
  return lines.map((line, index) => style.paint(`${indent}${index === 0 ? mark : '  '}${line}`, 'dim'));
}

function endLines({ fine, fix, traffic, changes, service }: WhyDocument, view: View): string[] {
  const { style, nowMs } = view;
  const lines: string[] = [];
  if (fix !== null) lines.push(...labelled(fine ? 'advice' : 'fix', fix, view, fine ? undefined : 'bold'));
  else if (fine) lines.push(` ${style.paint('nothing is in the way', 'green')}`);
  if (traffic !== null && traffic.total + traffic.denied > 0) {
    const { active, total, failed, denied, lastError } = traffic;
    const last = lastError === null ? '' : `; last failure ${since(lastError.at, nowMs)} ago: ${lastError.message}`;
    const byPolicy = denied > 0 ? `, ${grouped(String(denied))} denied by policy` : '';
    const counts = `${plural(total, 'connection')} so far, ${grouped(String(active))} open, ${grouped(String(failed))} failed${byPolicy}`;
    lines.push(...labelled('links', `${service ?? ''}: ${counts}${last}`, view, 'dim'));
  }
  for (const [index, { at, text }] of changes.entries()) {
    lines.push(...labelled(index === 0 ? 'changes' : '', `${moment(at, nowMs)} ${text}`, view, 'dim'));
  }
  return lines;
}

function labelled(label: string, text: string, { style, width }: View, colour: Colour | undefined): string[] {
  const start = label === '' ? '' : `${label}:`;
  const lines = wrap(text, width - 10);
  return lines.map((line, index) => style.paint(` ${(index === 0 ? start : '').padEnd(8)} ${line}`, colour));
}

function sinceText(at: string | null, nowMs: number): string {
  return at === null ? '' : `, since ${moment(at, nowMs)}`;
}

/** Of our own texts, which use little else. */
function ascii(line: string): string {
  return line.replaceAll('→', '->').replaceAll('’', "'").replaceAll('…', '...');
}

/** The time of day, in the reader's zone; with the day when that was not within the last 24 hours. */
function moment(at: string, nowMs: number): string {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return '?';
  const two = (number: number): string => String(number).padStart(2, '0');
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  const ageMs = nowMs - date.getTime();
  if (ageMs < 600_000) return `${time}:${two(date.getSeconds())}`;
  return ageMs < dayMs ? time : `${date.getDate()} ${months[date.getMonth()] ?? ''} ${time}`;
}
