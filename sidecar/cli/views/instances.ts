import type { InstanceDocument, InstancesDocument } from '../../admin/documents.ts';
import { type Cell, cutText, renderTable } from '../table.ts';
import type { Colour, View } from '../terminal.ts';
import { plural, since } from '../words.ts';
import { compare } from './hosts.ts';
import { pictureLines } from './picture.ts';

const rank: Readonly<Record<string, number>> = { critical: 0, lost: 1, starting: 2, warning: 3, passing: 5 };
const colours: Readonly<Record<string, Colour>> = {
  critical: 'red',
  lost: 'red',
  starting: 'yellow',
  warning: 'yellow',
  passing: 'green',
};

/** Instances, those in trouble first; of several services when `withService`. */
export function instanceLines(document: InstancesDocument, view: View, withService: boolean): string[] {
  const { instances, picture } = document;
  const below = [...ungrantedLines(document, view), ...pictureLines(picture, view)];
  if (instances.length === 0) return [' no instances', ...below];
  const { style } = view;
  const sorted = [...instances].sort(
    (a, b) => rankOf(a) - rankOf(b) || compare(a.service, b.service) || compare(a.id, b.id),
  );
  const rows = sorted.map((instance) => {
    const colour = colours[instance.status] ?? 'red';
    const usable = instance.status === 'passing' || instance.status === 'warning';
    const symbol = usable ? (instance.draining || instance.unreachable ? style.note : style.good) : style.bad;
    const remark = instance.draining ? ', draining' : instance.stillUsed ? ', still used' : '';
    return {
      cells: [
        { text: style.rich ? symbol : '', colour },
        withService ? instance.service : '',
        { text: `${instance.status}${remark}`, colour },
        instance.id,
        addressText(instance),
        instance.since === undefined ? '' : since(instance.since, view.nowMs),
        instance.source,
        extras(instance),
      ],
      below: [...unreachableOf(instance, view), ...outputOf(instance, view)],
    };
  });
  const columns = [
    { title: '' },
    { title: 'SERVICE', cut: 'middle', least: 8 },
    { title: 'STATUS' },
    // Ids are there to be copied: they are cut only when they are very long.
    { title: 'ID', cut: 'middle', least: 40 },
    { title: 'ADDRESS', cut: 'middle', least: 21 },
    { title: 'SINCE' },
    { title: 'SOURCE', cut: 'middle', least: 12, optional: true },
    { title: 'TAGS', cut: 'end', least: 8, optional: true },
  ] as const;
  return [...renderTable(columns, rows, view), ...below];
}

/** What hosts offer without the right to: `web-2 offers db without a grant`. */
function ungrantedLines({ ungranted = [] }: InstancesDocument, { style }: View): string[] {
  const counts = new Map<string, number>();
  for (const { host, service } of ungranted) {
    const text = `${host} offers ${service} without a grant`;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const lines = [...counts].sort(([a], [b]) => compare(a, b));
  return lines.map(
    ([text, count]) => ` ${style.paint(style.note, 'yellow')} ${text}: ${plural(count, 'instance')} left out`,
  );
}

/** Why this host cannot dial it. A sidecar of an earlier version does not tell. */
function unreachableOf({ unreachable }: InstanceDocument, { style }: View): Cell[] {
  return unreachable ? [{ text: `${style.note} not from this host: ${unreachable}`, colour: 'yellow' }] : [];
}

/** The last check's output: in full where it matters, else as much as fits on a line. */
function outputOf(instance: InstanceDocument, view: View): Cell[] {
  if (instance.output === '') return [];
  const colour = instance.status === 'passing' ? 'dim' : colours[instance.status];
  const line = `${view.style.note} ${instance.output}`;
  const text = instance.status === 'passing' ? cutText(line, view.width - 5, 'end', view.style) : line;
  return [{ text, colour }];
}

function rankOf(instance: InstanceDocument): number {
  const status = rank[instance.status] ?? 0;
  return status === 5 && instance.draining ? 4 : status;
}

/** What this host dials; where it cannot, what the instance's own host does. */
function addressText({ address, port, protocol, dial }: InstanceDocument): string {
  const own = `${address.includes(':') ? `[${address}]` : address}:${port}`;
  return `${dial ?? own}${protocol === 'udp' ? '/udp' : ''}`;
}

/** Tags, and a weight that is not the usual one. */
function extras(instance: InstanceDocument): string {
  const tags = instance.tags.join(',');
  return instance.weight === 1 ? tags : `${tags}${tags === '' ? '' : ' '}weight=${instance.weight}`;
}
