import type { Conditions } from '../base/conditions.ts';
import type { Change } from '../base/feed.ts';
import type { Metrics } from '../base/metrics.ts';
import { printable, truncate } from '../base/text.ts';
import { checkedInstance, instanceDocument } from '../catalog/codec.ts';
import type { Health, HealthDetails, HealthRunner } from '../health/runner.ts';
import type { Refresh } from '../health/ttl-check.ts';
import type { DesiredInstance, InstanceRecord } from '../model/instance.ts';

/** Where instances of this host come from. A record's `source` begins with this word. */
export type SourceName = 'docker' | 'file' | 'api' | 'external';

/** Instances that an operator drains at a time; beyond it the longest drained that is not registered is forgotten. */
const maxDrained = 10_000;

export interface LocalInstancesOptions {
  readonly conditions: Conditions;
  readonly metrics: Metrics;
  /** Makes the health runner that belongs to these instances; it is closed with them. */
  readonly health: (onChange: (name: string, health: Health) => void) => HealthRunner;
  /** This host's records of the last run. Those of a source stay until that source has told everything once. */
  readonly remembered: readonly InstanceRecord[];
  /** The sources that will report; what others left behind goes at once. */
  readonly sources: readonly SourceName[];
  /** Names that an operator drains, as `drained` had them when the last run ended. */
  readonly drained?: Iterable<string>;
  /** First a reset, then differences; called once per microtask turn, and only when something differs. */
  readonly onChange: (change: Change<InstanceRecord>) => void;
}

/** A wish that can be stored, and the record that it becomes before health and draining are known. */
interface Wish {
  readonly desired: DesiredInstance;
  readonly base: InstanceRecord;
}

/**
 * This host's instances as they are right now: what its sources want registered, with the health that is watched here and
 * the draining that operators ask for. Knows nothing of the store.
 */
export class LocalInstances {
  readonly #options: LocalInstancesOptions;
  readonly #health: HealthRunner;
  readonly #pending: Set<SourceName>;
  readonly #wishes = new Map<SourceName, Map<string, Wish>>();
  readonly #owner = new Map<string, SourceName>();
  readonly #remembered = new Map<string, InstanceRecord>();
  readonly #drained: Set<string>;
  readonly #records = new Map<string, InstanceRecord>();
  readonly #dirty = new Set<string>();
  readonly #deregistered = new Set<string>();
  #begun = false;
  #scheduled = false;
  #closed = false;

  constructor(options: LocalInstancesOptions) {
    this.#options = options;
    this.#pending = new Set(options.sources);
    this.#drained = new Set(options.drained);
    for (const source of options.sources) this.#wishes.set(source, new Map());
    for (const record of options.remembered) {
      const source = sourceOf(record);
      if (source === undefined || !this.#pending.has(source)) continue;
      this.#remembered.set(record.name, record);
      this.#dirty.add(record.name);
    }
    this.#health = options.health((name) => this.#touch(name));
    options.metrics.gauge('legate_registrar_instances_count', 'Instances of this host, by source.', ['source'], () =>
      options.sources.map((source) => [[source], this.#wishes.get(source)?.size ?? 0]),
    );
    this.#schedule();
  }

  /** Takes a change of one source's wishes. */
  apply(source: SourceName, change: Change<DesiredInstance>): void {
    const wishes = this.#wishes.get(source);
    if (wishes === undefined) throw new Error(`${source} is not among the sources`);
    const touched = new Set<string>();
    if (change.kind === 'reset') {
      this.#pending.delete(source);
      for (const [name, record] of this.#remembered) if (sourceOf(record) === source) touched.add(name);
      for (const name of wishes.keys()) touched.add(name);
      wishes.clear();
      const stillAsked = new Set(change.items.map(({ name }) => refusalId(source, name)));
      this.#options.conditions.clearPrefix(refusalId(source, ''), stillAsked);
    } else {
      for (const name of change.deletes) {
        wishes.delete(name);
        touched.add(name);
        this.#options.conditions.clear(refusalId(source, name));
      }
    }
    for (const desired of change.kind === 'reset' ? change.items : change.puts) {
      touched.add(desired.name);
      this.#take(source, wishes, desired);
    }
    for (const name of touched) this.#settle(name);
    if (change.kind === 'reset') for (const name of touched) this.#forget(name, source);
    this.#schedule();
  }

  /** Begins or ends an operator's drain; false when there is no such instance to begin with. */
  drain(name: string, on: boolean): boolean {
    const known = this.#owner.has(name) || this.#remembered.has(name);
    if (on && !known) return false;
    if (on) this.#drained.add(name);
    else this.#drained.delete(name);
    if (this.#drained.size > maxDrained) {
      for (const other of this.#drained) {
        if (this.#owner.has(other)) continue;
        this.#drained.delete(other);
        break;
      }
    }
    this.#touch(name);
    return known;
  }

  /** The names that operators drain, for the next run. They stay when an instance goes: a container may come back. */
  get drained(): ReadonlySet<string> {
    return this.#drained;
  }

  /** What its checks say and what it went through; undefined when it is not watched. */
  details(name: string): HealthDetails | undefined {
    return this.#health.details(name);
  }

  /**
   * The instance's own word on how it is. False when it has no check of kind ttl, undefined when there is no such
   * instance.
   */
  refresh(name: string, refresh: Refresh): boolean | undefined {
    return this.#owner.has(name) ? this.#health.refresh(name, refresh) : undefined;
  }

  /** The instance as it is now, also when its health keeps it out of the registry. */
  current(name: string): InstanceRecord | undefined {
    return this.#recordOf(name);
  }

  /** Ends all checks; resolves when nothing that they began is still going on. What they said last stays. */
  endChecks(): Promise<void> {
    return this.#health.close();
  }

  /** The instances of a service that are wanted here, also those that their health keeps out of the registry; sorted. */
  wanted(service: string): readonly string[] {
    const names = [...this.#owner.keys(), ...this.#remembered.keys()];
    return [...new Set(names)].filter((name) => this.#recordOf(name)?.service === service).sort();
  }

  /** What was last passed on. */
  records(): ReadonlyMap<string, InstanceRecord> {
    return this.#records;
  }

  /**
   * Whether a stored record that is not among ours may be deleted: not while the source it came from has yet to say what
   * it has.
   */
  mayDelete(record: InstanceRecord): boolean {
    const source = sourceOf(record);
    return source === undefined || !this.#pending.has(source);
  }

  close(): Promise<void> {
    this.#closed = true;
    return this.endChecks();
  }

  #take(source: SourceName, wishes: Map<string, Wish>, desired: DesiredInstance): void {
    const { checks: _checks, reported: _reported, suspended: _suspended, container: _container, ...fields } = desired;
    const checked = checkedInstance({ ...fields, status: 'starting', output: '' });
    const id = refusalId(source, desired.name);
    if (checked.ok) {
      wishes.set(desired.name, { desired, base: checked.value });
      this.#options.conditions.clear(id);
    } else {
      wishes.delete(desired.name);
      const what = `${shown(desired.source)} cannot be registered as ${shown(desired.name)}: ${checked.reason}`;
      this.#options.conditions.raise(id, 'warning', what, 'correct the labels or the entry that it comes from');
    }
  }

  /** Decides whose the name is and has its health watched. */
  #settle(name: string): void {
    const { sources, conditions } = this.#options;
    const candidates = sources.filter((source) => this.#wishes.get(source)?.has(name));
    const held = this.#owner.get(name);
    const owner = held !== undefined && candidates.includes(held) ? held : candidates[0];
    const wish = owner === undefined ? undefined : this.#wishes.get(owner)?.get(name);
    this.#dirty.add(name);
    if (candidates.length > 1) {
      const message = `${candidates.join(' and ')} both have an instance ${shown(name)}; ${owner} keeps the name`;
      conditions.raise(clashId(name), 'warning', message, 'give one of them another name');
    } else conditions.clear(clashId(name));
    if (owner === undefined || wish === undefined) {
      this.#owner.delete(name);
      this.#health.remove(name);
      return;
    }
    this.#owner.set(name, owner);
    const { address, port, checks, incarnation, reported, suspended, container } = wish.desired;
    const last = this.#records.get(name) ?? this.#remembered.get(name);
    const initial = last?.incarnation === incarnation ? { status: last.status, output: last.output } : undefined;
    this.#health.set(name, {
      address,
      port,
      checks,
      incarnation,
      ...(reported && { reported }),
      ...(suspended !== undefined && { suspended }),
      ...(container !== undefined && { container }),
      ...(initial && { initial }),
    });
  }

  #forget(name: string, source: SourceName): void {
    const record = this.#remembered.get(name);
    if (record !== undefined && sourceOf(record) === source) this.#remembered.delete(name);
  }

  #touch(name: string): void {
    this.#dirty.add(name);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      if (!this.#closed) this.#passOn();
    });
  }

  #passOn(): void {
    const puts: InstanceRecord[] = [];
    const deletes: string[] = [];
    for (const name of this.#dirty) {
      const before = this.#records.get(name);
      const after = this.#isDeregistered(name) ? undefined : this.#recordOf(name);
      if (after === undefined) {
        if (this.#records.delete(name)) deletes.push(name);
      } else if (before === undefined || textOf(before) !== textOf(after)) {
        this.#records.set(name, after);
        puts.push(after);
      }
    }
    this.#dirty.clear();
    if (!this.#begun) {
      this.#begun = true;
      this.#options.onChange({ kind: 'reset', items: [...this.#records.values()], revision: '' });
    } else if (puts.length + deletes.length > 0) {
      this.#options.onChange({ kind: 'delta', puts, deletes, revision: '' });
    }
  }

  /** Whether it has been critical for too long; says so as long as it is. */
  #isDeregistered(name: string): boolean {
    const { conditions } = this.#options;
    const reason = this.#health.get(name)?.deregistered;
    const owner = this.#owner.get(name);
    const wish = owner === undefined ? undefined : this.#wishes.get(owner)?.get(name);
    if (reason === undefined || wish === undefined) {
      if (this.#deregistered.delete(name)) conditions.clear(deregisteredId(name));
      return false;
    }
    this.#deregistered.add(name);
    const { service, source } = wish.base;
    const message = `${shown(name)} of ${service} (${shown(source)}) is ${reason}`;
    const hint = 'it comes back by itself when its check passes again';
    conditions.raise(deregisteredId(name), 'warning', message, hint);
    return true;
  }

  #recordOf(name: string): InstanceRecord | undefined {
    const owner = this.#owner.get(name);
    const wish = owner === undefined ? undefined : this.#wishes.get(owner)?.get(name);
    const drained = this.#drained.has(name);
    if (wish === undefined) {
      const remembered = this.#remembered.get(name);
      return remembered && Object.freeze({ ...remembered, draining: remembered.draining || drained });
    }
    const { status, output } = this.#health.get(name) ?? wish.base;
    // What was paused on purpose is not what the brake on mass withdrawal is for: it is left out, not found failing.
    const suspended = wish.desired.suspended !== undefined;
    return Object.freeze({ ...wish.base, status, output, draining: wish.base.draining || drained || suspended });
  }
}

function sourceOf({ source }: InstanceRecord): SourceName | undefined {
  const word = source.split(':', 1)[0];
  return word === 'docker' || word === 'file' || word === 'api' || word === 'external' ? word : undefined;
}

function textOf(record: InstanceRecord): string {
  return JSON.stringify(instanceDocument(record));
}

function refusalId(source: SourceName, name: string): string {
  return `registrar.refused.${source}.${shown(name)}`;
}

function clashId(name: string): string {
  return `registrar.clash.${shown(name)}`;
}

function deregisteredId(name: string): string {
  return `registrar.deregistered.${shown(name)}`;
}

function shown(text: string): string {
  return truncate(printable(text), 140);
}
