import type { SidesOfProcess } from '../../proxy/side-document.ts';

/** What a side has carried since some moment. */
export interface Carried {
  readonly requests: number;
  readonly errors: number;
  /** Sum of the time that its requests took. */
  readonly seconds: number;
}

interface Sample {
  readonly atMs: number;
  readonly sides: ReadonlyMap<string, Carried>;
}

const nothing: Carried = { requests: 0, errors: 0, seconds: 0 };

/**
 * What the sides of splits have carried lately, from figures that processes tell now and then. A process that ends, or
 * does not answer once, takes nothing back and adds nothing twice: what counts is how much each one's figures have grown.
 */
export class SideTraffic {
  readonly #keptMs: number;
  /** The last figures of each process, by service and tag. */
  #told = new Map<string, Map<string, Carried>>();
  /** By service, then by tag: what was added up since the service is watched. */
  readonly #sums = new Map<string, Map<string, Carried>>();
  readonly #samples = new Map<string, Sample[]>();

  /** `keptMs`: how far back `since` may look. */
  constructor(keptMs: number) {
    this.#keptMs = keptMs;
  }

  /** Takes what processes tell at a moment; of services that are not in `watched` only the figures are remembered. */
  take(processes: readonly SidesOfProcess[], watched: Iterable<string>, nowMs: number): void {
    const services = new Set(watched);
    for (const service of this.#samples.keys()) if (!services.has(service)) this.forget(service);
    const told = new Map<string, Map<string, Carried>>();
    for (const { from, sides } of processes) {
      const before = this.#told.get(from);
      const now = new Map<string, Carried>();
      told.set(from, now);
      for (const { service, tag, requests, errors, seconds } of sides) {
        const key = keyOf(service, tag);
        const carried = { requests, errors, seconds };
        now.set(key, carried);
        // What one did before it was first asked is nobody's business here.
        if (before !== undefined && services.has(service)) {
          this.#add(service, tag, grown(before.get(key) ?? nothing, carried));
        }
      }
    }
    // One that was silent this time is still known, as long as its place is not taken by many others.
    for (const [from, figures] of this.#told) if (!told.has(from) && told.size < maxProcesses) told.set(from, figures);
    this.#told = told;
    for (const service of services) this.#sample(service, nowMs);
  }

  /** Begins anew: what was carried until now does not count any more. */
  forget(service: string): void {
    this.#samples.delete(service);
    this.#sums.delete(service);
  }

  /** What the side has carried within the last `withinMs`, as far as that was watched, and for how long that is. */
  since(service: string, tag: string, withinMs: number, nowMs: number): Carried & { readonly ms: number } {
    const samples = this.#samples.get(service) ?? [];
    const first = samples.find(({ atMs }) => nowMs - atMs <= withinMs) ?? samples.at(-1);
    const last = samples.at(-1);
    if (first === undefined || last === undefined) return { ...nothing, ms: 0 };
    const carried = grown(first.sides.get(tag) ?? nothing, last.sides.get(tag) ?? nothing);
    return { ...carried, ms: last.atMs - first.atMs };
  }

  /** What the processes have told of the side, all together: since they have had it. */
  total(service: string, tag: string): Carried {
    let total = nothing;
    for (const figures of this.#told.values()) total = sum(total, figures.get(keyOf(service, tag)) ?? nothing);
    return total;
  }

  #add(service: string, tag: string, more: Carried): void {
    let sums = this.#sums.get(service);
    if (sums === undefined) {
      sums = new Map();
      this.#sums.set(service, sums);
    }
    sums.set(tag, sum(sums.get(tag) ?? nothing, more));
  }

  #sample(service: string, atMs: number): void {
    const samples = this.#samples.get(service) ?? [];
    const kept = samples.filter((sample) => atMs - sample.atMs <= this.#keptMs);
    kept.push({ atMs, sides: new Map(this.#sums.get(service)) });
    this.#samples.set(service, kept.slice(-maxSamples));
  }
}

const maxSamples = 100;
/** Processes whose figures are remembered. */
const maxProcesses = 256;

function keyOf(service: string, tag: string): string {
  return JSON.stringify([service, tag]);
}

function sum(a: Carried, b: Carried): Carried {
  return { requests: a.requests + b.requests, errors: a.errors + b.errors, seconds: a.seconds + b.seconds };
}

/** A process of which less is told than before has forgotten a service in between, and begun anew. */
function grown(before: Carried, now: Carried): Carried {
  const isNew = now.requests < before.requests || now.errors < before.errors || now.seconds < before.seconds;
  const { requests, errors, seconds } = isNew ? nothing : before;
  return { requests: now.requests - requests, errors: now.errors - errors, seconds: now.seconds - seconds };
}
