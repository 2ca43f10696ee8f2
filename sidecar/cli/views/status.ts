import type { NameServerDocument, StatusDocument } from '../../admin/documents.ts';
import { wrap } from '../table.ts';
import type { Colour, View } from '../terminal.ts';
import { grouped, plural, since, span } from '../words.ts';

const labelWidth = 8;

/** The state of this host on one screen: about five lines, then what to do. */
export function statusLines(status: StatusDocument, view: View): string[] {
  return [
    ...headLine(status, view),
    ...field('store', storeText(status, view), view),
    ...field('here', hereText(status, view), view),
    ...field('names', namesText(status.names, view), view),
    ...field('links', linksText(status, view), view),
    ...todoLines(status, view),
  ];
}

function headLine({ host, mesh, version, uptimeMs }: StatusDocument, view: View): string[] {
  const parts = [host.name, `up ${span(uptimeMs)}`, `legate ${version}`, `mesh ${mesh}`, host.address];
  const lines = wrap(parts.join('   '), view.width - 1);
  return lines.map((line) => view.style.paint(` ${line}`, 'bold'));
}

/** A label and its text, wrapped beside it. */
function field(label: string, text: string, view: View, colour?: Colour): string[] {
  const lines = wrap(text, view.width - labelWidth - 1);
  return lines.map((line, index) => {
    const start = ` ${(index === 0 ? label : '').padEnd(labelWidth)}`;
    return start + view.style.paint(line, colour);
  });
}

function storeText({ store }: StatusDocument, view: View): string {
  const { style } = view;
  const { origin, ageMs } = store.snapshot;
  const picture =
    origin === 'none' ? 'nothing is known yet' : `snapshot ${span(ageMs)} old${origin === 'disk' ? ', from disk' : ''}`;
  if (store.state === 'connected') {
    return `${store.kind} ${style.good}${style.separator}revision ${grouped(store.revision)}${style.separator}${picture}`;
  }
  const problem = store.problem === null ? '' : `: ${store.problem}`;
  const going = origin === 'none' ? '' : '; names and links go on from it';
  return `${style.bad} ${store.kind} ${store.state} for ${since(store.since, view.nowMs)}${problem}; ${picture}${going}`;
}

function hereText({ here, docker }: StatusDocument, view: View): string {
  const { style } = view;
  const counts = [
    plural(here.containers, 'container'),
    plural(here.instances, 'instance'),
    plural(here.services, 'service'),
    plural(here.links, 'link'),
  ];
  const version = docker.version === null ? '' : ` ${docker.version}`;
  const problem = docker.problem === null ? '' : `: ${docker.problem}`;
  const good = docker.state === 'connected' || docker.state === 'off';
  const engine = good ? '' : `${style.bad} `;
  const state = docker.state === 'connected' ? ` ${style.good}` : ` ${docker.state}`;
  return [...counts, `${engine}Docker${version}${state}${problem}`].join(style.separator);
}

/** Which name servers answer; those that cannot come first and say why. */
function namesText(names: readonly NameServerDocument[], view: View): string {
  const { style } = view;
  if (names.length === 0) return 'no name server is configured';
  const text = ({ listen, purpose, state, problem }: NameServerDocument): string => {
    const where = purpose === 'configured' ? listen : `${listen} (${purpose})`;
    return state === 'up' ? `${where} ${style.good}` : `${style.bad} ${where}: ${problem ?? 'it does not listen'}`;
  };
  const down = names.filter((server) => server.state !== 'up');
  const up = names.filter((server) => server.state === 'up');
  return [...down, ...up].map(text).join(style.separator);
}

function linksText({ vip }: StatusDocument, view: View): string {
  const { style } = view;
  if (vip.state === 'on') return `virtual addresses in ${vip.range} ${style.good}`;
  const reason = vip.reason === null ? '' : `: ${vip.reason}`;
  return `${style.note} no virtual addresses${reason}; consumers need \`listen\` addresses`;
}

const colours = { error: 'red', warning: 'yellow', note: 'dim' } as const;

function todoLines({ todo }: StatusDocument, view: View): string[] {
  if (todo.length === 0) return field('todo', 'nothing, all is well', view, 'green');
  return todo.flatMap(({ severity, message, hint, since: begun, count }, index) => {
    const repeated = count > 1 ? `, ${grouped(String(count))} times` : '';
    const advice = hint === '' ? '' : ` → ${hint}`.replace('→', view.style.rich ? '→' : '->');
    const text = `${index + 1}: ${message} (for ${since(begun, view.nowMs)}${repeated})${advice}`;
    return field(index === 0 ? 'todo' : '', text, view, colours[severity]);
  });
}
