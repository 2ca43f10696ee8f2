import type { Colour, Style, View } from './terminal.ts';

export interface Column {
  readonly title: string;
  readonly align?: 'right';
  /** Where a value that is too long is cut; without it the column is never narrowed below what it needs. */
  readonly cut?: 'middle' | 'end';
  /** The width below which it is not narrowed, unless nothing else helps. */
  readonly least?: number;
  /** It is left out, the last one first, when the table would not fit otherwise. */
  readonly optional?: boolean;
}

export type Cell = string | { readonly text: string; readonly colour?: Colour | undefined };

export interface Row {
  readonly cells: readonly Cell[];
  /** Lines below the row, such as what is wrong with it. */
  readonly below?: readonly Cell[];
}

const gap = 2;
const indent = 1;

/**
 * Aligned columns without rules. Columns that are empty in all rows are left out, and optional ones when there is no
 * room; then too long values are cut, widest column first, until the table fits. Cells are taken as printable.
 */
export function renderTable(columns: readonly Column[], rows: readonly Row[], view: View): string[] {
  const natural = columns.map((column, index) =>
    Math.max(displayWidth(column.title), ...rows.map((row) => displayWidth(textOf(row.cells[index])))),
  );
  const chosen = chooseColumns(columns, natural, rows, view.width);
  const kept = chosen.flatMap((index) => columns[index] ?? []);
  const cells = rows.map((row) => chosen.map((index) => row.cells[index] ?? ''));
  const widths = fit(
    kept,
    chosen.map((index) => natural[index] ?? 0),
    view.width - indent - gap * (kept.length - 1),
  );
  const lineOf = (row: readonly Cell[], colour?: Colour): string => {
    const parts = kept.map((column, index) => {
      const cell = row[index] ?? '';
      const width = widths[index] ?? 0;
      const text = cutText(textOf(cell), width, column.cut ?? 'end', view.style);
      // Nothing is put behind the last column: beside one long value each row would take as much.
      const last = index === kept.length - 1 && column.align !== 'right';
      const filling = last ? '' : ' '.repeat(Math.max(0, width - displayWidth(text)));
      const painted = view.style.paint(text, colour ?? (typeof cell === 'string' ? undefined : cell.colour));
      return column.align === 'right' ? filling + painted : painted + filling;
    });
    return `${' '.repeat(indent)}${parts.join(' '.repeat(gap))}`.trimEnd();
  };
  const lines = [
    lineOf(
      kept.map((column) => column.title),
      'dim',
    ),
  ];
  for (const [index, row] of rows.entries()) {
    lines.push(lineOf(cells[index] ?? []));
    for (const cell of row.below ?? []) {
      const [first = '', ...rest] = wrap(textOf(cell), view.width - 5);
      const colour = typeof cell === 'string' ? undefined : cell.colour;
      lines.push(
        ...[`   ${first}`, ...rest.map((text) => `     ${text}`)].map((line) => view.style.paint(line, colour)),
      );
    }
  }
  return lines;
}

function textOf(cell: Cell | undefined): string {
  return typeof cell === 'string' ? cell : (cell?.text ?? '');
}

/** Which columns are shown: those with something in them, and of the optional ones as many as there is room for. */
function chooseColumns(
  columns: readonly Column[],
  natural: readonly number[],
  rows: readonly Row[],
  width: number,
): number[] {
  let chosen = [...columns.keys()].filter((index) => rows.some((row) => textOf(row.cells[index]) !== ''));
  const needed = (): number =>
    chosen.reduce((sum, index) => sum + leastOf(columns[index], natural[index] ?? 0) + gap, indent - gap);
  while (needed() > width) {
    const last = chosen.findLast((index) => columns[index]?.optional === true);
    if (last === undefined) break;
    chosen = chosen.filter((index) => index !== last);
  }
  return chosen;
}

function leastOf(column: Column | undefined, natural: number): number {
  if (column?.cut === undefined) return natural;
  return Math.min(natural, Math.max(column.least ?? 8, displayWidth(column.title)));
}

/** When even the least widths are too much (a very narrow terminal), no column is narrowed below this. */
const floorWidth = 4;

/** Narrows the widest column, first those that may be cut, until the sum fits. */
function fit(columns: readonly Column[], natural: readonly number[], available: number): number[] {
  const widths = [...natural];
  let over = widths.reduce((sum, width) => sum + width, 0) - available;
  for (const floorOf of [(index: number) => leastOf(columns[index], natural[index] ?? 0), () => floorWidth]) {
    while (over > 0) {
      let widest = -1;
      for (const [index, width] of widths.entries()) {
        if (width > floorOf(index) && (widest < 0 || width > (widths[widest] ?? 0))) widest = index;
      }
      if (widest < 0) break;
      widths[widest] = (widths[widest] ?? 0) - 1;
      over -= 1;
    }
  }
  return widths;
}

/** Cuts text to `width` columns, marking the cut. */
export function cutText(text: string, width: number, where: 'middle' | 'end', style: Style): string {
  if (displayWidth(text) <= width) return text;
  const room = Math.max(0, width - style.ellipsis.length);
  const characters = [...text];
  if (where === 'end') return take(characters, room) + style.ellipsis;
  const tail = take([...characters].reverse(), Math.floor(room / 2));
  return take(characters, Math.ceil(room / 2)) + style.ellipsis + [...tail].reverse().join('');
}

function take(characters: readonly string[], width: number): string {
  let taken = '';
  let used = 0;
  for (const character of characters) {
    used += displayWidth(character);
    if (used > width) break;
    taken += character;
  }
  return taken;
}

const wide =
  /^[\p{Script=Han}\p{Script=Hangul}\p{Script=Hiragana}\p{Script=Katakana}\p{Emoji_Presentation}\u3000-\u303f\uff01-\uff60\uffe0-\uffe6]$/u;

/** Columns that text takes on a terminal: most characters one, East Asian and emoji two, combining marks none. */
export function displayWidth(text: string): number {
  // Nearly all text is plain ASCII.
  if (/^[\u0020-\u007e]*$/.test(text)) return text.length;
  let width = 0;
  for (const character of text) width += /^\p{M}$/u.test(character) ? 0 : wide.test(character) ? 2 : 1;
  return width;
}

/** Parts in a row, broken into lines between them; within one only where it is wider than a line. */
export function wrapParts(parts: readonly string[], separator: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const [index, part] of parts.entries()) {
    const text = index < parts.length - 1 ? part + separator.trimEnd() : part;
    const longer = line === '' ? text : `${line} ${text}`;
    if (displayWidth(longer) <= width) {
      line = longer;
      continue;
    }
    if (line !== '') lines.push(line);
    const broken = wrap(text, width);
    line = broken.pop() ?? '';
    lines.push(...broken);
  }
  return [...lines, line];
}

/** Breaks text into lines of at most `width` columns, between words where there are any. */
export function wrap(text: string, width: number): string[] {
  if (displayWidth(text) <= width) return [text];
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    const longer = line === '' ? word : `${line} ${word}`;
    if (displayWidth(longer) <= width) {
      line = longer;
      continue;
    }
    if (line !== '') lines.push(line);
    line = word;
    while (displayWidth(line) > width) {
      const head = take([...line], width) || line;
      lines.push(head);
      line = line.slice(head.length);
    }
  }
  if (line !== '' || lines.length === 0) lines.push(line);
  return lines;
}
