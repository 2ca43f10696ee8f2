import type { Clock } from '../../src/base/clock.ts';
import type { Observable } from '../../src/base/feed.ts';
import { truncate } from '../../src/base/text.ts';
import { compareInstances } from '../../src/catalog/members.ts';
import type { Service, Snapshot } from '../../src/catalog/snapshot.ts';
import type { Host } from '../../src/model/host.ts';
import type { Instance } from '../../src/model/instance.ts';
import { intentFor, isRevoked, type Policy } from '../../src/model/policy.ts';

/** Changes kept of one service, and of hosts and policy together. */
const maxChanges = 16;
/** Services of which changes are kept; those that changed longest ago are forgotten first. */
const maxServices = 4096;
/** Of a check's output, in characters. */
const maxOutput = 120;

export interface JournalEntry {
  /** Wall clock. */
  readonly atMs: number;
  readonly text: string;
  /** The id of the instance or of the host that changed. */
  readonly id?: string;
}

export interface JournalOptions {
  readonly self: { readonly hostId: string };
  readonly snapshots: Observable<Snapshot>;
  readonly policy: Observable<Policy | undefined>;
  readonly clock: Clock;
}

/**
 * The last changes of each service, of hosts and of the policy, as this host saw them, so that a fault can be told with
 * what came before it. Bounded, and kept for one run. Costs what changed.
 */
export class Journal {
  readonly #options: JournalOptions;
  readonly #services = new Map<string, JournalEntry[]>();
  readonly #hosts: JournalEntry[] = [];
  readonly #policies: { readonly atMs: number; readonly before: Policy | undefined; readonly after: Policy }[] = [];
  readonly #unsubscribe: readonly (() => void)[];
  /** Hosts that came in this run and have not been alive in it: their first sign of life comes after their record. */
  readonly #appearing = new Set<string>();
  #seen: Snapshot;
  #policy: Policy | undefined;

  constructor(options: JournalOptions) {
    const { snapshots, policy } = options;
    this.#options = options;
    this.#seen = snapshots.value;
    this.#policy = policy.value;
    this.#unsubscribe = [
      snapshots.subscribe((snapshot) => this.#takeSnapshot(snapshot)),
      policy.subscribe((next) => this.#takePolicy(next)),
    ];
  }

  /** Since when the instance has been as it is; undefined when that began before this run. */
  sinceOf(service: string, instanceId: string): number | undefined {
    return this.#services.get(service)?.findLast(({ id }) => id === instanceId)?.atMs;
  }

  /** Ids of instances that left the service. */
  departed(service: string): string[] {
    const entries = this.#services.get(service) ?? [];
    return entries.flatMap(({ id, text }) => (id !== undefined && text === `${id} left` ? [id] : []));
  }

  /** The instance that left last, with the name of its host. */
  lastDeparture(service: string): { readonly id: string; readonly host: string; readonly atMs: number } | undefined {
    const entries = this.#services.get(service) ?? [];
    const last = entries.findLast(({ id, text }) => id !== undefined && text === `${id} left`);
    if (last?.id === undefined) return undefined;
    return { id: last.id, host: last.id.slice(0, last.id.lastIndexOf('/')), atMs: last.atMs };
  }

  /** What changed last for a consumer of the service whose instances are on these hosts, newest first. */
  changes(about: {
    readonly service: string;
    readonly consumer: string;
    readonly hostIds: ReadonlySet<string>;
    readonly most: number;
  }): JournalEntry[] {
    const { service, consumer, hostIds, most } = about;
    const ofHosts = this.#hosts.filter(({ id }) => id !== undefined && hostIds.has(id));
    const ofPolicy = this.#policies.flatMap(({ atMs, before, after }) => {
      const text = policyChange(before, after, consumer, service);
      return text === undefined ? [] : [{ atMs, text }];
    });
    return [...(this.#services.get(service) ?? []), ...ofHosts, ...ofPolicy]
      .reverse()
      .sort((a, b) => b.atMs - a.atMs)
      .slice(0, most);
  }

  close(): void {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
  }

  #takeSnapshot(snapshot: Snapshot): void {
    const before = this.#seen;
    this.#seen = snapshot;
    // The first picture is no change.
    if (before.origin === 'none') return;
    for (const { key, before: old, after } of snapshot.hosts.changesSince(before.hosts)) {
      if (key === this.#options.self.hostId) continue;
      const isFirstLife = after?.alive !== false && this.#appearing.delete(key);
      if (old === undefined && after?.alive === false) this.#appearing.add(key);
      const text = isFirstLife && after !== undefined ? undefined : hostChange(old, after);
      if (text !== undefined) keep(this.#hosts, { atMs: this.#options.clock.nowMs(), text, id: key });
    }
    for (const { key, before: old, after } of snapshot.services.changesSince(before.services)) {
      for (const entry of serviceChanges(old, after)) this.#add(key, entry);
    }
  }

  #takePolicy(next: Policy | undefined): void {
    const before = this.#policy;
    this.#policy = next;
    if (next === undefined) return;
    keep(this.#policies, { atMs: this.#options.clock.nowMs(), before, after: next });
  }

  #add(service: string, { text, id }: Change): void {
    const entries = this.#services.get(service) ?? [];
    keep(entries, { atMs: this.#options.clock.nowMs(), text, ...(id !== undefined && { id }) });
    this.#services.delete(service);
    this.#services.set(service, entries);
    const [oldest] = this.#services.keys();
    if (this.#services.size > maxServices && oldest !== undefined) this.#services.delete(oldest);
  }
}

type Change = Pick<JournalEntry, 'text' | 'id'>;

function keep<T>(entries: T[], entry: T): void {
  entries.push(entry);
  if (entries.length > maxChanges) entries.shift();
}

function hostChange(before: Host | undefined, after: Host | undefined): string | undefined {
  if (after === undefined) return before === undefined ? undefined : `host ${before.name} was forgotten`;
  if (before === undefined) return `host ${after.name} came`;
  if (before.alive !== after.alive) return `host ${after.name} ${after.alive ? 'is back' : 'was lost'}`;
  if (before.address !== after.address) return `host ${after.name} moved from ${before.address} to ${after.address}`;
  return before.version === after.version ? undefined : `host ${after.name} runs legate ${after.version} now`;
}

function serviceChanges(before: Service | undefined, after: Service | undefined): Change[] {
  if (after === undefined) return [{ text: `${before?.name ?? 'the service'} was forgotten` }];
  const changes: Change[] = [];
  if (before === undefined) changes.push({ text: `${after.name} came into being` });
  else {
    if (before.vip !== after.vip) changes.push({ text: `its virtual address became ${after.vip ?? 'none'}` });
    if (before.port !== after.port) changes.push({ text: `its port became ${after.port}` });
    if (before.protocol !== after.protocol) changes.push({ text: `its protocol became ${after.protocol}` });
  }
  if (before?.instances !== after.instances) changes.push(...memberChanges(before?.instances ?? [], after.instances));
  // Beyond what is kept nothing is told.
  return changes.slice(-maxChanges);
}

/** Both lists are in order: one pass, in which what did not change is passed over by comparing references. */
function memberChanges(before: readonly Instance[], after: readonly Instance[]): Change[] {
  const changes: Change[] = [];
  let next = 0;
  for (const instance of after) {
    for (let old = before[next]; old !== undefined && compareInstances(old, instance) < 0; old = before[next]) {
      changes.push({ text: `${old.id} left`, id: old.id });
      next += 1;
    }
    const old = before[next];
    const isSame = old !== undefined && compareInstances(old, instance) === 0;
    if (isSame) next += 1;
    if (isSame && old === instance) continue;
    const text = instanceChange(isSame ? old : undefined, instance);
    if (text !== undefined) changes.push({ text: `${instance.id} ${text}`, id: instance.id });
  }
  for (const old of before.slice(next)) changes.push({ text: `${old.id} left`, id: old.id });
  return changes;
}

function instanceChange(before: Instance | undefined, after: Instance): string | undefined {
  const output = after.output === '' ? '' : `: ${truncate(after.output, maxOutput)}`;
  if (before === undefined) return `came (${after.draining ? 'draining' : after.status})`;
  if (before.draining !== after.draining) return after.draining ? 'began to drain' : 'drains no more';
  if (before.status !== after.status) return `turned ${after.status}${after.status === 'passing' ? '' : output}`;
  if (before.incarnation !== after.incarnation) return 'was restarted';
  return undefined;
}

/** What a new policy changed for the pair; undefined when nothing. */
function policyChange(
  before: Policy | undefined,
  after: Policy,
  consumer: string,
  service: string,
): string | undefined {
  const version = `policy v${after.version}`;
  const now = intentFor(after, consumer, service);
  const then = before === undefined ? undefined : intentFor(before, consumer, service);
  if (now?.setAtMs !== then?.setAtMs || now?.action !== then?.action) {
    if (now === undefined) return `${version} took the intent ${textOf(then)} back`;
    return `${version} set the intent ${textOf(now)}`;
  }
  if (now === undefined && before?.default !== after.default) return `${version} set the default to ${after.default}`;
  if (before?.mode !== after.mode && before !== undefined) return `${version} set the mode to ${after.mode}`;
  const revoked = after.revoked.filter(({ hostId }) => !isRevoked(before, hostId)).map(({ name }) => name);
  return revoked.length === 0 ? undefined : `${version} revoked ${revoked.slice(0, 3).join(', ')}`;
}

function textOf(intent: { action: string; consumer: string; service: string } | undefined): string {
  return intent === undefined ? '' : `${intent.action} ${intent.consumer} ${intent.service}`;
}
