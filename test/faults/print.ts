import { type Column, renderTable } from '../../sidecar/cli/table.ts';
import { Terminal } from '../../sidecar/cli/terminal.ts';
import { FaultMesh, type FaultMeshOptions, type StoreKind } from './fault-mesh.ts';
import { type FaultRow, faultsOf, runFaults, wronglyFailed } from './fault-table.ts';

const columns: readonly Column[] = [
  { title: 'fault', cut: 'end', least: 30 },
  { title: 'asked', align: 'right' },
  { title: 'failed', align: 'right' },
  { title: 'in flight', align: 'right' },
  { title: 'slowest', align: 'right' },
  { title: 'longest gap', align: 'right' },
  { title: 'whole again', align: 'right' },
];

/**
 * The fault table by hand: brings a testbed up, makes every fault under traffic, prints a row for each and takes the
 * testbed down. `downMs`: how long the whole store is gone.
 */
export async function printFaults(
  kind: StoreKind,
  downMs: number,
  options: Pick<FaultMeshOptions, 'way' | 'certificateLife'> & { readonly only?: RegExp },
): Promise<number> {
  const { stdout, stderr, env } = process;
  const terminal = new Terminal({ stdout, stderr, env, nowMs: () => Date.now() });
  const ends: (() => void | Promise<void>)[] = [];
  const t = { teardown: (end: () => void | Promise<void>): void => void ends.push(end) };
  const rows: FaultRow[] = [];
  try {
    const say = (line: string): void => terminal.error(line);
    const mesh = await FaultMesh.up(t, kind, { ...options, say });
    const faults = faultsOf(mesh, downMs).filter(({ name }) => options.only?.test(name) !== false);
    await runFaults(mesh, faults, (row) => {
      rows.push(row);
      say(`${rows.length} of ${faults.length}: ${row.fault}`);
    });
  } finally {
    for (const end of ends.reverse()) await end();
  }
  terminal.lines(renderTable(columns, rows.map(cellsOf), terminal.view()));
  for (const { fault, problems } of rows) if (problems.length > 0) terminal.lines([`${fault}: ${problems.join(', ')}`]);
  return rows.some((row) => wronglyFailed(row) > 0) ? 1 : 0;
}

function cellsOf(row: FaultRow): { cells: string[] } {
  const ms = (value: number): string => (value < 1000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(1)} s`);
  const counts = [row.asked, row.failed, row.inFlight].map(String);
  return { cells: [row.fault, ...counts, ms(row.slowestMs), ms(row.longestGapMs), ms(row.wholeAgainMs)] };
}
