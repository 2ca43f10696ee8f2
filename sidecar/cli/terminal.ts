/** What a stream of output needs to offer; `process.stdout` does. */
export interface OutputStream {
  write(chunk: string | Uint8Array): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  readonly rows?: number | undefined;
}

export type Colour = 'red' | 'green' | 'yellow' | 'dim' | 'bold';
const colourCodes: Readonly<Record<Colour, number>> = { red: 31, green: 32, yellow: 33, dim: 2, bold: 1 };

/** On a terminal nothing gets wider than this, so that it can be pasted into a ticket. */
const maxWidth = 100;
const minWidth = 40;

/**
 * How text is to look: on a terminal with symbols and colours, elsewhere (a pipe, `NO_COLOR`, a dumb terminal) plain
 * ASCII words.
 */
export interface Style {
  readonly rich: boolean;
  readonly good: string;
  readonly bad: string;
  readonly note: string;
  readonly ellipsis: string;
  readonly separator: string;
  paint(text: string, colour: Colour | undefined): string;
}

const plainStyle: Style = {
  rich: false,
  good: 'ok',
  bad: 'x',
  note: '-',
  ellipsis: '..',
  separator: ', ',
  paint: (text) => text,
};

const richStyle: Style = {
  rich: true,
  good: '✔',
  bad: '✘',
  note: '·',
  ellipsis: '…',
  separator: ' · ',
  paint: (text, colour) => (colour === undefined ? text : `\u001b[${colourCodes[colour]}m${text}\u001b[0m`),
};

/** What a view needs to know of where it is shown. */
export interface View {
  readonly style: Style;
  /** Columns that lines may take; infinite where nobody looks: programs get each row whole, on one line. */
  readonly width: number;
  readonly nowMs: number;
}

/** The terminal, or what stands in its place. */
export class Terminal {
  readonly style: Style;
  /** Whether somebody looks at standard output. */
  readonly interactive: boolean;
  readonly #stdout: OutputStream;
  readonly #stderr: OutputStream;
  readonly #nowMs: () => number;
  /** `COLUMNS`, where it is a number. */
  readonly #columns: number | undefined;

  constructor(options: {
    readonly stdout: OutputStream;
    readonly stderr: OutputStream;
    readonly env: Readonly<Record<string, string | undefined>>;
    readonly nowMs: () => number;
  }) {
    this.#stdout = options.stdout;
    this.#stderr = options.stderr;
    this.#nowMs = options.nowMs;
    const { COLUMNS: columns = '' } = options.env;
    this.#columns = /^[1-9]\d{0,3}$/.test(columns) ? Number(columns) : undefined;
    this.interactive = options.stdout.isTTY === true && options.env.TERM !== 'dumb';
    // NO_COLOR counts when it is set and not empty (no-color.org).
    this.style = this.interactive && (options.env.NO_COLOR ?? '') === '' ? richStyle : plainStyle;
  }

  /** Whether a line on standard error can be redrawn for progress. */
  get showsProgress(): boolean {
    return this.interactive && this.#stderr.isTTY === true;
  }

  /** A terminal that does not know its size says 0. */
  get rows(): number {
    return this.#stdout.rows || 24;
  }

  /** Columns of text for people, such as help, wherever it goes. */
  get proseWidth(): number {
    const columns = this.#stdout.isTTY === true ? (this.#columns ?? (this.#stdout.columns || maxWidth)) : maxWidth;
    return Math.max(minWidth, Math.min(maxWidth, columns));
  }

  view(): View {
    const width = this.#stdout.isTTY === true ? this.proseWidth : Number.POSITIVE_INFINITY;
    return { style: this.style, width, nowMs: this.#nowMs() };
  }

  /** To standard output, as it is. What comes from strangers has passed `clean` before. */
  write(chunk: string | Uint8Array): void {
    this.#stdout.write(chunk);
  }

  lines(lines: readonly string[]): void {
    if (lines.length > 0) this.#stdout.write(`${lines.join('\n')}\n`);
  }

  error(line: string): void {
    this.#stderr.write(`${line}\n`);
  }

  /** Shows `text` in place of the last progress; empty removes it. */
  progress(text: string): void {
    if (this.showsProgress) this.#stderr.write(`\r\u001b[K${text}`);
  }
}
