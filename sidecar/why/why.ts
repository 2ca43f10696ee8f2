import type { DataPlane } from '../../proxy/data-plane.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { LegateError } from '../../src/base/errors.ts';
import type { Observable } from '../../src/base/feed.ts';
import { printable, truncate } from '../../src/base/text.ts';
import type { Ungranted } from '../../src/catalog/rights.ts';
import type { Snapshot } from '../../src/catalog/snapshot.ts';
import type { HealthDetails } from '../../src/health/runner.ts';
import type { CallerTable } from '../../src/model/caller.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import { type Instance, transportOf } from '../../src/model/instance.ts';
import type { LinkListener } from '../../src/model/link.ts';
import { decide, isRevoked, mayOffer, type Policy } from '../../src/model/policy.ts';
import type { StoreStatus } from '../../src/store/store.ts';
import type { NameServerDocument, PictureDocument, ResolveDocument } from '../admin/documents.ts';
import type { WhyDocument } from '../admin/why-document.ts';
import type { DockerSource } from '../docker/source.ts';
import { grantAdvice, offersOf } from '../grant-advice.ts';
import { tryToConnect } from './connect.ts';
import { explain } from './explain.ts';
import type { AskedServer, InstanceFacts, ProbeFacts, ResolverFacts, WhyFacts } from './facts.ts';
import { type FoundConsumer, findConsumer } from './find-consumer.ts';
import { findBypasses, findShadows } from './find-docker.ts';
import { findInstances } from './find-instances.ts';
import { findTarget } from './find-target.ts';
import { Journal } from './journal.ts';
import { candidatesOf } from './left-out.ts';
import { askServer, resolverOf } from './resolver.ts';

/** Instances that are connected to for one question. */
const maxProbes = 3;
/** Changes that one answer tells. */
const maxChanges = 3;
/** Questions that are worked on at a time. */
const maxQuestions = 8;
const maxNameLength = 300;
/** Of the client, in what another host is told: nobody has one. */
const probePort = 65_535;

export interface WhyOptions {
  readonly self: { readonly hostId: string; readonly hostName: string };
  readonly domain: string;
  readonly clearUnderlay: boolean;
  /** Listeners of the configuration. */
  readonly configured: readonly LinkListener[];
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly snapshots: Observable<Snapshot>;
  readonly picture: () => PictureDocument;
  readonly store: () => StoreStatus | undefined;
  readonly storeProblem: () => string | undefined;
  readonly docker: Pick<DockerSource, 'consumers' | 'networks' | 'state' | 'refusals'>;
  readonly callers: Observable<CallerTable>;
  /** Asks the name server in the place of an address. */
  readonly resolve: (name: string, from: string | undefined) => Promise<ResolveDocument>;
  readonly nameServers: () => readonly NameServerDocument[];
  readonly vip: () => WhyFacts['vip'];
  readonly plane: Pick<DataPlane, 'links' | 'tunnels' | 'probe'>;
  readonly policy: Observable<Policy | undefined>;
  readonly ungranted: Observable<readonly Ungranted[]>;
  readonly credentials: Observable<Credentials | undefined>;
  /** What is known of the health of one of this host's instances. */
  readonly health: (name: string) => HealthDetails | undefined;
}

/** Answers `why`: gathers what is, tries what can be tried, and lets the steps tell it. */
export class Why {
  readonly #options: WhyOptions;
  readonly #journal: Journal;
  #open = 0;

  constructor(options: WhyOptions) {
    this.#options = options;
    this.#journal = new Journal(options);
  }

  /** Throws E_INVALID for what is no name at all, and E_IN_USE when too many ask at once. */
  async ask(name: string, consumer: string | undefined): Promise<WhyDocument> {
    for (const text of [name, consumer ?? 'host']) {
      if (text.trim() !== '' && text.length <= maxNameLength) continue;
      const shown = JSON.stringify(printable(truncate(text, 80)));
      throw new LegateError('E_INVALID', `${shown} is no name`, { hint: 'such as: legate why web db' });
    }
    if (this.#open >= maxQuestions) {
      throw new LegateError('E_IN_USE', `${maxQuestions} questions of this kind are being worked on`, {
        hint: 'ask again in a moment',
      });
    }
    this.#open += 1;
    try {
      return await this.#answer(name, consumer);
    } finally {
      this.#open -= 1;
    }
  }

  close(): void {
    this.#journal.close();
  }

  async #answer(name: string, consumer: string | undefined): Promise<WhyDocument> {
    const facts = await this.#gather(name, consumer);
    const { target, instances, policy } = facts;
    const entries = this.#journal.changes({
      service: target.service ?? '',
      consumer: policy?.consumer ?? 'host',
      hostIds: new Set(instances.map(({ instance }) => instance.hostId)),
      most: maxChanges,
    });
    const changes = entries.map(({ atMs, text }) => ({ at: new Date(atMs).toISOString(), text }));
    return explain(facts, {
      name: printable(name),
      consumer: consumer === undefined ? null : printable(consumer),
      changes,
    });
  }

  async #gather(name: string, wanted: string | undefined): Promise<WhyFacts> {
    const { self, domain, docker, clearUnderlay, plane, vip, credentials, clock, conditions } = this.#options;
    const snapshot = this.#options.snapshots.value;
    const running = docker.consumers();
    const found = this.#consumer(wanted, snapshot, running);
    const { facts: consumer, links: declared } = found;
    const target = findTarget(printable(name), { snapshot, domain, links: declared, refusals: docker.refusals.value });
    const { view } = target;
    const links = (await plane.links()).filter(({ service }) => service === view?.name);
    const policy = this.#options.policy.value;
    const instances = findInstances({
      ...{ snapshot, target, links },
      dialler: { hostId: self.hostId, clearUnderlay, tunnels: credentials.value !== undefined },
      sinceOf: (instance) => this.#sinceOf(instance),
    });
    const rules = view && policyFacts(policy, found, view.name, self.hostId);
    const nameServers = this.#options.nameServers();
    const [answer, resolver, probes] = await Promise.all([
      this.#resolve(target, consumer.kind === 'container' ? consumer.address : undefined),
      this.#resolver(found, target, nameServers),
      rules?.decision.allowed === false ? new Map() : this.#probe(instances, rules, found),
    ]);
    // Only now: where the other host is silent, the tunnel may first be known to be so by what was just tried.
    const tunnels = await plane.tunnels();
    const lastDeparture = this.#journal.lastDeparture(target.service ?? '');
    return {
      nowMs: clock.nowMs(),
      ...(lastDeparture !== undefined && { lastDeparture }),
      ...{ self, domain, consumer, target, answer, resolver, probes, nameServers, links, instances },
      conditions: conditions.list(),
      store: this.#store(snapshot),
      shadows: findShadows(target.asked, found, running, { view, hostId: self.hostId }),
      vip: vip(),
      bypasses: findBypasses(found, running, view, self.hostId),
      policy: policy && rules && { policy, ...rules },
      ...this.#ungranted(target.service, policy, snapshot),
      revokedHosts: this.#revoked(target.service, policy, snapshot),
      hosts: new Map([...snapshot.hosts.values()].map((host) => [host.id, host])),
      tunnels: new Map(tunnels.map((tunnel) => [tunnel.hostId, tunnel])),
      credentials: credentials.value,
    };
  }

  /** What is left out for want of a grant, and what would let the first of it in. */
  #ungranted(
    service: string | undefined,
    policy: Policy | undefined,
    { services }: Snapshot,
  ): Pick<WhyFacts, 'ungranted' | 'grantAdvice'> {
    const ungranted = this.#options.ungranted.value.filter((each) => each.service === service);
    const [first] = ungranted;
    if (first === undefined) return { ungranted };
    const offered = [...services.values()].flatMap(offersOf);
    return { ungranted, grantAdvice: grantAdvice(policy, first, offered) };
  }

  #consumer(
    wanted: string | undefined,
    snapshot: Snapshot,
    running: ReturnType<DockerSource['consumers']>,
  ): FoundConsumer {
    const { docker, callers, configured, self } = this.#options;
    const { state, problem } = docker.state.value;
    const isKnown = state === 'connected' || state === 'away';
    return findConsumer(wanted, {
      ...{ running, snapshot, configured, hostId: self.hostId },
      networks: docker.networks.value,
      callers: callers.value,
      dockerOff: state === 'off',
      dockerProblem: isKnown
        ? undefined
        : (problem ?? (state === 'off' ? 'docker.expose is off' : 'Docker is being asked')),
    });
  }

  /** One that has joined anew has another id and its former name: of the old one there is nothing to say any more. */
  #revoked(service: string | undefined, policy: Policy | undefined, { hosts }: Snapshot): string[] {
    const left = this.#journal.departed(service ?? '');
    const present = new Set([...hosts.values()].flatMap(({ id, name }) => (isRevoked(policy, id) ? [] : [name])));
    const names = new Set((policy?.revoked ?? []).map(({ name }) => name));
    return [...names].filter((name) => !present.has(name) && left.some((id) => id.startsWith(`${name}/`)));
  }

  #store(snapshot: Snapshot): WhyFacts['store'] {
    const { store, storeProblem, picture } = this.#options;
    const status = store();
    const problem = status?.problem ?? storeProblem();
    return { ...picture(), origin: snapshot.origin, sinceMs: status?.sinceMs, problem, hint: status?.hint };
  }

  /** Own instances remember it themselves; of others this host has seen the change, if it was in this run. */
  #sinceOf(instance: Instance): number | undefined {
    const { self, health } = this.#options;
    const seen = this.#journal.sinceOf(instance.service, instance.id);
    if (instance.draining || instance.hostId !== self.hostId) return seen;
    return health(instance.name)?.sinceMs ?? seen;
  }

  async #resolve(
    { asked, form, service, view }: WhyFacts['target'],
    from: string | undefined,
  ): Promise<WhyFacts['answer']> {
    if (view === undefined || form === 'address' || form === 'foreign') return undefined;
    const name = form === 'instances' ? `${service ?? ''}.service.${this.#options.domain}` : asked;
    const { status, answers, note, leftOut } = await this.#options.resolve(name, from);
    const addresses = answers.filter(({ type }) => type === 'A' || type === 'AAAA').map(({ data }) => data);
    return { status, addresses, note, leftOut };
  }

  /** Whom the container asks; others than us are asked what they would answer. */
  async #resolver(
    { owner, facts }: FoundConsumer,
    { form, view }: WhyFacts['target'],
    nameServers: readonly NameServerDocument[],
  ): Promise<ResolverFacts | undefined> {
    if (owner === undefined || facts.kind !== 'container' || facts.inHostNetwork || form === 'address')
      return undefined;
    const servers = await resolverOf(owner);
    if (servers === 'unreadable') return undefined;
    if (servers === undefined || view === undefined) return { servers };
    const ours = new Set(nameServers.filter(({ state }) => state === 'up').map(({ listen }) => listen));
    const ask = async (server: AskedServer): Promise<AskedServer> => {
      if (server.answer !== undefined || ours.has(`${server.address}:53`)) return server;
      return { ...server, answer: await askServer(server.address, `${view.name}.${this.#options.domain}`) };
    };
    return { servers: await Promise.all(servers.map(ask)) };
  }

  /**
   * Connects to the first candidates; without any to instances of this host that are left out. Other hosts are asked in
   * the consumer's name.
   */
  async #probe(
    instances: readonly InstanceFacts[],
    caller: Caller | undefined,
    { facts }: FoundConsumer,
  ): Promise<WhyFacts['probes']> {
    const candidates = candidatesOf(instances);
    const chosen = candidates.length > 0 ? candidates : instances.filter(({ own }) => own);
    const address = (facts.kind === 'container' ? facts.address : undefined) ?? '127.0.0.1';
    const client = { address, port: probePort };
    const tried = chosen.slice(0, maxProbes).map(async ({ instance, path }): Promise<[string, ProbeFacts][]> => {
      if (path.kind === 'none' || transportOf(instance.protocol) !== 'tcp') return [];
      if (path.kind === 'dial') return [[instance.id, await tryToConnect(path)]];
      if (caller === undefined) return [];
      const { consumer, declared } = caller;
      const { hostId, service, name } = instance;
      const probe = { hostId, head: { consumer, declared, service, instance: name, client } };
      const result = await this.#options.plane.probe(probe);
      return [[instance.id, result.ok ? result : { ok: false, code: result.reason, problem: result.detail }]];
    });
    return new Map((await Promise.all(tried)).flat());
  }
}

/** The name that policy knows the consumer by, and whether it declares a link to the service. */
interface Caller {
  readonly consumer: string;
  readonly declared: boolean;
}

/** Who calls, and what policy says of it. */
function policyFacts(
  policy: Policy | undefined,
  { facts, links }: FoundConsumer,
  service: string,
  hostId: string,
): Caller & Omit<NonNullable<WhyFacts['policy']>, 'policy'> {
  const consumer = policyName(facts);
  const declared = links.some((link) => link.service === service);
  const decision = decide(policy, { consumer, service, declared });
  return { consumer, declared, decision, maySpeak: mayOffer(policy, hostId, consumer) };
}

function policyName(facts: FoundConsumer['facts']): string {
  if (facts.kind === 'listener') return facts.name;
  if (facts.kind !== 'container' || facts.inHostNetwork) return 'host';
  return (facts.callersOff === undefined && facts.bound ? facts.identity : undefined) ?? 'anonymous';
}
