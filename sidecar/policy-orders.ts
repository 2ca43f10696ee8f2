import type { Clock } from '../src/base/clock.ts';
import { LegateError } from '../src/base/errors.ts';
import type { Observable } from '../src/base/feed.ts';
import { nearest, printable, truncate } from '../src/base/text.ts';
import type { Ungranted } from '../src/catalog/rights.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import { isExternal } from '../src/model/instance.ts';
import {
  type Decision,
  decide,
  decisionText,
  type Grant,
  grantBook,
  type Intent,
  isLocked,
  isRevoked,
  type Policy,
} from '../src/model/policy.ts';
import { anyServiceFault, consumerFault } from '../src/model/policy-document.ts';
import type { PolicyAuthority } from '../src/registrar/policy-authority.ts';
import type {
  GrantChangeDocument,
  IntentCheckDocument,
  IntentDocument,
  LearnedDocument,
  OfferDocument,
  PolicyDocument,
  PolicySettingsDocument,
  PolicyStatusDocument,
  RevocationDocument,
} from './admin/policy-documents.ts';
import { allowCommand, grantsTogether } from './grant-advice.ts';
import type { MergedPair } from './learned-pairs.ts';

export interface PolicyOrdersOptions {
  readonly self: { readonly hostId: string; readonly hostName: string };
  readonly policy: Observable<Policy | undefined>;
  /** On the authority's host. */
  readonly authority: PolicyAuthority | undefined;
  readonly snapshots: Observable<Snapshot>;
  readonly ungranted: Observable<readonly Ungranted[]>;
  /** Whether a container of this host declares such a link. */
  readonly declares: (consumer: string, service: string) => boolean;
  readonly learned: () => Promise<readonly MergedPair[]>;
  readonly clock: Clock;
}

/**
 * What people ask of the policy and order it to be. Errors: E_NOT_FOUND where there is no policy or no such host, E_CONFLICT
 * for a change on another host than the authority's, E_INVALID, and those of `PolicyAuthority.change`.
 */
export class PolicyOrders {
  readonly #options: PolicyOrdersOptions;

  constructor(options: PolicyOrdersOptions) {
    this.#options = options;
  }

  document(policy = this.#policy()): PolicyDocument {
    const { self, authority } = this.#options;
    return {
      version: policy.version,
      setAt: timeText(policy.version),
      default: policy.default,
      mode: policy.mode,
      fromLinks: policy.fromLinks,
      intents: policy.intents.map(intentDocument),
      grants: policy.grants.map(({ hostId, service, setAtMs }) => {
        return { hostId, host: this.#nameOf(hostId) ?? null, service, setAt: timeText(setAtMs) };
      }),
      external: policy.external,
      revoked: policy.revoked.map(({ hostId, name, setAtMs }) => ({
        hostId,
        host: name,
        revokedAt: timeText(setAtMs),
      })),
      authority: {
        id: policy.authority,
        name: this.#nameOf(policy.authority) ?? null,
        self: policy.authority === self.hostId,
      },
      stored: authority?.stored ?? null,
    };
  }

  async set(body: PolicySettingsDocument): Promise<PolicyDocument> {
    const settings = settingsOf(body);
    return this.document(
      await this.#change((policy) => {
        const isSame = Object.entries(settings).every(([key, value]) => policy[key as keyof Policy] === value);
        return isSame ? policy : { ...policy, ...settings };
      }),
    );
  }

  async setIntent(consumer: string, service: string, action: unknown): Promise<PolicyDocument> {
    checkPair(consumer, service);
    if (action !== 'allow' && action !== 'deny') {
      throw new LegateError('E_INVALID', '"action" is neither allow nor deny', { hint: 'send {"action": "allow"}' });
    }
    const intent: Intent = { consumer, service, action, setAtMs: Math.trunc(this.#options.clock.nowMs()) };
    const document = this.document(
      await this.#change((policy) => {
        const known = policy.intents.find((each) => each.consumer === consumer && each.service === service);
        if (known?.action === action) return policy;
        return { ...policy, intents: [...policy.intents.filter((each) => each !== known), intent] };
      }),
    );
    return { ...document, notes: this.#doubts(service, consumer) };
  }

  async removeIntent(consumer: string, service: string): Promise<PolicyDocument> {
    checkPair(consumer, service);
    return this.document(
      await this.#change((policy) => {
        const known = policy.intents.find((each) => each.consumer === consumer && each.service === service);
        if (known !== undefined) return { ...policy, intents: policy.intents.filter((each) => each !== known) };
        throw new LegateError('E_NOT_FOUND', `no intent names exactly ${consumer} and ${service}`, {
          hint: 'legate intent list shows those that there are',
        });
      }),
    );
  }

  check(consumer: string, service: string): IntentCheckDocument {
    checkPair(consumer, service);
    const declared = this.#options.declares(consumer, service);
    const decision: Decision = decide(this.#options.policy.value, { consumer, service, declared });
    const { allowed, by, intent } = decision;
    const message = decisionText(decision, { consumer, service });
    const rule = intent === undefined ? null : intentDocument(intent);
    return { consumer, service, allowed, by, intent: rule, message, declared, notes: this.#doubts(service, consumer) };
  }

  async learned(): Promise<LearnedDocument> {
    const policy = this.#policy();
    const pairs = (await this.#options.learned()).filter(({ consumer, service }) => {
      return !decide({ ...policy, mode: 'enforce' }, { consumer, service, declared: false }).allowed;
    });
    return {
      mode: policy.mode,
      pairs: pairs.map(({ consumer, service, count, firstMs, lastMs, hostIds }) => {
        const hosts = hostIds.map((id) => this.#nameOf(id) ?? id);
        return { consumer, service, count, since: timeText(firstMs), last: timeText(lastMs), hosts };
      }),
    };
  }

  /** Lets a host offer a service and speak for it, or takes that back. */
  async grant(name: string, service: string, on: boolean): Promise<GrantChangeDocument> {
    checkService(service);
    const before = this.#policy();
    this.#authority(before);
    const { hostId, host } = this.#hostNamed(name, before);
    const after = await this.#change((policy) => {
      const known = policy.grants.find((each) => each.hostId === hostId && each.service === service);
      if ((known !== undefined) === on) return policy;
      if (known !== undefined) return { ...policy, grants: policy.grants.filter((each) => each !== known) };
      if (isRevoked(policy, hostId)) throw revokedBefore(host);
      const grant: Grant = { hostId, service, setAtMs: Math.trunc(this.#options.clock.nowMs()) };
      return { ...policy, grants: [...policy.grants, grant] };
    });
    const offers = after.grants.filter((each) => each.hostId === hostId).map((each) => each.service);
    const holders = after.grants.filter((each) => each.service === service || each.service === '*');
    const isHeld = after.grants.some((each) => each.service === service);
    return {
      host,
      hostId,
      service,
      changed: after !== before,
      offers: offers.length === 0 ? null : offers.sort(),
      offeredBy: isHeld ? [...new Set(holders.map((each) => this.#nameOf(each.hostId) ?? each.hostId))].sort() : null,
      ...this.#effects(before, after),
      stored: this.#options.authority?.stored ?? false,
      notes: this.#doubts(service),
    };
  }

  /** For ever: whoever has the host's certificate is refused from now on. */
  async revoke(name: string): Promise<RevocationDocument> {
    const { self, clock, authority } = this.#options;
    const before = this.#policy();
    this.#authority(before);
    const { hostId, host } = this.#hostNamed(name, before);
    if (hostId === self.hostId) {
      throw new LegateError('E_CONFLICT', `${host} is the authority's host, which cannot revoke itself`, {
        hint: 'to end the mesh, stop its sidecars; to move the authority, use legate ca backup and restore',
      });
    }
    const after = await this.#change((policy) => {
      if (isRevoked(policy, hostId)) return policy;
      const grants = policy.grants.filter((grant) => grant.hostId !== hostId);
      const revoked = [...policy.revoked, { hostId, name: host, setAtMs: Math.trunc(clock.nowMs()) }];
      return { ...policy, grants, revoked };
    });
    const setAtMs = after.revoked.find((each) => each.hostId === hostId)?.setAtMs ?? clock.nowMs();
    const stored = authority?.stored ?? false;
    return { hostId, host, revokedAt: timeText(setAtMs), changed: after !== before, stored };
  }

  #change(by: (policy: Policy) => Policy): Promise<Policy> {
    return this.#authority(this.#policy()).change(by);
  }

  #policy(): Policy {
    const { value } = this.#options.policy;
    if (value !== undefined && !isLocked(value)) return value;
    const locked = value !== undefined;
    const what = locked ? 'this host has no policy that it can read' : 'there is no policy: this mesh has no authority';
    const hint = 'legate init makes an authority; until then everybody may call everybody';
    throw new LegateError('E_NOT_FOUND', what, { hint: locked ? 'legate status says why' : hint });
  }

  #authority(policy: Policy): PolicyAuthority {
    const { authority, self } = this.#options;
    if (authority !== undefined && policy.authority === self.hostId) return authority;
    const where = this.#nameOf(policy.authority) ?? `host ${policy.authority}`;
    throw new LegateError('E_CONFLICT', `the policy is changed on the authority's host, which is ${where}`, {
      hint: `run it there, or here with --admin HOST:PORT --token-file FILE: where admin.listen of ${where} listens, and its admin.token`,
    });
  }

  /** By name or id: also one that has left its records behind, or that only the policy names. */
  #hostNamed(name: string, policy: Policy): { readonly hostId: string; readonly host: string } {
    const { self, snapshots } = this.#options;
    const hosts = [...snapshots.value.hosts.values()].filter(({ id }) => id !== self.hostId);
    const all = [{ id: self.hostId, name: self.hostName }, ...hosts];
    const found = all.filter((host) => host.name === name || host.id === name);
    const [first] = found;
    if (found.length > 1) {
      const ids = found.map(({ id }) => id).join(', ');
      const hint = `say which by its id: ${ids}`;
      throw new LegateError('E_CONFLICT', `${found.length} hosts are called ${printable(name)}`, { hint });
    }
    if (first !== undefined) return { hostId: first.id, host: first.name };
    const revoked = policy.revoked.find((host) => host.hostId === name || host.name === name);
    if (revoked !== undefined) return { hostId: revoked.hostId, host: revoked.name };
    if (/^[0-9a-f]{16}$/.test(name)) return { hostId: name, host: name };
    throw new LegateError('E_NOT_FOUND', `there is no host ${JSON.stringify(printable(truncate(name, 80)))}`, {
      hint: 'legate hosts lists them; a host that is gone can be named by its id',
    });
  }

  #nameOf(hostId: string): string | undefined {
    const { self, snapshots } = this.#options;
    return hostId === self.hostId ? self.hostName : snapshots.value.hosts.get(hostId)?.name;
  }

  /**
   * What may be mistyped, and need not be: services come later, and consumers may be containers of other hosts, of which
   * nothing is known here.
   */
  #doubts(service: string, consumer?: string): string[] {
    const { services, origin } = this.#options.snapshots.value;
    if (origin === 'none') return [];
    const notes: string[] = [];
    const isFree = (name: string): boolean => name === '*' || services.get(name) !== undefined;
    if (consumer !== undefined && !isFree(consumer) && consumer !== 'host' && consumer !== 'anonymous') {
      const near = nearest(consumer, [...services.keys(), 'host', 'anonymous']);
      if (near !== undefined) notes.push(`no service ${consumer} is known yet; did you mean ${near}?`);
    }
    if (!isFree(service) && !this.#options.ungranted.value.some((each) => each.service === service)) {
      const near = nearest(service, services.keys());
      notes.push(`no service ${service} is known yet${near === undefined ? '' : `; did you mean ${near}?`}`);
    }
    return notes;
  }

  /** What the change leaves out everywhere, and what it lets in. */
  #effects(before: Policy, after: Policy): Pick<GrantChangeDocument, 'leftOut' | 'letIn' | 'keep'> {
    const { snapshots, ungranted } = this.#options;
    const could = grantBook(before);
    const can = grantBook(after);
    const all = new Map<string, { hostId: string; host: string; service: string; ids: Set<string> }>();
    const shown = [...snapshots.value.services.values()]
      .flatMap(({ instances }) => instances)
      .filter((instance) => !isExternal(instance));
    for (const { id, hostId, host, service } of [...shown, ...ungranted.value]) {
      const key = `${hostId} ${service}`;
      const known = all.get(key);
      if (known === undefined) all.set(key, { hostId, host, service, ids: new Set([id]) });
      else known.ids.add(id);
    }
    const of = (gone: boolean): OfferDocument[] =>
      [...all.values()]
        .filter(({ hostId, service }) => could(hostId, service) === gone && can(hostId, service) !== gone)
        .map(({ host, service, ids }) => ({ host, service, instances: ids.size }));
    const [leftOut, letIn] = [of(true), of(false)];
    if (leftOut.length === 0) return { leftOut, letIn };
    const lost = [...all.values()].filter(({ hostId, service }) => could(hostId, service) && !can(hostId, service));
    const stay = [...all.values()].filter(({ hostId, service }) => can(hostId, service));
    return { leftOut, letIn, keep: grantsTogether(after, lost, stay)?.map(allowCommand) ?? null };
  }
}

/** The policy's part of the status. */
export function policyStatus(policy: Policy | undefined): PolicyStatusDocument | null {
  if (policy === undefined) return null;
  const { version, mode, fromLinks, intents, grants, revoked } = policy;
  return {
    version,
    setAt: isLocked(policy) ? null : timeText(version),
    default: policy.default,
    mode,
    fromLinks,
    intents: intents.length,
    grants: grants.length === 0 ? 'any' : grants.length,
    revoked: revoked.length,
  };
}

function intentDocument({ consumer, service, action, setAtMs }: Intent): IntentDocument {
  return { consumer, service, action, setAt: timeText(setAtMs) };
}

/** A version is a time, unless changes met in one millisecond or a clock was far ahead. */
function timeText(wallMs: number): string {
  return new Date(Math.min(wallMs, 8.64e15)).toISOString();
}

function checkPair(consumer: string, service: string): void {
  const fault = consumerFault(consumer);
  if (fault !== undefined) {
    throw new LegateError('E_INVALID', `the consumer's name ${quoted(consumer)} ${fault}`, {
      hint: 'a consumer is a service, host, anonymous, or * for all',
    });
  }
  checkService(service);
}

function checkService(service: string): void {
  const fault = anyServiceFault(service);
  if (fault === undefined) return;
  throw new LegateError('E_INVALID', `the service's name ${quoted(service)} ${fault}`, {
    hint: 'legate services lists the names; * stands for all',
  });
}

function quoted(text: string): string {
  return JSON.stringify(printable(truncate(text, 80)));
}

function revokedBefore(host: string): LegateError {
  return new LegateError('E_CONFLICT', `${host} was revoked, which is for ever`, {
    hint: 'let it join anew: it gets another id, to which services can be granted',
  });
}

function settingsOf(body: PolicySettingsDocument): Partial<Pick<Policy, 'default' | 'mode' | 'fromLinks'>> {
  const given = Object.entries(body);
  const settings: { default?: Policy['default']; mode?: Policy['mode']; fromLinks?: boolean } = {};
  for (const [key, value] of given) {
    if (key === 'default' && (value === 'allow' || value === 'deny')) settings.default = value;
    else if (key === 'mode' && (value === 'enforce' || value === 'learn')) settings.mode = value;
    else if (key === 'fromLinks' && typeof value === 'boolean') settings.fromLinks = value;
    else {
      throw new LegateError('E_INVALID', `${quoted(key)} cannot be set to ${quoted(JSON.stringify(value) ?? '')}`, {
        hint: 'default is allow or deny, mode is enforce or learn, fromLinks is true or false',
      });
    }
  }
  if (given.length > 0) return settings;
  throw new LegateError('E_INVALID', 'there is nothing to set', { hint: 'give default, mode or fromLinks' });
}
