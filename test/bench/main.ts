/**
 * `npm run bench`: ours and peers side by side. `npm run bench -- tcp` runs one, `-- --json` prints the figures for
 * programs. The exit status is 0 when everything ran, however it went; 1 when a bench failed; 2 for a wrong argument.
 */
import { parseArgs } from 'node:util';
import { Terminal } from '../../sidecar/cli/terminal.ts';
import { describeError } from '../../src/base/errors.ts';
import type { Bench, BenchOptions, Figure } from './bench.ts';
import { dnsBench } from './dns.ts';
import { httpBench } from './http.ts';
import { lifecycleBench } from './lifecycle.ts';
import { meshBench } from './mesh.ts';
import { judge, type Machine, machineLine, tableOf, thisMachine } from './report.ts';
import { scaleBench } from './scale.ts';
import { soakBench } from './soak.ts';
import { tcpBench } from './tcp.ts';
import { tunnelBench } from './tunnel.ts';

const benches: readonly Bench[] = [
  tcpBench,
  httpBench,
  soakBench,
  dnsBench,
  lifecycleBench,
  scaleBench,
  meshBench,
  tunnelBench,
];
const usage = `npm run bench -- [--json] [${benches.map(({ name }) => name).join('|')}]... [--rounds N] [--quick] [--only PART,...] (these for http and tunnel) [--whole N] (for tunnel)`;

interface Outcome {
  readonly bench: string;
  readonly seconds: number;
  readonly figures: readonly Figure[];
  /** Why it did not run, or what went wrong. */
  readonly skipped?: string;
  readonly failed?: string;
}

async function runBench(bench: Bench, options: BenchOptions, say: (line: string) => void): Promise<Outcome> {
  const startedMs = performance.now();
  const outcome = (parts: Partial<Outcome>): Outcome => {
    const seconds = Math.round((performance.now() - startedMs) / 100) / 10;
    return { bench: bench.name, seconds, figures: [], ...parts };
  };
  try {
    const reason = bench.skip();
    if (reason !== false) return outcome({ skipped: reason });
    return outcome({ figures: await bench.run((line) => say(`${bench.name}: ${line}`), options) });
  } catch (error) {
    const cause = error instanceof Error && error.cause !== undefined ? ` (${describeError(error.cause)})` : '';
    return outcome({ failed: `${describeError(error)}${cause}` });
  }
}

function show({ bench, seconds, figures, skipped, failed }: Outcome, terminal: Terminal): void {
  const { style } = terminal;
  if (skipped !== undefined) terminal.lines([`${bench}: skipped, ${skipped}`, '']);
  else if (failed !== undefined) terminal.lines([style.paint(`${bench}: failed, ${failed}`, 'red'), '']);
  else {
    const title = style.paint(`${bench} (${Math.round(seconds)} s)`, 'bold');
    terminal.lines([title, ...tableOf(figures, terminal.view()), '']);
  }
}

function documentOf(machine: Machine, outcomes: readonly Outcome[]): object {
  const judged = (figure: Figure): object => {
    const { ratio, met } = judge(figure);
    return { ...figure, ratio: ratio ?? null, met: met ?? null };
  };
  return { machine, benches: outcomes.map((outcome) => ({ ...outcome, figures: outcome.figures.map(judged) })) };
}

function countOf(text: string): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > 1000) throw new Error(`${text} is not a count from 1 to 1000`);
  return count;
}

async function main(args: string[], terminal: Terminal): Promise<number> {
  let chosen: readonly Bench[];
  let json: boolean;
  let options: BenchOptions;
  try {
    const { values, positionals } = parseArgs({
      args,
      options: {
        json: { type: 'boolean', default: false },
        rounds: { type: 'string' },
        quick: { type: 'boolean', default: false },
        only: { type: 'string', default: '' },
        whole: { type: 'string' },
      },
      allowPositionals: true,
    });
    const unknown = positionals.find((name) => benches.every((bench) => bench.name !== name));
    if (unknown !== undefined) throw new Error(`there is no bench ${unknown}`);
    chosen = positionals.length === 0 ? benches : benches.filter(({ name }) => positionals.includes(name));
    json = values.json;
    options = {
      quick: values.quick,
      only: values.only.split(',').filter((part) => part !== ''),
      ...(values.rounds !== undefined && { rounds: countOf(values.rounds) }),
      ...(values.whole !== undefined && { whole: countOf(values.whole) }),
    };
  } catch (error) {
    terminal.error(`${describeError(error)}; ${usage}`);
    return 2;
  }
  const machine = thisMachine();
  if (!json) terminal.lines([machineLine(machine), '']);
  const outcomes: Outcome[] = [];
  for (const bench of chosen) {
    const outcome = await runBench(bench, options, (line) => terminal.error(line));
    outcomes.push(outcome);
    if (!json) show(outcome, terminal);
  }
  if (json) terminal.lines([JSON.stringify(documentOf(machine, outcomes), null, 2)]);
  return outcomes.some(({ failed }) => failed !== undefined) ? 1 : 0;
}

const { stdout, stderr, env } = process;
process.exitCode = await main(process.argv.slice(2), new Terminal({ stdout, stderr, env, nowMs: () => Date.now() }));
