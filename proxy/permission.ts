import type { Clock } from '../src/base/clock.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import { printable } from '../src/base/text.ts';
import { type Decision, decide, decisionText, grantBook, type Intent, type Policy } from '../src/model/policy.ts';

/** Between two lines in the log about one consumer and service; those between are counted. */
const logEveryMs = 60_000;

/** Who asks for what. */
export interface Asked {
  /** The identity behind the connection: a service, `host` or `anonymous`. */
  readonly consumer: string;
  readonly service: string;
  /** Whether the consumer declares a link to the service (`legate.links`). */
  readonly declared: boolean;
}

/** A connection that policy refused, as the admin API shows it. Times are RFC 3339. */
export interface DenialDocument {
  readonly at: string;
  readonly consumer: string;
  /** `host`: the instance's host, of its own accord. */
  readonly by: Decision['by'] | 'host';
  /** The name of the host that refused it, where it was not this one; null where it was. */
  readonly host: string | null;
  /** The intent that refused it; null when none did, or when it is not known here. */
  readonly intent: { readonly consumer: string; readonly service: string; readonly setAt: string } | null;
  /** Why, for people. */
  readonly message: string;
}

export interface PermissionOptions {
  readonly policy: Observable<Policy | undefined>;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  /** Hears of each call that is carried only because the mode is `learn`. Cheap: it is called for every connection. */
  readonly onLearned?: ((learned: { readonly consumer: string; readonly service: string }) => void) | undefined;
}

/** Who may call whom, as of the present policy: decided once for each pair, then looked up. For both ends of a link. */
export class Permission {
  /** Decisions that are remembered until the policy changes. */
  static readonly maxRemembered = 16_384;
  /** Pairs of whose refusals the log is told one by one; all others share one line. */
  static readonly maxLogged = 256;
  readonly #options: PermissionOptions;
  readonly #logged = new Map<string, { untilMs: number; more: number }>();
  #decisions = new Map<string, Decision>();
  #decidedBy: Policy | undefined;
  #speaks = grantBook(undefined);
  #revoked: ReadonlySet<string> = new Set();

  constructor(options: PermissionOptions) {
    this.#options = options;
  }

  /** Whether the consumer may call the service, and why. */
  permits(asked: Asked): Decision {
    const policy = this.#follow();
    const key = `${asked.declared ? '+' : '-'}${asked.service} ${asked.consumer}`;
    let decision = this.#decisions.get(key);
    if (decision === undefined) {
      decision = decide(policy, asked);
      if (this.#decisions.size < Permission.maxRemembered) this.#decisions.set(key, decision);
    }
    if (decision.by === 'learning') this.#options.onLearned?.(asked);
    return decision;
  }

  /**
   * As `permits`, for what another host asks: it also has to be in the mesh still, and needs the right to speak for the
   * consumer, whatever the mode.
   */
  permitsFrom(hostId: string, asked: Asked): Decision {
    this.#follow();
    if (this.#revoked.has(hostId) || !this.#speaks(hostId, asked.consumer)) return { allowed: false, by: 'grant' };
    return this.permits(asked);
  }

  /** Calls back after each change of the policy. Returns how to stop. */
  onChange(listener: () => void): () => void {
    return this.#options.policy.subscribe(listener);
  }

  /** Counts and logs that a connection was refused, or was cut. `hostId`: whose sidecar asked, when it is not this one. */
  denied({ consumer, service }: Asked, decision: Decision, hostId?: string): DenialDocument {
    const { clock, metrics } = this.#options;
    const { by, intent } = decision;
    metrics.counter('legate_link_denied_total', 'Connections that policy refused or cut.', {
      service,
      consumer,
      by,
    }).value += 1;
    const message = decisionText(decision, { consumer, service });
    this.#log({ consumer, service, message, by, hostId });
    return { at: new Date(clock.nowMs()).toISOString(), consumer, by, host: null, intent: shown(intent), message };
  }

  /** The present policy; what was remembered of the one before is forgotten. */
  #follow(): Policy | undefined {
    const policy = this.#options.policy.value;
    if (policy === this.#decidedBy) return policy;
    this.#decidedBy = policy;
    this.#decisions = new Map();
    this.#speaks = grantBook(policy);
    this.#revoked = new Set(policy?.revoked.map(({ hostId }) => hostId));
    return policy;
  }

  #log(denied: { consumer: string; service: string; message: string; by: string; hostId: string | undefined }): void {
    const { clock, log } = this.#options;
    const nowMs = clock.monotonicMs();
    let pair = `${denied.service} ${denied.consumer}`;
    if (!this.#logged.has(pair) && this.#logged.size >= Permission.maxLogged) this.#forgetLogged(nowMs);
    if (!this.#logged.has(pair) && this.#logged.size >= Permission.maxLogged) pair = '';
    const known = this.#logged.get(pair);
    if (known !== undefined && nowMs < known.untilMs) {
      known.more += 1;
      return;
    }
    this.#logged.set(pair, { untilMs: nowMs + logEveryMs, more: 0 });
    log.warn('connection denied by policy', {
      'link.service': printable(denied.service),
      'link.consumer': printable(denied.consumer),
      'policy.by': denied.by,
      'policy.reason': printable(denied.message),
      ...(denied.hostId !== undefined && { 'peer.host': denied.hostId }),
      ...(known !== undefined && { 'link.denied_before': known.more }),
    });
  }

  #forgetLogged(nowMs: number): void {
    for (const [pair, { untilMs }] of this.#logged) if (untilMs <= nowMs) this.#logged.delete(pair);
  }
}

function shown(intent: Intent | undefined): DenialDocument['intent'] {
  if (intent === undefined) return null;
  const { consumer, service, setAtMs } = intent;
  return { consumer, service, setAt: new Date(setAtMs).toISOString() };
}
