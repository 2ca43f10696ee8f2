import type { AuthorityDocument } from '../../admin/documents.ts';
import { renderTable, wrap } from '../table.ts';
import type { View } from '../terminal.ts';
import { span } from '../words.ts';
import { compare } from './hosts.ts';

const shownFingerprint = 16;

/** The roots, what a replacement waits for, and the certificates of hosts, by their names. */
export function authorityLines(document: AuthorityDocument, view: View): string[] {
  const { host, phase, waitingFor, roots, hosts } = document;
  const left = (until: string): string => {
    const ms = Date.parse(until) - view.nowMs;
    return ms > 0 ? `in ${span(ms)}` : `${span(-ms)} ago`;
  };
  const lines = [` authority on ${host}, certificates for ${span(document.certificateLifeMs)}`];
  for (const { fingerprint, state, until } of roots) {
    const word = { issuing: 'issues', next: 'is announced, and issues next', old: 'is still believed' }[state];
    lines.push(` root ${fingerprint.slice(0, shownFingerprint)} ${word}; ends ${left(until)}`);
  }
  if (phase !== 'none') {
    const what = phase === 'announcing' ? 'hosts hear of the new root' : 'hosts get certificates of the new root';
    const waits = waitingFor.length === 0 ? '' : `; waits for ${waitingFor.join(', ')}`;
    lines.push(...wrap(`the root is being replaced: ${what}${waits}`, view.width - 1).map((line) => ` ${line}`));
  }
  // By name: certificates are renewed all the time, and rows are looked for where they were.
  const sorted = [...hosts].sort((a, b) => compare(a.name, b.name) || compare(a.id, b.id));
  const rows = sorted.map((each) => ({
    cells: [
      each.name,
      each.address,
      each.alive ? 'alive' : 'away',
      each.rootState === 'issuing'
        ? each.root.slice(0, shownFingerprint)
        : { text: `${each.rootState} root`, colour: 'yellow' as const },
      { text: left(each.until), colour: Date.parse(each.until) < view.nowMs ? ('red' as const) : undefined },
      each.serial.slice(0, shownFingerprint),
    ],
  }));
  const columns = [
    { title: 'HOST', cut: 'middle', least: 12 },
    { title: 'ADDRESS', cut: 'middle', least: 15 },
    { title: 'STATE' },
    { title: 'ROOT' },
    { title: 'ENDS' },
    { title: 'SERIAL', optional: true },
  ] as const;
  return [...lines, ...renderTable(columns, rows, view)];
}
