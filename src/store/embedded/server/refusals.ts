import type { Clock } from '../../../base/clock.ts';
import type { Conditions } from '../../../base/conditions.ts';
import type { Metrics } from '../../../base/metrics.ts';
import { printable, truncate } from '../../../base/text.ts';

export interface RefusalsOptions {
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  /** The id of a living host that has this name or this address. */
  readonly livingHost?: ((name: string, address: string) => string | undefined) | undefined;
}

/** Who was not let in, and why: the end of a sentence about it. */
export interface RefusedClient {
  readonly address: string;
  readonly why: string;
  /** The host that it has proved to be, which was revoked. */
  readonly revoked?: { readonly hostId: string; readonly name: string };
}

/** What a host may not do: what it concerns in a word, and the deed, such as `write the policy`. */
export interface RefusedDeed {
  readonly hostId: string;
  readonly name: string;
  readonly kind: string;
  readonly deed: string;
}

interface Shown {
  /** What it tried, of hosts that were let in. */
  readonly deeds: Set<string>;
  message: string;
  cancel: () => void;
}

/** At most so many causes are shown at a time; the others are only counted. */
const maxShown = 20;
/** What is said of one of them is taken back after a while without a further refusal. */
const quietMs = 2 * 60_000;
/** A sidecar that runs tries again within 10 s: one that has kept quiet for longer has been stopped. */
const revokedQuietMs = 30_000;
/** Deeds of one host that are told apart, and those that are named. What is said changes, and is logged, with each. */
const maxDeeds = 20;
const namedDeeds = 3;
const prefix = 'store.refused.';

/**
 * Shows who was refused by the offered store: one condition for each cause of a client and for each host, which ends when
 * there was none for a while. Everything is counted; what is said and logged is bounded.
 */
export class Refusals {
  readonly #options: RefusalsOptions;
  readonly #shown = new Map<string, Shown>();

  constructor(options: RefusalsOptions) {
    this.#options = options;
  }

  /** A client that was not let in. */
  connection({ address, why, revoked }: RefusedClient): void {
    const at = printable(truncate(address, 60));
    if (revoked !== undefined) {
      this.#revoked({ name: printable(truncate(revoked.name, 80)), hostId: revoked.hostId, at });
      return;
    }
    const cause = why
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .slice(0, 80);
    const hint = 'a host comes back with legate join; if it is none of yours, keep it away from this port';
    const name = `client.${at}.${cause}`;
    this.#raise(name, this.#shownAs(name, `the store refuses a client from ${at}: ${why}`), hint);
  }

  /** Whoever took its name or its address since is another host, and not to be stopped in its stead. */
  #revoked({ name, hostId, at }: { readonly name: string; readonly hostId: string; readonly at: string }): void {
    const living = this.#options.livingHost?.(name, at);
    const other =
      living === undefined || living === hostId ? '' : `, not host ${living}, which has its name or address now`;
    const back = other === '' ? '; to have it back: legate token, then legate join --again there' : '';
    const hint = `if it is still running, stop the sidecar whose id is ${hostId}${other}${back}`;
    const message = `host ${name} (${hostId}) was revoked and still tries to reach the store, from ${at}`;
    this.#raise(`revoked.${hostId}`, this.#shownAs(`revoked.${hostId}`, message), hint, revokedQuietMs);
  }

  /** A host that may not do what it asked for. */
  request({ hostId, name, kind, deed }: RefusedDeed): void {
    const help = 'Requests that the offered store refused because the host may not do that, by what they concerned.';
    this.#options.metrics.counter('legate_store_refused_writes_total', help, { kind }).value += 1;
    const hint =
      'if that host is not to be trusted any more: legate host revoke; else it may run another version, or have an old policy';
    const shown = this.#shownAs(`host.${hostId}`, '');
    if (shown !== undefined && shown.deeds.size < maxDeeds && !shown.deeds.has(deed)) {
      shown.deeds.add(deed);
      shown.message = `host ${name} tried to ${deedsText([...shown.deeds])}`;
    }
    this.#raise(`host.${hostId}`, shown, hint);
  }

  close(): void {
    for (const name of [...this.#shown.keys()]) this.#end(name);
    this.#options.conditions.clearPrefix(prefix);
  }

  /** What is shown of it, with the first message; undefined when too much is. */
  #shownAs(name: string, message: string): Shown | undefined {
    const known = this.#shown.get(name);
    if (known !== undefined || this.#shown.size >= maxShown) return known;
    const shown = { deeds: new Set<string>(), message, cancel: () => undefined };
    this.#shown.set(name, shown);
    return shown;
  }

  #raise(name: string, shown: Shown | undefined, hint: string, lastsMs = quietMs): void {
    if (shown === undefined) return;
    const { clock, conditions } = this.#options;
    shown.cancel();
    shown.cancel = clock.after(lastsMs, () => this.#end(name));
    conditions.raise(prefix + name, 'warning', shown.message, hint);
  }

  #end(name: string): void {
    const shown = this.#shown.get(name);
    shown?.cancel();
    this.#shown.delete(name);
    this.#options.conditions.clear(prefix + name);
  }
}

/** `write the policy, instances of web-1 and 3 more kinds`. */
function deedsText(deeds: readonly string[]): string {
  const named = deeds.slice(0, deeds.length <= namedDeeds ? namedDeeds : namedDeeds - 1);
  const words = named.map((deed, index) => {
    const [verb] = deed.split(' ', 1);
    const isSame = index > 0 && named[index - 1]?.split(' ', 1)[0] === verb;
    return isSame ? deed.slice(`${verb} `.length) : deed;
  });
  const rest = deeds.length - named.length;
  if (rest > 0) words.push(`${rest} more kind${rest === 1 ? '' : 's'}`);
  const last = words.at(-1) ?? '';
  return words.length > 1 ? `${words.slice(0, -1).join(', ')} and ${last}` : last;
}
