import { Backoff } from '../../src/base/backoff.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError, LegateError } from '../../src/base/errors.ts';
import { Latest, type Observable } from '../../src/base/feed.ts';
import type { Log } from '../../src/base/log.ts';
import { type Endpoint, type Ipv4Range, inRange } from '../../src/model/address.ts';
import type { Binding, Contact } from './caller-filter.ts';
import { CallerRules, callerCounters, parseContacts } from './caller-rules.ts';
import { runCommand } from './command.ts';
import { HostFirewall } from './host-firewall.ts';
import { NftSession } from './nft-session.ts';
import type { Ownership } from './ownership.ts';
import type { PortMapping, Slot } from './port-map.ts';
import { Spoofing } from './spoofing.ts';
import { UdpFlows } from './udp-flows.ts';
import { passingOwner, VipMappings } from './vip-mappings.ts';
import {
  buildScript,
  type Counters,
  deltaCommands,
  formerMappings,
  guardKey,
  isInterfaceName,
  parseListing,
  plainMappings,
  sameContent,
} from './vip-rules.ts';
import type { VipState, VipTable, VipTableOptions } from './vip-table.ts';
import { VipWatch } from './vip-watch.ts';

const defaultProbeMs = 10_000;
const firstRetryMs = 500;
const lastRetryMs = 30_000;
/** Who owns what was mapped before this sidecar came. */
const formerOwner = 'former';
const changeBuckets = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5];

interface Batch {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/**
 * The tables in the kernel: one for addresses, one of the same name for frames on bridges. What is wanted is noted at once; what the kernel has follows, one work at a time: a batch of
 * changes, a look whether all is there, or building everything again.
 */
export class KernelVipTable implements VipTable {
  readonly #slots: number;
  /** The first is the mesh's; more may be added. */
  readonly #ranges: Ipv4Range[];
  readonly #name: string;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #conditions: Conditions;
  readonly #ownership: Ownership;
  readonly #session: NftSession;
  readonly #mappings: VipMappings;
  readonly #flows: UdpFlows;
  readonly #firewall: HostFirewall;
  readonly #callers: CallerRules;
  readonly #spoofing: Spoofing;
  readonly #retry = new Backoff(firstRetryMs, lastRetryMs);
  readonly #state = new Latest<VipState>({ state: 'off', reason: 'not yet built' });
  readonly #probeMs: number;
  readonly #rebuilds: { value: number };
  readonly #changeSeconds: { observe(value: number): void };

  /** What is wanted. */
  #clients: ReadonlySet<string> = new Set(['lo']);
  #guarded: ReadonlySet<string> = new Set();
  /** What the kernel has, and the port keys at which that may differ from what is wanted. */
  #applied: { ports: Map<string, number>; clients: ReadonlySet<string>; guarded: ReadonlySet<string> };
  readonly #dirty = new Set<string>();
  /** How the table looked when it was built, without contents. */
  #shape = '';
  #watch: VipWatch | undefined;
  /** When others last did something to it. */
  #damagedMs = 0;
  #batch: Batch | undefined;
  #cancelRetry: (() => void) | undefined;
  /** Ends when the last work on the kernel has ended; each waits for the one before. */
  #turn: Promise<unknown> = Promise.resolve();
  #closed: Promise<void> | undefined;
  #filterProblem: string | null = null;

  constructor(options: VipTableOptions, name: string, ownership: Ownership) {
    const { range, clock, metrics, conditions } = options;
    this.#slots = options.slots ?? 0;
    this.#ranges = [range];
    this.#name = name;
    this.#clock = clock;
    this.#log = options.log.child({ 'vip.table': name, 'vip.range': range.text });
    this.#conditions = conditions;
    this.#ownership = ownership;
    this.#probeMs = options.probe?.everyMs ?? defaultProbeMs;
    this.#session = new NftSession({ log: this.#log, clock });
    this.#mappings = new VipMappings(this.#ranges, options.slots);
    this.#flows = new UdpFlows(range);
    this.#firewall = new HostFirewall({ table: name, range, conditions, metrics });
    this.#callers = new CallerRules(name, this.#ranges);
    this.#spoofing = new Spoofing({ table: name, conditions, metrics });
    this.#applied = { ports: new Map(), clients: new Set(), guarded: new Set() };
    this.#rebuilds = metrics.counter('legate_vip_rebuilds_total', 'How often others removed or changed our table.');
    this.#changeSeconds = metrics.histogram('legate_vip_change_seconds', 'From a change to the kernel.', changeBuckets);
    metrics.gauge('legate_vip_mappings_count', 'Ports of virtual addresses in the kernel.', [], () => [
      [[], this.#applied.ports.size],
    ]);
  }

  get state(): Observable<VipState> {
    return this.#state;
  }

  get filterProblem(): string | null {
    return this.#filterProblem;
  }

  async open(adopt = false): Promise<void> {
    await this.#inTurn(async () => {
      if (adopt) await this.#adopt();
      try {
        await this.#build();
      } catch (error) {
        if (!isLegateError(error, 'E_INVALID')) throw error;
        // Virtual addresses need no bridge family; whether that was what is missing is seen without it.
        await this.#remove(`bridge ${this.#name}`);
        this.#filterProblem = `this kernel cannot filter on bridges (${describeError(error)})`;
        await this.#build();
      }
    });
    this.#session.warm();
    this.#watch = new VipWatch({
      table: this.#name,
      ranges: this.#ranges,
      clock: this.#clock,
      everyMs: this.#probeMs,
      isOwn: (pid) => this.#session.isOwn(pid),
      onSuspicion: () => this.#look(true),
      onTick: () => this.#look(false),
    });
    this.#log.info('virtual addresses are on');
  }

  addRange(range: Ipv4Range): Promise<void> {
    return this.#inTurn(async () => {
      if (this.#closed !== undefined) throw new LegateError('E_CLOSED', 'virtual addresses have been closed');
      if (this.#ranges.some(({ text }) => text === range.text)) return;
      this.#ranges.push(range);
      await this.#buildOrRetry();
    });
  }

  set(owner: string, mappings: readonly PortMapping[], slot?: Slot): Promise<void> {
    return this.#change(() => {
      for (const key of this.#mappings.replace(owner, mappings, slot)) this.#dirty.add(key);
    });
  }

  async forgetFormer(): Promise<void> {
    await Promise.all([this.set(formerOwner, [], 'former'), this.set(passingOwner, [])]);
  }

  setClients(interfaces: readonly string[]): Promise<void> {
    return this.#change(() => {
      const wrong = interfaces.find((name) => !isInterfaceName(name));
      if (wrong !== undefined) throw new LegateError('E_INVALID', `${wrong} is not the name of an interface`);
      this.#clients = new Set(['lo', ...interfaces]);
    });
  }

  setGuards(endpoints: readonly Endpoint[]): Promise<void> {
    return this.#change(() => {
      this.#guarded = new Set(endpoints.map(guardKey));
      this.#callers.setGuarded([...this.#guarded]);
    });
  }

  bind(puts: readonly Binding[], deletes: readonly string[]): Promise<void> {
    return this.#change(() => {
      const wrong = puts.find((binding) => !isInterfaceName(binding.interface));
      if (wrong !== undefined) throw new LegateError('E_INVALID', `${wrong.interface} is not the name of an interface`);
      this.#callers.bind(puts, deletes);
    });
  }

  settle(addresses: readonly string[]): Promise<void> {
    return this.#change(() => this.#callers.settle(addresses));
  }

  setCallerRanges(ranges: readonly Ipv4Range[]): Promise<void> {
    return this.#change(() => this.#callers.setRanges(ranges.map((range) => range.text)));
  }

  setTelling(on: boolean): Promise<void> {
    return this.#change(() => this.#callers.setTelling(on));
  }

  setWatched(endpoints: readonly Endpoint[]): Promise<void> {
    return this.#change(() => this.#callers.setWatched(endpoints.map(guardKey)));
  }

  async contacts(): Promise<readonly Contact[]> {
    return parseContacts(await runCommand('nft', ['list', 'set', 'bridge', this.#name, 'contacts']));
  }

  counters(): Promise<Counters> {
    return this.#inTurn(async () => parseListing(await this.#session.list(this.#tables, true)).counters);
  }

  close(): Promise<void> {
    this.#closed ??= this.#takeBack();
    return this.#closed;
  }

  abandon(): Promise<void> {
    this.#closed ??= this.#letGo().then(() => {
      this.#session.close();
      return this.#ownership.release();
    });
    return this.#closed;
  }

  /** What a table of before maps, and whom it lets in, until it is known what is wanted now. */
  async #adopt(): Promise<void> {
    const text = await this.#session.list([`ip ${this.#name}`], false).catch(() => undefined);
    if (text === undefined) return;
    const { content } = parseListing(text);
    this.#clients = new Set(['lo', ...content.clients]);
    this.#guarded = content.guarded;
    // Those of a further range come back when it is added and wanted.
    const isIn = ({ address }: PortMapping): boolean => this.#ranges.some((range) => inRange(range, address));
    const mappings = formerMappings(content).filter(isIn);
    if (this.#slots > 0) {
      this.#mappings.replace(formerOwner, mappings, 'former');
      // Who listens there again finds the port mapped already: the name server, whose private port is always the same.
      this.#mappings.replace(passingOwner, plainMappings(content).filter(isIn));
    }
    this.#log.info('the table of the sidecar before is taken over', { 'vip.mappings': mappings.length });
  }

  /** Nothing is done to the kernel any more. */
  async #letGo(): Promise<void> {
    this.#watch?.close();
    this.#cancelRetry?.();
    this.#state.set({ state: 'off', reason: 'closed' });
    await this.#turn.catch(() => undefined);
    this.#conditions.clearPrefix(`vip.${this.#name}.`);
  }

  async #takeBack(): Promise<void> {
    await this.#letGo();
    // Each is tried whatever became of the others; what is not there need not be removed.
    for (const { text } of this.#ranges) {
      await runCommand('ip', ['-4', 'route', 'del', 'local', text, 'dev', 'lo']).catch(() => undefined);
    }
    for (const table of this.#tables) await this.#remove(table);
    this.#session.close();
    await this.#ownership.release();
  }

  /** Removes a table; what is not there, or cannot be, need not be removed. */
  async #remove(table: string): Promise<void> {
    await this.#session.load(`add table ${table}\ndelete table ${table}\n`).catch(() => undefined);
  }

  /** Notes a change at once and brings it to the kernel with all others of this turn of the event loop. */
  async #change(note: () => void): Promise<void> {
    if (this.#closed !== undefined) throw new LegateError('E_CLOSED', 'virtual addresses have been closed');
    note();
    this.#batch ??= this.#startBatch();
    await this.#batch.promise;
  }

  #startBatch(): Batch {
    let resolve: () => void = () => undefined;
    let reject: (error: unknown) => void = () => undefined;
    const promise = new Promise<void>((onDone, onFailure) => {
      resolve = onDone;
      reject = onFailure;
    });
    const startedMs = this.#clock.monotonicMs();
    setImmediate(() => {
      this.#inTurn(async () => {
        this.#batch = undefined;
        await this.#apply();
        this.#changeSeconds.observe((this.#clock.monotonicMs() - startedMs) / 1000);
      }).then(resolve, reject);
    });
    return { promise, resolve, reject };
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.catch(() => undefined).then(work);
    this.#turn = mine;
    return mine;
  }

  /** Brings what differs to the kernel; where that fails, everything. */
  async #apply(): Promise<void> {
    if (this.#closed !== undefined) throw new LegateError('E_CLOSED', 'virtual addresses have been closed');
    if (this.#state.value.state === 'off') return this.#buildOrRetry();
    const wanted = { ports: this.#mappings.ports, clients: this.#clients, guarded: this.#guarded };
    const delta = deltaCommands(this.#name, this.#applied, wanted, this.#dirty);
    const ports = [...this.#dirty].map((key) => [key, wanted.ports.get(key)] as const);
    this.#dirty.clear();
    const callers = this.#filterProblem === null ? this.#callers.delta() : undefined;
    const commands = [...delta.commands, ...(callers?.commands ?? [])];
    if (commands.length === 0) return;
    try {
      await this.#session.run(commands, delta.size + (callers?.size ?? 0));
    } catch (error) {
      this.#log.info('nftables refused a change, the table is built again', { reason: describeError(error) });
      return this.#buildOrRetry();
    }
    for (const [key, privatePort] of ports) {
      if (privatePort === undefined) this.#applied.ports.delete(key);
      else this.#applied.ports.set(key, privatePort);
    }
    this.#applied.clients = wanted.clients;
    this.#applied.guarded = wanted.guarded;
    callers?.done();
    void this.#flows.forget(delta.staleUdp);
  }

  /** Builds table and route from what is wanted. The table first: the guard stands before the addresses exist. */
  async #build(): Promise<void> {
    const content = { ports: new Map(this.#mappings.ports), clients: this.#clients, guarded: this.#guarded };
    this.#dirty.clear();
    const callers = this.#filterProblem === null ? this.#callers.script() : undefined;
    try {
      await this.#session.load(buildScript(this.#name, this.#ranges, content, this.#slots) + (callers?.text ?? ''));
      const [listing] = await Promise.all([
        this.#session.list(this.#tables, true),
        ...this.#ranges.map(({ text }) => runCommand('ip', ['-4', 'route', 'replace', 'local', text, 'dev', 'lo'])),
      ]);
      this.#shape = parseListing(listing).shape;
    } catch (error) {
      this.#state.set({ state: 'off', reason: describeError(error) });
      throw error;
    }
    this.#applied = content;
    callers?.built();
    this.#firewall.restart();
    this.#spoofing.restart();
    this.#state.set({ state: 'on', reason: null });
    void this.#flows.forgetAll();
  }

  async #buildOrRetry(): Promise<void> {
    const id = `vip.${this.#name}.off`;
    try {
      await this.#build();
      this.#retry.reset();
      this.#conditions.clear(id);
    } catch (error) {
      const hint = (isLegateError(error) ? error.hint : undefined) ?? '`nft list ruleset` as root may tell more';
      this.#conditions.raise(id, 'error', `virtual addresses are off: ${describeError(error)}`, hint);
      this.#cancelRetry?.();
      this.#cancelRetry = this.#clock.after(this.#retry.nextMs(), () => {
        if (this.#closed !== undefined || this.#state.value.state === 'on') return;
        this.#inTurn(() => this.#apply()).catch(() => undefined);
      });
      throw error;
    }
  }

  /** Looks whether the kernel has what it should have, contents included when `all`, and builds it again if not. */
  #look(all: boolean): void {
    if (this.#closed !== undefined || this.#state.value.state === 'off') return;
    this.#inTurn(async () => {
      if (this.#closed !== undefined || this.#state.value.state === 'off') return;
      const damage = await this.#damage(all);
      const id = `vip.${this.#name}.table`;
      if (damage === undefined) {
        if (all) return;
        this.#watch?.calm();
        // A reader of the status is to have the chance to see it.
        if (this.#clock.monotonicMs() - this.#damagedMs >= this.#probeMs) this.#conditions.clear(id);
        return;
      }
      this.#rebuilds.value += 1;
      this.#damagedMs = this.#clock.monotonicMs();
      await this.#buildOrRetry();
      const hint = 'find out who flushes rules or routes (`nft monitor`); connections may have failed meanwhile';
      this.#conditions.raise(id, 'warning', `somebody ${damage}; it was built again`, hint);
    }).catch((error) => this.#log.warn('virtual addresses could not be looked at', { reason: describeError(error) }));
  }

  /** What others did, or undefined when all is as it should be. */
  async #damage(all: boolean): Promise<string | undefined> {
    const [text, ...routes] = await Promise.all([
      this.#session.list(this.#tables, !all).catch((error) => {
        // Whoever could not ask knows nothing.
        if (!isLegateError(error, 'E_INVALID')) throw error;
        return undefined;
      }),
      ...this.#ranges.map(({ text }) => runCommand('ip', ['-4', 'route', 'show', 'table', 'local', 'exact', text])),
    ]);
    const table = `our nftables table (${this.#tables.join(' or ')})`;
    if (text === undefined) return `removed ${table}`;
    const { shape, content, counters } = parseListing(text);
    if (shape !== this.#shape) return `changed ${table}`;
    if (all && !sameContent(content, this.#applied)) return `changed ${table}`;
    if (all && this.#filterProblem === null && !this.#callers.isAsApplied(text)) return `changed ${table}`;
    const lost = this.#ranges.find((_, index) => routes[index]?.includes('dev lo') !== true);
    if (lost !== undefined) return `removed our route (local ${lost.text} dev lo)`;
    this.#firewall.observe(counters);
    if (this.#filterProblem === null) this.#spoofing.observe(callerCounters(text));
    return undefined;
  }

  /** Our tables, as nft names them. */
  get #tables(): readonly string[] {
    return this.#filterProblem === null ? [`ip ${this.#name}`, `bridge ${this.#name}`] : [`ip ${this.#name}`];
  }
}
