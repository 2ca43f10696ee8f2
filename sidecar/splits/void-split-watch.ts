import type { Conditions } from '../../src/base/conditions.ts';
import type { Observable } from '../../src/base/feed.ts';
import { emptySnapshot, type Service, type Snapshot } from '../../src/catalog/snapshot.ts';
import type { RouteRule, Weights } from '../../src/model/routes.ts';

/** Tags that one sentence names. */
const maxTagsNamed = 4;

const condition = (service: string): string => `split.void.${service}`;

/**
 * Says which splits, of services and of their routes, have no usable instance with any tag that has a weight, though the
 * service has others: requests then go to all of them, whatever their tags. So too with mirrors to a tag, which copy
 * nothing then. A service without any usable instance is told of elsewhere. Costs what changed.
 */
export function watchVoidSplits(snapshots: Observable<Snapshot>, conditions: Conditions): () => void {
  let seen = emptySnapshot;
  /** Services whose routes look at tags of other services, with the names of these. */
  const lookingAt = new Map<string, ReadonlySet<string>>();
  const look = (snapshot: Snapshot): void => {
    const due = new Set<string>();
    for (const { key, after } of snapshot.services.changesSince(seen.services)) {
      due.add(key);
      const others = new Set((after?.routes ?? []).flatMap((rule) => tagsOf(key, rule).map(({ of }) => of)));
      others.delete(key);
      if (others.size > 0) lookingAt.set(key, others);
      else lookingAt.delete(key);
    }
    const changed = [...due];
    for (const [name, others] of lookingAt) if (changed.some((each) => others.has(each))) due.add(name);
    for (const name of due) tell(name, snapshot);
    seen = snapshot;
  };
  const tell = (name: string, { services }: Snapshot): void => {
    const service = services.get(name);
    const faults = service === undefined ? [] : faultsOf(service, (other) => services.get(other));
    const [first, ...others] = faults;
    if (first === undefined) {
      conditions.clear(condition(name));
      return;
    }
    const more = others.length === 0 ? '' : `; and so with ${others.length} more of its routes`;
    const fields = { 'service.name': name };
    conditions.raise(condition(name), 'warning', `${name}: ${first.text}${more}`, first.hint, fields);
  };
  look(snapshots.value);
  return snapshots.subscribe(look);
}

interface Fault {
  readonly text: string;
  readonly hint: string;
}

function faultsOf(service: Service, find: (name: string) => Service | undefined): Fault[] {
  const { name, split = {}, routes = [], protocol } = service;
  // Nobody reads requests there.
  if (protocol === 'tcp' || protocol === 'udp') return [];
  const own: Fault[] = [];
  if (isVoid(service, split)) {
    const text = `no tag of its split has a usable instance (${tagsText(split)}): requests go to all instances`;
    own.push({ text, hint: `legate split ${name} shows which tags there are; set others, or end it with --off` });
  }
  const ofRoutes = routes.flatMap((rule, index) =>
    tagsOf(name, rule).flatMap(({ of, weights, isMirror }): Fault[] => {
      const other = find(of);
      if (other === undefined || !isVoid(other, weights)) return [];
      const what = `no instance of ${of} that is usable has what its route ${index + 1} asks for`;
      const then = isMirror ? 'nothing is copied' : `such requests go to all instances of ${of}`;
      const hint = `legate instances ${of} lists them; other routes: legate service set ${name} routes=@FILE`;
      return [{ text: `${what} (${tagsText(weights)}): ${then}`, hint }];
    }),
  );
  return [...own, ...ofRoutes];
}

/** The tags that a route looks at, and of which service. */
function tagsOf(
  name: string,
  { service = name, split, mirror }: RouteRule,
): { readonly of: string; readonly weights: Weights; readonly isMirror: boolean }[] {
  const { tag } = mirror ?? {};
  return [
    ...(split === undefined ? [] : [{ of: service, weights: split, isMirror: false }]),
    ...(tag === undefined ? [] : [{ of: mirror?.service ?? name, weights: { [tag]: 1 }, isMirror: true }]),
  ];
}

/** Whether none of the usable instances, of which there are some, has a tag with a weight. */
function isVoid({ usable }: Service, weights: Weights): boolean {
  const tags = weighted(weights);
  return tags.length > 0 && usable.length > 0 && !usable.some((each) => tags.some((tag) => each.tags.includes(tag)));
}

function weighted(weights: Weights): string[] {
  return Object.keys(weights).filter((tag) => (weights[tag] ?? 0) > 0);
}

function tagsText(weights: Weights): string {
  const tags = weighted(weights);
  const shown = tags.slice(0, maxTagsNamed).join(', ');
  return tags.length > maxTagsNamed ? `${shown} and ${tags.length - maxTagsNamed} more` : shown;
}
