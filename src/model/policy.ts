/**
 * The mesh's one policy document: who may call whom, which hosts may offer and speak for which services, what is outside of
 * the mesh, whom to believe. It is signed as a whole by the policy key; only its version orders it.
 */
export interface Policy {
  /** The mesh's name and id: a policy of another mesh is refused. */
  readonly mesh: string;
  readonly meshId: string;
  /** Greater than the last one's: max(last + 1, wall clock in milliseconds). */
  readonly version: number;
  /** The id of the authority's host: the one that changes settings in the store and removes others' records. */
  readonly authority: string;
  /** PEM, each one certificate: the authority's roots; two while they are being rotated. */
  readonly roots: readonly string[];
  /** Whether a consumer may call a service where no intent says. */
  readonly default: 'allow' | 'deny';
  /** `learn`: what would be refused is carried, and reported. */
  readonly mode: 'enforce' | 'learn';
  /** Whether a link that a container declares (`legate.links`) is permission, where no intent denies it by name. */
  readonly fromLinks: boolean;
  readonly intents: readonly Intent[];
  readonly grants: readonly Grant[];
  /** What links may reach outside of the mesh, by service; hosts that did not get them from their own file need these. */
  readonly external: readonly ExternalTargets[];
  /** Hosts that are refused whatever they show, for ever: a host that comes back gets another id. */
  readonly revoked: readonly RevokedHost[];
}

/** `*` for any. */
export interface Intent {
  readonly consumer: string;
  readonly service: string;
  readonly action: 'allow' | 'deny';
  /** Wall clock, milliseconds. */
  readonly setAtMs: number;
}

/** The host may offer the service and speak for it as a consumer. */
export interface Grant {
  readonly hostId: string;
  /** `*` for any. */
  readonly service: string;
  readonly setAtMs: number;
}

export interface ExternalTargets {
  readonly service: string;
  /** `host:port`, a name or an address. */
  readonly targets: readonly string[];
}

export interface RevokedHost {
  readonly hostId: string;
  /** As it was called, for people. */
  readonly name: string;
  readonly setAtMs: number;
}

/** Whether a consumer may call a service, and why. */
export interface Decision {
  readonly allowed: boolean;
  /**
   * What decided; `learning`: it would have been refused; `grant`: the host that speaks for the consumer may not;
   * `locked`: this host has no policy that it can read.
   */
  readonly by: 'intent' | 'link' | 'default' | 'learning' | 'no policy' | 'grant' | 'locked';
  /** The intent that decided, or would have. */
  readonly intent?: Intent;
}

/**
 * Whether `consumer` may call `service`. The intent that names most decides: a named service before `*`, then a named
 * consumer before `*`. Without one a declared link is permission where the policy says so, else its default holds.
 */
export function decide(
  policy: Policy | undefined,
  { consumer, service, declared }: { readonly consumer: string; readonly service: string; readonly declared: boolean },
): Decision {
  if (policy === undefined) return { allowed: true, by: 'no policy' };
  if (isLocked(policy)) return { allowed: false, by: 'locked' };
  const intent = intentFor(policy, consumer, service);
  // What names nobody is no more than a default. All else was said by whoever holds the policy's key, and whoever may start
  // a container with a label does not overrule it.
  if (declared && policy.fromLinks && (intent === undefined || namesNobody(intent))) {
    return { allowed: true, by: 'link' };
  }
  const allowed = intent === undefined ? policy.default === 'allow' : intent.action === 'allow';
  const found = intent === undefined ? {} : { intent };
  if (!allowed && policy.mode === 'learn') return { allowed: true, by: 'learning', ...found };
  return { allowed, by: intent === undefined ? 'default' : 'intent', ...found };
}

/** What holds on a host of a mesh that cannot read the policy: nothing is allowed. It has no roots, and was never signed. */
export function lockedPolicy(mesh: string): Policy {
  const nothing = { roots: [], intents: [], grants: [], external: [], revoked: [] };
  const mode = { default: 'deny', mode: 'enforce', fromLinks: false } as const;
  return { mesh, meshId: '', version: 0, authority: '', ...mode, ...nothing };
}

export function isLocked(policy: Policy): boolean {
  return policy.version === 0;
}

/** Why, for people: `no intent allows web to call db, and the default is deny`. */
export function decisionText(
  { allowed, by, intent }: Decision,
  { consumer, service }: { readonly consumer: string; readonly service: string },
): string {
  const rule = intent === undefined ? '' : `the intent ${intent.action} ${intent.consumer} ${intent.service}`;
  switch (by) {
    case 'intent':
      return `${rule} ${allowed ? 'allows' : 'forbids'} ${consumer} to call ${service}`;
    case 'link':
      return `${consumer} declares a link to ${service} (legate.links), which is permission`;
    case 'default':
      return `no intent names ${consumer} and ${service}, and the default is ${allowed ? 'allow' : 'deny'}`;
    case 'learning':
      return `${rule === '' ? 'the default deny' : rule} would forbid ${consumer} to call ${service}, but the mode is learn`;
    case 'grant':
      return `the host that speaks for ${consumer} has no grant for it`;
    case 'locked':
      return 'this host has no policy that it can read, and allows nothing until it gets one';
    case 'no policy':
      return 'there is no policy: this host is in no mesh with an authority';
  }
}

function namesNobody({ consumer, service }: Intent): boolean {
  return consumer === '*' && service === '*';
}

/** The intent that holds for the pair; undefined where none does. */
export function intentFor(policy: Policy, consumer: string, service: string): Intent | undefined {
  let best: Intent | undefined;
  let bestRank = -1;
  for (const intent of policy.intents) {
    if (intent.service !== service && intent.service !== '*') continue;
    if (intent.consumer !== consumer && intent.consumer !== '*') continue;
    const rank = (intent.service === '*' ? 0 : 2) + (intent.consumer === '*' ? 0 : 1);
    if (rank > bestRank) {
      best = intent;
      bestRank = rank;
    }
  }
  return best;
}

/** Consumers that are no service: every host may speak for these, of itself. */
const selfSpoken: ReadonlySet<string> = new Set(['host', 'anonymous']);

/**
 * Whether a host may offer a service, and speak for it as a consumer. Where no grant names the host or the service, it
 * may; else a grant has to say so: a granted service is only that of its hosts, and a granted host only offers its services.
 */
export function mayOffer(policy: Policy | undefined, hostId: string, service: string): boolean {
  if (policy === undefined || selfSpoken.has(service)) return true;
  let isNamed = false;
  for (const grant of policy.grants) {
    if (grant.hostId === hostId) {
      if (grant.service === service || grant.service === '*') return true;
      isNamed = true;
    } else if (grant.service === service) isNamed = true;
  }
  return !isNamed;
}

/** `mayOffer` for those who ask of many: what the policy says is sorted once. */
export function grantBook(policy: Policy | undefined): (hostId: string, service: string) => boolean {
  if (policy === undefined || policy.grants.length === 0) return () => true;
  const byHost = new Map<string, Set<string>>();
  const services = new Set<string>();
  for (const { hostId, service } of policy.grants) {
    services.add(service);
    const granted = byHost.get(hostId);
    if (granted === undefined) byHost.set(hostId, new Set([service]));
    else granted.add(service);
  }
  return (hostId, service) => {
    if (selfSpoken.has(service)) return true;
    const granted = byHost.get(hostId);
    if (granted === undefined) return !services.has(service);
    return granted.has(service) || granted.has('*');
  };
}

/** What is said on a host that was revoked, and what its people do. */
export const revokedText = 'this host was revoked: the other hosts refuse it';
/** What a host does that the others refuse. */
export const joinAgainHint =
  "legate token on the authority's host, then here, the sidecar stopped: legate join ADDRESS --again --token TOKEN";
/** Of revoked hosts alone: `status` knows by it what is said of them. */
export const comeBackHint = `to come back: ${joinAgainHint}`;

export function isRevoked(policy: Policy | undefined, hostId: string): boolean {
  return policy?.revoked.some((host) => host.hostId === hostId) === true;
}

/** Whether another host is the authority's, by a policy that can be read. */
export function isAuthorityElsewhere(policy: Policy | undefined, hostId: string): boolean {
  return policy !== undefined && !isLocked(policy) && policy.authority !== hostId;
}

/**
 * Whether a host may change what is the whole mesh's in the store, and what others have there: the authority's host, and
 * every host where there is no policy.
 */
export function isInCharge(policy: Policy | undefined, hostId: string): boolean {
  return policy === undefined || policy.authority === hostId;
}
