import type { ServiceDocument, ServicesDocument } from '../../admin/documents.ts';
import { percent } from '../../splits/words.ts';
import { renderTable, wrap } from '../table.ts';
import type { Colour, View } from '../terminal.ts';
import { plural, span } from '../words.ts';
import { compare } from './hosts.ts';

interface Judged {
  readonly service: ServiceDocument;
  readonly rank: number;
  readonly colour: Colour;
  readonly state: string;
}

/** Services, those in trouble first and those without any instance last, then what this host refused to register and why. */
export function serviceLines({ services, refused }: ServicesDocument, view: View): string[] {
  const { style } = view;
  const judged = services
    .map((service) => judge(service, view.nowMs))
    .sort((a, b) => a.rank - b.rank || compare(a.service.name, b.service.name));
  const symbols = [style.bad, style.bad, style.good, style.note];
  const rows = judged.map(({ service, rank, colour, state }) => ({
    cells: [
      { text: style.rich ? (symbols[rank] ?? '') : '', colour },
      service.name,
      `${service.port}/${service.protocol}`,
      service.vip ?? '-',
      `${service.usable} of ${service.instances.length}`,
      service.balance,
      { text: state + splitText(service), colour: rank === 2 ? undefined : colour },
    ],
    below: [
      ...service.faults.map((fault) => ({ text: `${style.bad} ${fault}`, colour: 'red' as const })),
      ...unreachableOf(service).map((why) => ({
        text: `${style.note} not from this host: ${why}`,
        colour: 'yellow' as const,
      })),
    ],
  }));
  const columns = [
    { title: '' },
    { title: 'SERVICE', cut: 'middle', least: 12 },
    { title: 'PORT' },
    { title: 'ADDRESS' },
    { title: 'USABLE', align: 'right' },
    { title: 'BALANCE', cut: 'end', least: 17, optional: true },
    { title: 'STATE', cut: 'end', least: 16 },
  ] as const;
  const table = services.length === 0 ? [' no services are registered yet'] : renderTable(columns, rows, view);
  return [...table, ...refusalLines(refused, view)];
}

/** `; split canary 5 %`: the sides that are not the heaviest. */
function splitText({ split = {}, takenBack }: ServiceDocument): string {
  const weights = Object.entries(split).sort(([, a], [, b]) => b - a);
  if (weights.length === 0) return '';
  if (takenBack !== undefined) return `; ${takenBack} taken back`;
  const sum = weights.reduce((total, [, weight]) => total + weight, 0);
  const [first, ...others] = weights.map(([tag, weight]) => `${tag} ${percent(weight / sum)}`);
  return `; split ${others.length === 0 ? first : others.join(', ')}`;
}

/** Why this host can dial none of the usable instances, the first one's reason; empty when it can. */
function unreachableOf({ usable, usableHere, instances }: ServiceDocument): string[] {
  if (usable === 0 || usableHere !== 0) return [];
  return instances.flatMap(({ unreachable }) => unreachable || []).slice(0, 1);
}

function judge(service: ServiceDocument, nowMs: number): Judged {
  const counts = new Map<string, number>();
  const count = (word: string): void => void counts.set(word, (counts.get(word) ?? 0) + 1);
  for (const instance of service.instances) {
    if (instance.status !== 'passing') count(instance.status);
    if (instance.draining) count('draining');
  }
  const troubles = [...counts].map(([word, number]) => `${number} ${word}`).join(', ');
  if (service.instances.length === 0) {
    const state = 'no instances';
    return service.faults.length > 0
      ? { service, rank: 1, colour: 'yellow', state }
      : { service, rank: 3, colour: 'dim', state };
  }
  if (service.usable === 0)
    return { service, rank: 0, colour: 'red', state: `nothing usable: ${troubles || 'see instances'}` };
  // A sidecar of an earlier version does not tell what it can dial, and knows no brake.
  const { usableHere = service.usable } = service;
  if (usableHere === 0) {
    const state = `${troubles === '' ? '' : `${troubles}; `}none usable from here`;
    return { service, rank: 1, colour: 'yellow', state };
  }
  const here = usableHere < service.usable ? `; usable from here: ${usableHere}` : '';
  if (service.brake) {
    const state = `${troubles}: still used, for at most ${span(Date.parse(service.brake.until) - nowMs)}${here}`;
    return { service, rank: 1, colour: 'yellow', state };
  }
  if (service.faults.length > 0 || service.usable < service.instances.length) {
    return { service, rank: 1, colour: 'yellow', state: (troubles || plural(service.faults.length, 'fault')) + here };
  }
  return { service, rank: 2, colour: 'green', state: (troubles || 'all passing') + here };
}

function refusalLines(refused: ServicesDocument['refused'], view: View): string[] {
  if (refused.length === 0) return [];
  const { style } = view;
  const lines = ['', ` refused on this host: ${refused.length}`];
  for (const { source, service, reason, hint } of refused) {
    const what = `${source}${service === undefined ? '' : ` (${service})`}: ${reason}${hint === '' ? '' : `; ${hint}`}`;
    const [first = '', ...rest] = wrap(what, view.width - 6);
    lines.push(` ${style.paint(style.bad, 'red')} ${first}`, ...rest.map((line) => `     ${line}`));
  }
  return lines;
}
