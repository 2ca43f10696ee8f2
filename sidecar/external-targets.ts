import { Resolver } from 'node:dns/promises';
import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError } from '../src/base/errors.ts';
import type { Change, Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import { Bell } from '../src/catalog/bell.ts';
import { formatEndpoint, type Ipv4Range, inRange } from '../src/model/address.ts';
import { checkDefaults } from '../src/model/check.ts';
import { type DesiredInstance, externalSource } from '../src/model/instance.ts';
import { isLocked, type Policy } from '../src/model/policy.ts';
import type { PolicyAuthority } from '../src/registrar/policy-authority.ts';

/** A name is asked for again after its TTL, within these. */
const leastMs = 5000;
const mostMs = 30_000;
/** One question: c-ares doubles the time with each try. */
const question = { timeout: 1000, tries: 2 } as const;
/** Questions at a time, and addresses of one target that are used. */
const maxQuestions = 8;
const maxAddresses = 16;
/** Between two checks: they are other people's servers. */
const checkEveryMs = 10_000;

interface Found {
  readonly addresses: readonly string[];
  readonly ttlMs: number;
}

/** The addresses of a name, IPv4 where there are any. Rejects where there are none, or nobody answers. */
export type LookUp = (name: string) => Promise<Found>;

export interface ExternalTargetsOptions {
  readonly clock: Clock;
  readonly conditions: Conditions;
  /** Targets by service, of this host's own file: they come before the policy's. */
  readonly configured: ReadonlyMap<string, readonly string[]>;
  readonly policy: Observable<Policy | undefined>;
  /** Addresses that lead back into this sidecar. */
  readonly ownRanges: readonly Ipv4Range[];
  readonly lookUp?: LookUp;
  readonly onChange: (change: Change<DesiredInstance>) => void;
}

interface Name {
  addresses: readonly string[];
  dueMs: number;
}

/**
 * What services have outside of the mesh, from this host's file and the signed policy: names are resolved here, again and
 * again, and each address is an instance that only this host sees and dials. While a name cannot be resolved its former
 * addresses stay.
 */
export class ExternalTargets {
  readonly #options: ExternalTargetsOptions;
  readonly #lookUp: LookUp;
  readonly #bell = new Bell();
  readonly #names = new Map<string, Name>();
  #told = '';

  constructor(options: ExternalTargetsOptions) {
    this.#options = options;
    this.#lookUp = options.lookUp ?? resolveByMachine;
  }

  /** Runs until aborted. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, policy } = this.#options;
    const unsubscribe = policy.subscribe(() => this.#bell.ring());
    try {
      while (!signal.aborted) {
        const targets = this.#targets();
        await this.#resolve(targets);
        if (signal.aborted) return;
        this.#tell(targets);
        const dueMs = Math.min(...[...this.#names.values()].map((name) => name.dueMs));
        const cancel = Number.isFinite(dueMs)
          ? clock.after(Math.max(0, dueMs - clock.monotonicMs()), () => this.#bell.ring())
          : () => undefined;
        await this.#bell.wait(signal);
        cancel();
      }
    } finally {
      unsubscribe();
    }
  }

  #targets(): Map<string, readonly string[]> {
    const { configured, policy } = this.#options;
    const targets = new Map(policy.value?.external.map((row) => [row.service, row.targets] as const));
    for (const [service, list] of configured) targets.set(service, list);
    return targets;
  }

  async #resolve(targets: ReadonlyMap<string, readonly string[]>): Promise<void> {
    const { clock, conditions } = this.#options;
    const hosts = [...targets.values()].flat().map((target) => hostOf(target));
    const wanted = new Set(hosts.filter((host) => isIP(host) === 0));
    for (const name of this.#names.keys()) {
      if (wanted.has(name)) continue;
      this.#names.delete(name);
      conditions.clear(conditionOf(name));
    }
    for (const name of wanted) if (!this.#names.has(name)) this.#names.set(name, { addresses: [], dueMs: 0 });
    const nowMs = clock.monotonicMs();
    const due = [...this.#names].filter(([, { dueMs }]) => dueMs <= nowMs);
    for (let first = 0; first < due.length; first += maxQuestions) {
      await Promise.all(due.slice(first, first + maxQuestions).map(([name, state]) => this.#ask(name, state)));
    }
  }

  async #ask(name: string, state: Name): Promise<void> {
    const { clock, conditions } = this.#options;
    const failed = (problem: string, hint: string): void => {
      const kept = state.addresses.length === 0 ? '' : '; its former addresses go on being used';
      conditions.raise(conditionOf(name), 'warning', `the external target ${name} ${problem}${kept}`, hint);
    };
    let ttlMs = leastMs;
    try {
      const found = await this.#lookUp(name);
      ttlMs = found.ttlMs;
      const usable = [...new Set(found.addresses)].filter((address) => this.#isOutside(address)).sort();
      if (usable.length === 0) {
        const hint = 'a name that comes from outside may not lead into this host; write an address to mean it';
        failed(`resolves only to addresses of this host or its links (${found.addresses[0] ?? 'none'})`, hint);
      } else {
        state.addresses = usable.slice(0, maxAddresses);
        conditions.clear(conditionOf(name));
      }
    } catch (error) {
      failed(
        `cannot be resolved: ${describeError(error)}`,
        'is it spelt right, and does the resolver of this machine answer?',
      );
    }
    state.dueMs = clock.monotonicMs() + Math.min(mostMs, Math.max(leastMs, ttlMs));
  }

  /** Whoever answers for a name must not be able to point links at what listens on this host only. */
  #isOutside(address: string): boolean {
    if (isIP(address) === 0) return false;
    const range = ipaddr.process(address).range();
    const isInside = ['loopback', 'unspecified', 'linkLocal', 'multicast', 'broadcast'].includes(range);
    return !isInside && !this.#options.ownRanges.some((own) => isIP(address) === 4 && inRange(own, address));
  }

  #tell(targets: ReadonlyMap<string, readonly string[]>): void {
    const items = new Map<string, DesiredInstance>();
    for (const [service, list] of targets) {
      for (const target of list) for (const item of this.#instancesOf(service, target)) items.set(item.name, item);
    }
    const text = JSON.stringify([...items.values()]);
    if (text === this.#told) return;
    this.#told = text;
    this.#options.onChange({ kind: 'reset', items: [...items.values()], revision: '' });
  }

  #instancesOf(service: string, target: string): DesiredInstance[] {
    const host = hostOf(target);
    const port = Number(target.slice(target.lastIndexOf(':') + 1));
    const addresses = isIP(host) === 0 ? (this.#names.get(host)?.addresses ?? []) : [host];
    return addresses.map((address) => ({
      ...{ name: `${service}-${address}-${port}`, service, address, port, protocol: 'tcp', reach: 'host' },
      ...{ tags: [], meta: {}, weight: 1, draining: false, source: `${externalSource}:${target}` },
      incarnation: formatEndpoint({ address, port }),
      checks: [{ ...checkDefaults, kind: 'tcp', intervalMs: checkEveryMs, timeoutMs: 2000 }],
    }));
  }
}

/** The policy with what the file of the authority's host says of external targets; the same object when it says so already. */
export function withExternal(policy: Policy, configured: ReadonlyMap<string, readonly string[]>): Policy {
  const before = new Map(policy.external.map(({ service, targets }) => [service, targets]));
  const differs = [...configured].some(([name, list]) => String(before.get(name) ?? '') !== String(list));
  if (!differs) return policy;
  const all = [...new Map([...before, ...configured])].filter(([, targets]) => targets.length > 0);
  const external = all
    .map(([service, targets]) => ({ service, targets }))
    .sort((a, b) => (a.service < b.service ? -1 : 1));
  return { ...policy, external };
}

function hostOf(target: string): string {
  return target.slice(0, target.lastIndexOf(':')).replace(/^\[(.*)\]$/, '$1');
}

function conditionOf(name: string): string {
  return `external.resolve.${name}`;
}

async function resolveByMachine(name: string): Promise<Found> {
  // A new one each time: it reads which servers the machine has now.
  const resolver = new Resolver(question);
  const four = await resolver.resolve4(name, { ttl: true }).catch((error: unknown) => ({ error }));
  const found =
    Array.isArray(four) && four.length > 0
      ? four
      : await resolver.resolve6(name, { ttl: true }).catch((error: unknown) => ({ error }));
  if (!Array.isArray(found)) throw Array.isArray(four) ? found.error : four.error;
  return { addresses: found.map(({ address }) => address), ttlMs: 1000 * Math.min(...found.map(({ ttl }) => ttl)) };
}

export interface SignExternalOptions {
  readonly authority: Pick<PolicyAuthority, 'change'>;
  readonly policy: Observable<Policy | undefined>;
  readonly configured: ReadonlyMap<string, readonly string[]>;
  readonly log: Log;
}

/** On the authority's host: what its file says goes into the signed policy, for all hosts. Returns how to stop. */
export function signExternal({ authority, policy, configured, log }: SignExternalOptions): () => void {
  const look = (present: Policy | undefined): void => {
    if (present === undefined || isLocked(present) || withExternal(present, configured) === present) return;
    authority
      .change((latest) => withExternal(latest, configured))
      .catch((error: unknown) => {
        log.warn('external targets are not in the policy', {
          error: describeError(error),
          hint: 'restart to try again',
        });
      });
  };
  const unsubscribe = policy.subscribe(look);
  look(policy.value);
  return unsubscribe;
}
