import { cpus, loadavg } from 'node:os';
import { type Column, type Row, renderTable } from '../../sidecar/cli/table.ts';
import type { Style, View } from '../../sidecar/cli/terminal.ts';
import type { Figure } from './bench.ts';

/** What a figure must be read with. */
export interface Machine {
  readonly cores: number;
  readonly processor: string;
  readonly node: string;
  /** Averages over 1, 5 and 15 minutes when the benchmark began: what else the machine had to do. */
  readonly load: readonly number[];
}

export function thisMachine(): Machine {
  const processors = cpus();
  const processor = processors[0]?.model.trim() ?? 'unknown';
  return { cores: processors.length, processor, node: process.version, load: loadavg() };
}

export function machineLine({ cores, processor, node, load }: Machine): string {
  const loads = load.map((value) => value.toFixed(2)).join(' ');
  return `${cores} cores (${processor}), node ${node}, load average at start ${loads}`;
}

export interface Judgement {
  /** Ours over the peer's; undefined without a peer. */
  readonly ratio: number | undefined;
  /** Undefined where nothing is aimed at. */
  readonly met: boolean | undefined;
}

export function judge({ ours, peer, better, aim }: Figure): Judgement {
  const ratio = peer === undefined ? undefined : ours / peer.value;
  const value = ratio ?? ours;
  if (aim === undefined) return { ratio, met: undefined };
  return { ratio, met: better === 'higher' ? value >= aim : value <= aim };
}

const columns: readonly Column[] = [
  { title: 'what', cut: 'end', least: 30 },
  { title: 'unit' },
  { title: 'ours', align: 'right' },
  { title: 'peer', align: 'right' },
  { title: '' },
  { title: 'ratio', align: 'right' },
  { title: 'aim', align: 'right' },
  { title: 'met' },
];

/** One bench's figures as aligned lines. */
export function tableOf(figures: readonly Figure[], view: View): string[] {
  return renderTable(
    columns,
    figures.map((figure) => rowOf(figure, view.style)),
    view,
  );
}

function rowOf(figure: Figure, style: Style): Row {
  const { what, unit, ours, peer, better, aim } = figure;
  const { ratio, met } = judge(figure);
  const bound = better === 'higher' ? '>=' : '<=';
  const aimed = aim === undefined ? '' : `${bound} ${ratio === undefined ? amount(aim) : aim.toFixed(2)}`;
  const mark =
    met === undefined ? '' : ({ text: met ? style.good : style.bad, colour: met ? 'green' : 'red' } as const);
  const compared = peer === undefined ? ['', ''] : [amount(peer.value), peer.name];
  return { cells: [what, unit, amount(ours), ...compared, ratio?.toFixed(2) ?? '', aimed, mark] };
}

/** Three digits, or all of a whole number with thousands kept apart. */
function amount(value: number): string {
  if (value >= 100) return Math.round(value).toLocaleString('en');
  return value.toPrecision(3);
}
