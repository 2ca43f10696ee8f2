import type { AuthorityDocument } from '../../admin/documents.ts';
import { type Cell, renderTable, wrap } from '../table.ts';
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
  const tell = (text: string): void => {
    lines.push(...wrap(text, view.width - 1).map((line) => ` ${line}`));
  };
  let since: string | undefined;
  for (const { fingerprint, state, until, since: begun } of roots) {
    const word = { issuing: 'issues', next: 'is announced, and issues next', old: 'is still believed' }[state];
    since ??= begun;
    lines.push(` root ${fingerprint.slice(0, shownFingerprint)} ${word}; ends ${left(until)}`);
  }
  if (phase !== 'none') {
    const what = phase === 'announcing' ? 'hosts hear of the new root' : 'hosts get certificates of the new root';
    const waits = waitingFor.length === 0 ? '' : `; waits for ${waitingFor.join(', ')}`;
    tell(`the root is being replaced: ${what}${waits}`);
    tell('backups from before are of no use then: when it is done, save it again (legate ca backup)');
  } else if (since !== undefined) {
    tell(`backups from before ${since}, when the root was replaced, are of no use any more (legate ca backup)`);
  }
  // By name: certificates are renewed all the time, and rows are looked for where they were.
  const isRevoked = (host: (typeof hosts)[number]): boolean => host.revokedAt !== undefined;
  const sorted = [...hosts].sort(
    (a, b) => compare(a.name, b.name) || Number(isRevoked(a)) - Number(isRevoked(b)) || compare(a.id, b.id),
  );
  const rows = sorted.map((each) => ({
    cells: [
      each.name,
      each.address,
      isRevoked(each) ? { text: 'revoked', colour: 'red' as const } : each.alive ? 'alive' : 'away',
      rootOf(each),
      { text: left(each.until), colour: Date.parse(each.until) < view.nowMs ? ('red' as const) : undefined },
      each.serial.slice(0, shownFingerprint),
      each.id,
    ],
  }));
  const columns = [
    { title: 'HOST', cut: 'middle', least: 12 },
    { title: 'ADDRESS', cut: 'middle', least: 15 },
    { title: 'STATE' },
    { title: 'ROOT' },
    { title: 'ENDS' },
    { title: 'SERIAL', optional: true },
    { title: 'ID', optional: true },
  ] as const;
  return [...lines, ...renderTable(columns, rows, view)];
}

/** Its root by the fingerprint, or why it is not the present one. Of no matter for a host that nobody believes. */
function rootOf({ root, rootState, revokedAt }: AuthorityDocument['hosts'][number]): Cell {
  if (rootState === 'issuing' || revokedAt !== undefined) return root.slice(0, shownFingerprint);
  return { text: rootState === 'old' ? 'old root' : 'dropped root', colour: 'yellow' };
}
