import type { HostDocument, HostsDocument } from '../../admin/documents.ts';
import { type Cell, renderTable, wrap } from '../table.ts';
import type { View } from '../terminal.ts';
import { plural, span } from '../words.ts';
import { pictureLines } from './picture.ts';

/** Hosts, lost ones first. */
export function hostLines({ hosts, picture }: HostsDocument, view: View): string[] {
  if (hosts.length === 0) return [' no hosts are known yet'];
  const sorted = [...hosts].sort((a, b) => Number(a.alive) - Number(b.alive) || compare(a.name, b.name));
  const { style } = view;
  // A sidecar of an earlier version knows no zones.
  const zoned = hosts.some(({ zone }) => zone);
  const certified = hosts.some(({ certificateUntil }) => certificateUntil !== undefined);
  const rows = sorted.map((host) => ({
    cells: [
      { text: style.rich ? (host.alive ? style.good : style.bad) : '', colour: host.alive ? 'green' : 'red' } as const,
      host.name,
      host.address === '' ? '-' : host.address,
      stateOf(host),
      String(host.instances),
      ...(certified ? [certificateOf(host, view)] : []),
      ...(zoned ? [host.zone ?? '-'] : []),
      host.version,
      host.id,
    ],
  }));
  const columns = [
    { title: '' },
    { title: 'HOST', cut: 'middle', least: 12 },
    { title: 'ADDRESS', cut: 'middle', least: 21 },
    { title: 'STATE' },
    { title: 'INSTANCES', align: 'right' },
    ...(certified ? [{ title: 'CERTIFICATE' } as const] : []),
    ...(zoned ? [{ title: 'ZONE', cut: 'end', least: 6, optional: true } as const] : []),
    { title: 'VERSION', cut: 'end', optional: true },
    { title: 'ID', cut: 'end', least: 16, optional: true },
  ] as const;
  const lost = hosts.filter((host) => !host.alive && host.revokedAt === undefined).length;
  const summary = lost > 0 ? wrap(`${plural(lost, 'host')} lost: is the sidecar there running?`, view.width - 1) : [];
  return [...renderTable(columns, rows, view), ...summary.map((line) => ` ${line}`), ...pictureLines(picture, view)];
}

function stateOf(host: HostDocument): Cell {
  if (host.revokedAt !== undefined) return { text: 'revoked', colour: 'red' };
  if (!host.alive) return { text: 'lost', colour: 'red' };
  const state = host.self ? 'this host' : 'alive';
  return host.authority ? `${state}, authority` : state;
}

/** How long its certificate holds. */
function certificateOf({ certificateUntil, certificateLate }: HostDocument, { nowMs }: View): Cell {
  if (certificateUntil === undefined) return '-';
  const leftMs = Date.parse(certificateUntil) - nowMs;
  if (leftMs <= 0) return { text: `ended ${span(-leftMs)} ago`, colour: 'red' };
  const text = `for ${span(leftMs)}`;
  return certificateLate === true ? { text, colour: 'yellow' } : text;
}

export function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
