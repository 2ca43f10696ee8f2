import { isDeepStrictEqual } from 'node:util';
import type { Conditions } from '../../src/base/conditions.ts';
import type { Change, Observable } from '../../src/base/feed.ts';
import type { DesiredInstance, Refusal } from '../../src/model/instance.ts';
import { type CallerGroup, groupOf } from './caller-groups.ts';
import { type Container, type Declarations, shortId } from './container.ts';
import { type Consumer, type Desired, type DesiredContext, desiredOf } from './desired.ts';
import { sharedNetworkOf } from './place.ts';
import { Reports } from './reports.ts';
import { ServiceNames } from './service-names.ts';

/** A running container and what its image declares (undefined: not to be looked at, or not known). */
export interface Subject {
  readonly container: Container;
  readonly image: Declarations | undefined;
}

export interface InventoryOptions {
  readonly expose: DesiredContext['expose'];
  readonly advertise: string;
  readonly surroundings: () => Pick<DesiredContext, 'networks' | 'topology'>;
  readonly isDraining: (id: string) => boolean;
  readonly onChange: (change: Change<DesiredInstance>) => void;
  /** Who calls from one network namespace has changed; undefined: nobody any more. Called in the turn of the change. */
  readonly onCaller?: (id: string, group: CallerGroup | undefined) => void;
  readonly conditions: Conditions;
}

interface Entry {
  readonly subject: Subject;
  readonly desired: Desired;
  /** What was published of it, by name. */
  readonly published: ReadonlyMap<string, DesiredInstance>;
  readonly refusals: readonly Refusal[];
  /** Names that it wants and another container holds. */
  readonly wanting: ReadonlySet<string>;
}

/** `--net container:x` of a container that does so itself, at most this deep. */
const maxSharingDepth = 4;

/**
 * The running containers and what has been published of them. A change of one container costs that container, those
 * that share its network, and those that wait for a name it gives up. Everything is synchronous.
 */
export class Inventory {
  readonly #options: InventoryOptions;
  readonly #entries = new Map<string, Entry>();
  /** Instance name -> the container that holds it. */
  readonly #holders = new Map<string, string>();
  /** Instance name -> containers that want it too. */
  readonly #wanting = new Map<string, Set<string>>();
  /** The x of `--net container:x` -> those that say so. */
  readonly #sharers = new Map<string, Set<string>>();
  /** What was told of callers, by the container that has the network, and of which it may have changed. */
  readonly #groups = new Map<string, CallerGroup>();
  readonly #touchedGroups = new Set<string>();
  readonly #names: ServiceNames;
  readonly #reports: Reports;
  #puts = new Map<string, DesiredInstance>();
  #deletes = new Set<string>();
  #loaded = false;
  #revision = 0;

  constructor(options: InventoryOptions) {
    this.#options = options;
    this.#names = new ServiceNames(options.conditions);
    this.#reports = new Reports(options.conditions);
  }

  get refusals(): Observable<readonly Refusal[]> {
    return this.#reports.refusals;
  }

  get containers(): number {
    return this.#entries.size;
  }

  get instances(): number {
    return this.#holders.size;
  }

  /** Counts what was published; the same number means that nothing changed. */
  get revision(): number {
    return this.#revision;
  }

  get isLoaded(): boolean {
    return this.#loaded;
  }

  ids(): string[] {
    return [...this.#entries.keys()];
  }

  get(id: string): Container | undefined {
    return this.#entries.get(id)?.subject.container;
  }

  /** All running containers, each with who it is when it calls. */
  consumers(): { readonly container: Container; readonly consumer: Consumer }[] {
    return [...this.#entries.values()].map(({ subject, desired }) => {
      return { container: subject.container, consumer: desired.consumer };
    });
  }

  /**
   * The name of the container that has the network of the one whose id begins so; undefined unless exactly one such
   * container runs.
   */
  networkNameOf(idStart: string): string | undefined {
    const [id, ...others] = [...this.#entries.keys()].filter((each) => each.startsWith(idStart));
    const container = id === undefined || others.length > 0 ? undefined : this.get(id);
    return container && this.#networkOwner(container)?.name;
  }

  /** Takes over what is known of a running container. */
  put(subject: Subject): void {
    const { container } = subject;
    const before = this.#entries.get(container.id);
    this.#share(container.id, before?.subject.container, container);
    this.#entries.set(container.id, this.#evaluate(subject, before));
    this.#followUp([container.id, container.name]);
    this.#publish();
  }

  /** The container does not run any more. */
  remove(id: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#entries.delete(id);
    this.#share(id, entry.subject.container, undefined);
    this.#names.update(id, entry.desired.written, []);
    for (const name of entry.published.keys()) this.#release(name, id);
    for (const name of entry.wanting) this.#wanting.get(name)?.delete(id);
    this.#reports.update(id, entry.refusals, [], []);
    this.#touchGroup(entry.subject.container);
    this.#followUp([id, entry.subject.container.name]);
    this.#publish();
  }

  /** A container has been taken off a network: who has its address there now is not known before it is inspected. */
  disconnected(id: string, networkId: string): void {
    const group = this.#groups.get(id);
    if (group === undefined) return;
    const addresses = group.addresses.filter((address) => address.networkId !== networkId);
    if (addresses.length === group.addresses.length) return;
    this.#groups.set(id, { ...group, addresses });
    this.#options.onCaller?.(id, { ...group, addresses });
  }

  /** Whether it is draining has changed. */
  refresh(id: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#entries.set(id, this.#settle(entry.subject, entry.desired, entry));
    this.#publish();
  }

  /** The surroundings have changed: everything is worked out anew, and what differs is published. */
  refreshAll(): void {
    for (const [id, entry] of [...this.#entries]) this.#entries.set(id, this.#evaluate(entry.subject, entry));
    this.#followUp([]);
    this.#publish();
  }

  /** Everything that runs is known now: publishes it all, and from then on differences. */
  load(): void {
    if (this.#loaded) return;
    this.#loaded = true;
    this.#puts.clear();
    this.#deletes.clear();
    this.#revision += 1;
    const items = [...this.#entries.values()].flatMap((entry) => [...entry.published.values()]);
    this.#options.onChange({ kind: 'reset', items, revision: String(this.#revision) });
  }

  #evaluate(subject: Subject, before: Entry | undefined): Entry {
    const { expose, advertise, surroundings } = this.#options;
    const networkOwner = this.#networkOwner(subject.container);
    const context: DesiredContext = { expose, advertise, image: subject.image, networkOwner, ...surroundings() };
    const desired = desiredOf(subject.container, context);
    this.#names.update(subject.container.id, before?.desired.written ?? [], desired.written);
    this.#touchGroup(subject.container);
    return this.#settle(subject, desired, before);
  }

  /** Claims the names that are wanted, gives up the others, and collects what differs from before. */
  #settle(subject: Subject, desired: Desired, before: Entry | undefined): Entry {
    const { id } = subject.container;
    const published = new Map<string, DesiredInstance>();
    const wanting = new Set<string>();
    const refusals = [...desired.refusals];
    const draining = this.#options.isDraining(id);
    for (const instance of desired.instances) {
      const holder = this.#holders.get(instance.name);
      if (holder !== undefined && holder !== id) {
        wanting.add(instance.name);
        this.#wanting.set(instance.name, (this.#wanting.get(instance.name) ?? new Set()).add(id));
        refusals.push(this.#takenName(instance, holder));
        continue;
      }
      const wanted = draining ? { ...instance, draining } : instance;
      const old = before?.published.get(instance.name);
      const same = old !== undefined && isSame(old, wanted);
      published.set(instance.name, same ? old : wanted);
      this.#holders.set(instance.name, id);
      if (!same) this.#put(wanted);
    }
    for (const name of before?.published.keys() ?? []) if (!published.has(name)) this.#release(name, id);
    for (const name of before?.wanting ?? []) if (!wanting.has(name)) this.#wanting.get(name)?.delete(id);
    const reported = this.#reports.update(id, before?.refusals ?? [], refusals, desired.notes);
    return { subject, desired, published, refusals: reported, wanting };
  }

  #takenName(instance: DesiredInstance, holder: string): Refusal {
    const other = this.get(holder)?.name ?? shortId(holder);
    const reason = `the instance name ${instance.name} is taken by docker:${other}`;
    return {
      source: instance.source,
      service: instance.service,
      reason,
      hint: 'Give each container a SERVICE_ID of its own.',
    };
  }

  #put(instance: DesiredInstance): void {
    this.#deletes.delete(instance.name);
    this.#puts.set(instance.name, instance);
  }

  #release(name: string, id: string): void {
    if (this.#holders.get(name) !== id) return;
    this.#holders.delete(name);
    this.#puts.delete(name);
    this.#deletes.add(name);
  }

  /** Those whose network is that of a changed container, and those that wait for a name that is free now. */
  #followUp(changed: readonly string[]): void {
    const sharersOf = (refs: readonly string[]): string[] => refs.flatMap((ref) => [...(this.#sharers.get(ref) ?? [])]);
    const ids = new Set(sharersOf(changed));
    for (let depth = 0; depth < maxSharingDepth && ids.size > 0; depth += 1) {
      for (const id of [...ids]) {
        const entry = this.#entries.get(id);
        if (entry !== undefined) this.#entries.set(id, this.#evaluate(entry.subject, entry));
        ids.delete(id);
        for (const next of sharersOf([id, this.get(id)?.name ?? id])) if (!changed.includes(next)) ids.add(next);
      }
    }
    for (const name of [...this.#deletes]) {
      for (const id of this.#wanting.get(name) ?? []) {
        const entry = this.#entries.get(id);
        if (entry !== undefined) this.#entries.set(id, this.#settle(entry.subject, entry.desired, entry));
      }
      if (this.#wanting.get(name)?.size === 0) this.#wanting.delete(name);
    }
  }

  #touchGroup(container: Container): void {
    if (this.#options.onCaller === undefined) return;
    const owner = this.#networkOwner(container);
    if (owner !== undefined) this.#touchedGroups.add(owner.id);
  }

  #publishGroups(): void {
    for (const id of this.#touchedGroups) {
      const before = this.#groups.get(id);
      const owner = this.get(id);
      const { networks } = this.#options.surroundings();
      const after = owner === undefined ? undefined : groupOf(owner, this.#consumersWith(owner), networks);
      if (after === undefined) this.#groups.delete(id);
      else this.#groups.set(id, after);
      if (!isDeepStrictEqual(before, after)) this.#options.onCaller?.(id, after);
    }
    this.#touchedGroups.clear();
  }

  /** The consumers of all containers that have the network of `owner`, by the containers' names. */
  #consumersWith(owner: Container): Consumer[] {
    const ids = new Set([owner.id]);
    for (let depth = 0, size = 0; depth < maxSharingDepth && size < ids.size; depth += 1) {
      size = ids.size;
      for (const id of [...ids]) {
        for (const ref of [id, this.get(id)?.name ?? id])
          for (const next of this.#sharers.get(ref) ?? []) ids.add(next);
      }
    }
    const entries = [...ids].flatMap((id) => this.#entries.get(id) ?? []);
    entries.sort((a, b) => (a.subject.container.name < b.subject.container.name ? -1 : 1));
    return entries.map(({ desired }) => desired.consumer);
  }

  #publish(): void {
    this.#publishGroups();
    if (!this.#loaded || (this.#puts.size === 0 && this.#deletes.size === 0)) return;
    const puts = [...this.#puts.values()];
    const deletes = [...this.#deletes];
    this.#puts = new Map();
    this.#deletes = new Set();
    this.#revision += 1;
    this.#options.onChange({ kind: 'delta', puts, deletes, revision: String(this.#revision) });
  }

  #networkOwner(container: Container): Container | undefined {
    let owner: Container | undefined = container;
    for (let depth = 0; depth < maxSharingDepth && owner !== undefined; depth += 1) {
      const shared = sharedNetworkOf(owner);
      if (shared === undefined) return owner;
      owner = this.get(shared) ?? this.#byName(shared);
    }
    return undefined;
  }

  #byName(name: string): Container | undefined {
    for (const { subject } of this.#entries.values()) if (subject.container.name === name) return subject.container;
    return undefined;
  }

  #share(id: string, before: Container | undefined, after: Container | undefined): void {
    const [old, now] = [before, after].map((container) =>
      container === undefined ? undefined : sharedNetworkOf(container),
    );
    if (old === now) return;
    if (old !== undefined) {
      this.#sharers.get(old)?.delete(id);
      if (this.#sharers.get(old)?.size === 0) this.#sharers.delete(old);
    }
    if (now !== undefined) this.#sharers.set(now, (this.#sharers.get(now) ?? new Set()).add(id));
  }
}

/** Whether two desires are the same. What a check last printed is not worth a change while it says the same. */
function isSame(before: DesiredInstance, after: DesiredInstance): boolean {
  if (before.reported?.status !== after.reported?.status) return false;
  const { reported: _before, ...restBefore } = before;
  const { reported: _after, ...restAfter } = after;
  return isDeepStrictEqual(restBefore, restAfter);
}
