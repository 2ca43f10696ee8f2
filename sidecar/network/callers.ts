import type { Binding, CallerFilter, Contact } from '../../proxy/kernel/caller-filter.ts';
import type { VipState } from '../../proxy/kernel/vip-table.ts';
import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import { Coalesced } from '../../src/base/coalesced.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError } from '../../src/base/errors.ts';
import { Latest, type Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import { PersistentMap } from '../../src/base/persistent-map.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { Caller, Callers, CallerTable } from '../../src/model/caller.ts';
import type { CallerGroup } from '../docker/caller-groups.ts';
import { shortId } from '../docker/container.ts';

const firstRetryMs = 50;
const lastRetryMs = 10_000;
/** So often an interface is looked for before it counts as one that cannot be found. */
const patientTries = 5;
const condition = 'callers.off';

export interface CallerBindingsOptions {
  /** What holds containers to their addresses; undefined: `off` says why nothing does. */
  readonly filter: (CallerFilter & { readonly state: Observable<VipState> }) | undefined;
  /** Why callers are not told apart by configuration; null: they are. */
  readonly off: string | null;
  /** The engine: while it was never reached, nobody can be known. */
  readonly docker: Observable<{ readonly state: string; readonly problem: string | null }>;
  /** The host's interfaces of a process's network namespace, by the MAC address of the other end. */
  readonly find: (pid: number, macs: readonly string[]) => Promise<ReadonlyMap<string, string>>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

interface Entry {
  readonly group: CallerGroup;
  readonly caller: Caller;
  /** What the kernel has of it, by address. */
  readonly bound: Map<string, Binding>;
}

/**
 * Who has which address: takes over what Docker tells of containers, finds their interfaces, and has the kernel hold them
 * to their addresses. An address counts from the kernel's word on, and ends in the turn in which its container does.
 */
export class CallerBindings implements Callers {
  /**
   * How long after its binding a connection is still confirmed: it may have waited so long for being accepted. The kernel
   * records as long.
   */
  static readonly freshMs = 1000;
  readonly #options: CallerBindingsOptions;
  readonly #table: Latest<CallerTable>;
  readonly #entries = new Map<string, Entry>();
  /** Whose an address is, bound or about to be. */
  readonly #owners = new Map<string, Entry>();
  readonly #fresh = new Map<string, () => void>();
  /** Containers whose interfaces cannot be found, and why. */
  readonly #unseen = new Map<string, { readonly reason: string; readonly hint: string }>();
  readonly #unsubscribes: (() => void)[];
  readonly #stopping = new AbortController();
  #bound = PersistentMap.empty<Caller>();
  /** Where segments came from, as recorded now or later, by source and destination. */
  readonly #contacts = new Coalesced(() => this.#readContacts());

  constructor(options: CallerBindingsOptions) {
    const { filter, docker, metrics, conditions } = options;
    this.#options = options;
    const off = this.#off();
    this.#table = new Latest<CallerTable>({ off, bound: this.#bound });
    if (off !== undefined) filter?.setTelling(false).catch(() => undefined);
    const publish = (): void => this.#publish();
    this.#unsubscribes = [
      docker.subscribe(publish),
      ...(filter === undefined ? [] : [filter.state.subscribe(publish)]),
    ];
    metrics.gauge('legate_callers_bound_count', 'Addresses of containers that are bound.', [], () => [
      [[], this.#bound.size],
    ]);
    const problem = options.off === null ? filter?.filterProblem : undefined;
    if (problem) {
      conditions.raise(condition, 'note', `callers are not told apart: ${problem}`, 'all but the host are anonymous');
    }
  }

  get table(): Observable<CallerTable> {
    return this.#table;
  }

  isFresh(address: string): boolean {
    return this.#fresh.size > 0 && this.#fresh.has(address);
  }

  async confirm(connection: { readonly source: Endpoint; readonly destination: Endpoint }): Promise<boolean> {
    const { source, destination } = connection;
    const contacts = (await this.#contacts.run()).get(keyOf(source, destination.address)) ?? [];
    const binding = this.#owners.get(source.address)?.bound.get(source.address);
    if (binding === undefined || contacts.length === 0) return false;
    return contacts.every((contact) => contact.interface === binding.interface && contact.mac === binding.mac);
  }

  /** What Docker tells of the containers of one network namespace; undefined: none runs any more. */
  apply(id: string, group: CallerGroup | undefined): void {
    const before = this.#entries.get(id);
    const kept = new Map<string, Binding>();
    if (group !== undefined && before?.group.pid === group.pid) {
      for (const { ipv4, mac } of group.addresses) {
        const binding = before.bound.get(ipv4);
        if (binding?.mac === mac) kept.set(ipv4, binding);
      }
    }
    this.#unbind([...(before?.bound.keys() ?? [])].filter((address) => !kept.has(address)));
    this.#unseen.delete(id);
    this.#options.conditions.clear(`callers.${shortId(id)}.unseen`);
    this.#tellContradiction(id, group);
    if (group === undefined) {
      this.#entries.delete(id);
      this.#publish();
      return;
    }
    const entry = { group, caller: callerOf(group), bound: kept };
    this.#entries.set(id, entry);
    for (const address of kept.keys()) this.#owners.set(address, entry);
    this.#bound = this.#bound.with(
      [...kept.keys()].map((address) => [address, entry.caller] as const),
      [],
    );
    this.#publish();
    if (this.#options.off === null && kept.size < group.addresses.length) void this.#bindMissing(entry);
  }

  close(): void {
    this.#stopping.abort();
    for (const unsubscribe of this.#unsubscribes) unsubscribe();
    for (const cancel of this.#fresh.values()) cancel();
    this.#options.conditions.clearPrefix('callers.');
  }

  /** Finds the interfaces of those addresses that are not bound, until all are or something changed. */
  async #bindMissing(entry: Entry): Promise<void> {
    const { find, clock } = this.#options;
    const { id, pid, addresses } = entry.group;
    const backoff = new Backoff(firstRetryMs, lastRetryMs);
    const { signal } = this.#stopping;
    while (this.#isCurrent(entry)) {
      const missing = addresses.filter(({ ipv4 }) => !entry.bound.has(ipv4));
      let problem: unknown;
      const macs = missing.map(({ mac }) => mac);
      const names = await find(pid, macs).catch((error: unknown) => {
        problem = error;
        return new Map<string, string>();
      });
      const bindings = missing.flatMap(({ ipv4, mac }) => {
        const name = names.get(mac);
        return name === undefined ? [] : [{ address: ipv4, mac, interface: name }];
      });
      if (bindings.length > 0) await this.#bind(entry, bindings);
      if (bindings.length === missing.length || !this.#isCurrent(entry)) return;
      const waitMs = backoff.nextMs();
      if (backoff.failures >= patientTries) this.#notSeen(id, problem);
      await clock.sleep(waitMs, signal).catch(() => undefined);
    }
  }

  /** Has the kernel hold the container to these addresses; they count when it does. */
  async #bind(entry: Entry, bindings: readonly Binding[]): Promise<void> {
    const { filter, clock } = this.#options;
    if (filter === undefined || !this.#isCurrent(entry)) return;
    const addresses = bindings.map(({ address }) => address);
    for (const address of addresses) {
      // A new container has the address of one whose end nobody has told yet.
      this.#owners.get(address)?.bound.delete(address);
      this.#owners.set(address, entry);
    }
    this.#bound = this.#bound.with([], addresses);
    this.#publish();
    const backoff = new Backoff(firstRetryMs, lastRetryMs);
    for (;;) {
      const done = await filter.bind(bindings, []).then(
        () => true,
        () => false,
      );
      const mine = bindings.filter(({ address }) => this.#owners.get(address) === entry);
      if (!this.#isCurrent(entry)) {
        this.#unbind(mine.map(({ address }) => address));
        return;
      }
      if (done) {
        this.#hasBound(entry, mine);
        return;
      }
      await clock.sleep(backoff.nextMs(), this.#stopping.signal).catch(() => undefined);
    }
  }

  #hasBound(entry: Entry, bindings: readonly Binding[]): void {
    const { filter, clock } = this.#options;
    for (const binding of bindings) {
      const { address } = binding;
      entry.bound.set(address, binding);
      this.#fresh.get(address)?.();
      const cancel = clock.after(CallerBindings.freshMs, () => {
        this.#fresh.delete(address);
        filter?.settle([address]).catch(() => undefined);
      });
      this.#fresh.set(address, cancel);
    }
    this.#bound = this.#bound.with(
      bindings.map(({ address }) => [address, entry.caller] as const),
      [],
    );
    this.#unseen.delete(entry.group.id);
    this.#options.conditions.clear(`callers.${shortId(entry.group.id)}.unseen`);
    this.#publish();
  }

  /** At once for everybody who asks here, and for the kernel right after. */
  #unbind(addresses: readonly string[]): void {
    if (addresses.length === 0) return;
    for (const address of addresses) {
      this.#owners.delete(address);
      this.#fresh.get(address)?.();
      this.#fresh.delete(address);
    }
    this.#bound = this.#bound.with([], addresses);
    // Where it refuses, it builds the table again from what is wanted, without these.
    this.#options.filter?.bind([], addresses).catch(() => undefined);
  }

  #isCurrent(entry: Entry): boolean {
    return !this.#stopping.signal.aborted && this.#entries.get(entry.group.id) === entry;
  }

  #publish(): void {
    const off = this.#off();
    const { value } = this.#table;
    const bound =
      off === undefined ? this.#bound : value.off === undefined ? PersistentMap.empty<Caller>() : value.bound;
    if ((value.off === undefined) !== (off === undefined)) {
      this.#options.filter?.setTelling(off === undefined).catch(() => undefined);
    }
    if (value.off !== off || value.bound !== bound) this.#table.set({ off, bound });
    this.#tellUnseen(off);
  }

  /** Why callers are not told apart now. */
  #off(): string | undefined {
    const { off, filter, docker } = this.#options;
    if (off !== null) return off;
    if (filter === undefined) return 'there is no table in the kernel';
    if (filter.filterProblem !== null) return filter.filterProblem;
    const { state, reason } = filter.state.value;
    if (state === 'off') return reason ?? 'virtual addresses are off';
    const { state: engine, problem } = docker.value;
    if (engine === 'connecting' && problem !== null) return `Docker was not reached yet: ${problem}`;
    // Where not one is found, it is not the container that is to blame.
    const [unseen] = this.#unseen.values();
    return this.#bound.size === 0 ? unseen?.reason : undefined;
  }

  #notSeen(id: string, problem: unknown): void {
    const reason = problem === undefined ? 'no interface of the host leads to it' : describeError(problem);
    const hint = isLegateError(problem) ? (problem.hint ?? '') : '';
    this.#unseen.set(id, { reason, hint });
    this.#publish();
  }

  #tellUnseen(off: string | undefined): void {
    const { conditions } = this.#options;
    if (this.#unseen.size === 0 && this.#options.off === null && this.#options.filter?.filterProblem === null) {
      conditions.clear(condition);
    }
    for (const [id, { reason, hint }] of this.#unseen) {
      if (off === reason) {
        conditions.raise(
          condition,
          'note',
          `callers are not told apart, all but the host are anonymous: ${reason}`,
          hint,
        );
        return;
      }
      const name = this.#entries.get(id)?.group.name ?? shortId(id);
      const text = `what ${name} connects to is reset, for its interface is not found: ${reason}`;
      conditions.raise(`callers.${shortId(id)}.unseen`, 'warning', text, hint || 'restart the container');
    }
  }

  #tellContradiction(id: string, group: CallerGroup | undefined): void {
    const name = `callers.${shortId(id)}.several`;
    if (group === undefined || group.consumers.length < 2) {
      this.#options.conditions.clear(name);
      return;
    }
    const list = group.consumers.slice(0, 8).join(', ');
    const text = `containers that share the network of ${group.name} are ${list}: together they are anonymous when they call`;
    this.#options.conditions.raise(name, 'note', text, 'give them the same legate.consumer, or networks of their own');
  }

  async #readContacts(): Promise<ReadonlyMap<string, readonly Contact[]>> {
    const contacts = new Map<string, Contact[]>();
    try {
      for (const contact of (await this.#options.filter?.contacts()) ?? []) {
        const key = keyOf(contact.source, contact.destination);
        const list = contacts.get(key);
        if (list === undefined) contacts.set(key, [contact]);
        else list.push(contact);
      }
    } catch (error) {
      this.#options.log.warn('callers cannot be confirmed', { reason: describeError(error) });
    }
    return contacts;
  }
}

function keyOf(source: Endpoint, destination: string): string {
  return `${source.address} ${source.port} ${destination}`;
}

/** Containers that share a network are one caller: the only one of their names, with the links of all. */
function callerOf({ name, consumers, links }: CallerGroup): Caller {
  return { consumer: consumers.length === 1 ? consumers[0] : undefined, container: name, links };
}
