import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { LegateError } from '../src/base/errors.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import { printable, truncate } from '../src/base/text.ts';
import { emptySnapshot, type Snapshot } from '../src/catalog/snapshot.ts';
import type { Caller, CallerTable } from '../src/model/caller.ts';
import type { DeclaredLink, DeclaredPorts } from '../src/model/link.ts';
import { AliasClashes } from './alias-clashes.ts';

export interface DeclaredLinksOptions {
  readonly callers: Observable<CallerTable>;
  readonly snapshots: Observable<Snapshot>;
  /** Containers that declare links and have a network of their own, whether they are in the table or not. */
  readonly declaring: () => readonly Caller[];
  /** The name under which callers are known, by the beginning of a container's id. */
  readonly nameOf: (idStart: string) => string | undefined;
  readonly clock: Clock;
  readonly conditions: Conditions;
}

/** A declared link with who declares it. */
export interface Declaration {
  readonly caller: Caller;
  readonly link: DeclaredLink;
  /** What the alias means instead, because another container of the same network namespace says so. */
  readonly beatenBy: DeclaredLink | undefined;
  /** Why nobody knows its aliases; undefined while its address is known. */
  readonly unknown: string | undefined;
  /** Wall clock: since when it has been waiting, if its service has no instance now. */
  readonly waitingSinceMs: number;
}

/**
 * What the containers of this host declare with `legate.links`, by the table of callers: which services and ports they
 * want, since when they wait, and which of their aliases clash. Follows the table at the cost of what changed.
 */
export class DeclaredLinks {
  readonly #options: DeclaredLinksOptions;
  readonly #ports = new Latest<DeclaredPorts>(PersistentMap.empty());
  readonly #clashes: AliasClashes;
  /** By service and port (undefined: the service's own), how many addresses want it. */
  readonly #uses = new Map<string, Map<number | undefined, number>>();
  /** Wall clock, by address. */
  readonly #boundAtMs = new Map<string, number>();
  /** Declared services that lost their last instance, and when, by the wall clock. */
  readonly #emptySinceMs = new Map<string, number>();
  readonly #unsubscribe: readonly (() => void)[];
  #table: PersistentMap<Caller> = PersistentMap.empty();
  #snapshot: Snapshot = emptySnapshot;

  constructor(options: DeclaredLinksOptions) {
    this.#options = options;
    const { callers, snapshots, conditions } = options;
    this.#clashes = new AliasClashes(conditions, (name) => snapshots.value.services.has(name));
    this.#unsubscribe = [
      callers.subscribe((table) => this.#takeTable(table)),
      snapshots.subscribe((snapshot) => this.#takeSnapshot(snapshot)),
    ];
    this.#takeSnapshot(snapshots.value);
    this.#takeTable(callers.value);
  }

  /** The services that are wanted, with the ports that were named. */
  get ports(): Observable<DeclaredPorts> {
    return this.#ports;
  }

  /** All of them, by container and alias; a container that is on several networks once. */
  list(): Declaration[] {
    const found = new Map<string, Declaration>();
    for (const [address, caller] of this.#table) {
      for (const link of caller.links) {
        const first = caller.links.find(({ alias }) => alias === link.alias) ?? link;
        const waitingSinceMs = Math.max(this.#boundAtMs.get(address) ?? 0, this.#emptySinceMs.get(link.service) ?? 0);
        const key = `${link.alias} ${link.service} ${link.port} ${caller.container}`;
        const beatenBy = isSame(first, link) ? undefined : first;
        const known = found.get(key);
        if (known === undefined || known.waitingSinceMs > waitingSinceMs) {
          found.set(key, { caller, link, beatenBy, unknown: undefined, waitingSinceMs });
        }
      }
    }
    const order = ({ caller, link }: Declaration): string => `${caller.container} ${link.alias}`;
    return [...found.values(), ...this.#unbound()].sort((a, b) =>
      order(a) < order(b) ? -1 : order(a) > order(b) ? 1 : 0,
    );
  }

  /**
   * An address from which the questions come of a container, by its name, its id, or at least the first 12 digits of the
   * id. Throws LegateError E_NOT_FOUND when none is known.
   */
  addressOf(container: string): string {
    const id = container.toLowerCase();
    const name = /^[0-9a-f]{12,64}$/.test(id) ? this.#options.nameOf(id) : undefined;
    for (const wanted of [container, name]) {
      for (const [address, caller] of this.#table) if (caller.container === wanted) return address;
    }
    throw new LegateError(
      'E_NOT_FOUND',
      `no container ${printable(truncate(container, 80))} has an address on a bridge`,
      {
        hint: 'docker ps shows the names and ids of containers',
      },
    );
  }

  close(): void {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    this.#clashes.close();
  }

  /** What containers declare whose address is not in the table. */
  #unbound(): Declaration[] {
    const { callers, declaring } = this.#options;
    const known = new Set([...this.#table.values()].map(({ container }) => container));
    const { off } = callers.value;
    const unknown =
      off === undefined
        ? 'its address is not known: aliases are for containers with an address on a bridge of this host'
        : `who asks cannot be told: ${off}`;
    return declaring()
      .filter(({ container }) => !known.has(container))
      .flatMap((caller) =>
        caller.links.map((link) => ({ caller, link, beatenBy: undefined, unknown, waitingSinceMs: 0 })),
      );
  }

  #takeTable({ bound }: CallerTable): void {
    const nowMs = this.#options.clock.nowMs();
    const touched = new Set<string>();
    for (const { key: address, before, after } of bound.changesSince(this.#table)) {
      for (const link of before?.links ?? []) this.#count(link, -1, touched);
      for (const link of after?.links ?? []) this.#count(link, 1, touched);
      if (after === undefined) this.#boundAtMs.delete(address);
      else if (before === undefined || before.container !== after.container) this.#boundAtMs.set(address, nowMs);
      this.#clashes.update(address, before, after);
    }
    this.#table = bound;
    const puts: [string, readonly number[]][] = [];
    const deletes: string[] = [];
    for (const service of touched) {
      const uses = this.#uses.get(service);
      if (uses === undefined) {
        deletes.push(service);
        this.#emptySinceMs.delete(service);
        continue;
      }
      const ports = [...uses.keys()].filter((port) => port !== undefined).sort((a, b) => a - b);
      const old = this.#ports.value.get(service);
      if (old?.join() !== ports.join()) puts.push([service, ports]);
    }
    this.#ports.set(this.#ports.value.with(puts, deletes));
  }

  #count({ service, port }: DeclaredLink, by: 1 | -1, touched: Set<string>): void {
    touched.add(service);
    const uses = this.#uses.get(service) ?? new Map<number | undefined, number>();
    const count = (uses.get(port) ?? 0) + by;
    if (count > 0) uses.set(port, count);
    else uses.delete(port);
    if (uses.size > 0) this.#uses.set(service, uses);
    else this.#uses.delete(service);
  }

  #takeSnapshot(snapshot: Snapshot): void {
    const before = this.#snapshot.services;
    this.#snapshot = snapshot;
    for (const { key, before: old, after } of snapshot.services.changesSince(before)) {
      if (after !== undefined && after.instances.length > 0) this.#emptySinceMs.delete(key);
      else if (old !== undefined && old.instances.length > 0 && this.#uses.has(key)) {
        this.#emptySinceMs.set(key, this.#options.clock.nowMs());
      }
      if ((old === undefined) !== (after === undefined)) this.#clashes.review(key);
    }
  }
}

function isSame(a: DeclaredLink, b: DeclaredLink): boolean {
  return a.service === b.service && a.port === b.port;
}
