import type { LinkBackendDocument, LinkDocument } from '../../proxy/link-document.ts';
import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import type { Condition } from '../../src/base/conditions.ts';
import type { Service } from '../../src/catalog/snapshot.ts';
import type { Host } from '../../src/model/host.ts';
import type { Instance, Refusal } from '../../src/model/instance.ts';
import type { DeclaredLink } from '../../src/model/link.ts';
import type { Decision, Policy } from '../../src/model/policy.ts';
import type { NameServerDocument, PictureDocument } from '../admin/documents.ts';

/** All that `why` is told from, gathered at one moment: the steps are pure functions of it. Times are wall clock. */
export interface WhyFacts {
  readonly nowMs: number;
  readonly self: { readonly hostId: string; readonly hostName: string };
  /** The zone of the mesh's names. */
  readonly domain: string;
  /** What is wrong now, worst first. */
  readonly conditions: readonly Condition[];
  readonly consumer: ConsumerFacts;
  readonly target: TargetFacts;
  readonly store: StoreFacts;
  readonly answer: AnswerFacts | undefined;
  /** What Docker itself answers the consumer under the asked name. */
  readonly shadows: readonly ShadowFacts[];
  readonly resolver: ResolverFacts | undefined;
  /** Addresses of ours at which the consumer may ask, up or down. */
  readonly nameServers: readonly NameServerDocument[];
  readonly vip: { readonly on: boolean; readonly reason: string | null };
  /** This host's links to the service. */
  readonly links: readonly LinkDocument[];
  /** Networks by whose names and addresses the consumer reaches instances of this host past the sidecar. */
  readonly bypasses: readonly { readonly network: string; readonly instance: string }[];
  readonly policy: PolicyFacts | undefined;
  readonly instances: readonly InstanceFacts[];
  /** What other hosts offer of the service without the right to, which is not among the instances. */
  readonly ungranted: readonly { readonly id: string; readonly host: string }[];
  /** What gives the host of the first of them its grant, and takes nothing from anybody. */
  readonly grantAdvice?: string;
  /** The instance of the service that left last in this run. */
  readonly lastDeparture?: { readonly id: string; readonly host: string; readonly atMs: number };
  /** Names of revoked hosts that had instances of it in this run. */
  readonly revokedHosts: readonly string[];
  readonly hosts: ReadonlyMap<string, Host>;
  readonly tunnels: ReadonlyMap<string, TunnelDocument>;
  /** When this host's own certificate ends, and why there is none or why it is refused. */
  readonly credentials: { readonly notAfterMs: number } | undefined;
  /** What came of trying to connect, by instance id. */
  readonly probes: ReadonlyMap<string, ProbeFacts>;
}

export interface NetworkFacts {
  readonly id: string;
  readonly name: string;
  readonly address: string | undefined;
  /** The bridge's interface on this host; undefined where the host has no part in the network. */
  readonly interface: string | undefined;
  readonly internal: boolean;
  /** Whether the engine gives a way out of it. */
  readonly hasGateway: boolean;
  /** One that users made, in which Docker answers the names of containers. */
  readonly isUsers: boolean;
}

export interface ContainerFacts {
  readonly kind: 'container';
  readonly container: string;
  /** The first 12 digits. */
  readonly shortId: string;
  /** Names of further containers that are this consumer. */
  readonly others: readonly string[];
  /** Who it is when it calls; undefined: anonymous. */
  readonly identity: string | undefined;
  readonly inHostNetwork: boolean;
  readonly networks: readonly NetworkFacts[];
  /** Where its questions come from; undefined when it has no address on a bridge of this host. */
  readonly address: string | undefined;
  /** Whether the kernel holds it to that address, so that it is known when it calls. */
  readonly bound: boolean;
  /** Why nobody is told apart; undefined: callers are. */
  readonly callersOff: string | undefined;
}

export type ConsumerFacts =
  | { readonly kind: 'host' }
  /** A service whose instances here are processes of the host. */
  | { readonly kind: 'process'; readonly name: string }
  /** Listeners of the configuration stand for it. */
  | {
      readonly kind: 'listener';
      readonly name: string;
      readonly listens: readonly { readonly service: string; readonly at: string }[];
    }
  | ContainerFacts
  | { readonly kind: 'elsewhere'; readonly name: string; readonly hosts: readonly string[] }
  | {
      readonly kind: 'unknown';
      readonly name: string;
      readonly near: string | undefined;
      /** Why containers are not known; undefined: they are. */
      readonly dockerProblem: string | undefined;
      /** Whether they are not meant to be. */
      readonly dockerOff: boolean;
    };

/** What the asked name means to this consumer. */
export interface TargetFacts {
  readonly asked: string;
  /** `link`: the virtual address; `instances`: `db.service…`; `foreign`: nothing of the mesh. */
  readonly form: 'link' | 'instances' | 'address' | 'foreign';
  /** Undefined for foreign names, and addresses that no service has. */
  readonly service: string | undefined;
  /** The consumer's own alias that it is. */
  readonly link: DeclaredLink | undefined;
  readonly view: Service | undefined;
  /** The nearest service by spelling, when there is none of this name. */
  readonly near: string | undefined;
  /** What asked to be this service here and was refused. */
  readonly refusals: readonly Refusal[];
}

export interface StoreFacts extends PictureDocument {
  readonly origin: 'none' | 'disk' | 'store';
  readonly sinceMs: number | undefined;
  readonly problem: string | undefined;
  readonly hint: string | undefined;
}

export interface AnswerFacts {
  readonly status: string;
  readonly addresses: readonly string[];
  readonly note: string | null;
  readonly leftOut: readonly { readonly id: string; readonly reason: string }[];
}

export interface ShadowFacts {
  /** `container NAME`, `alias of NAME`, `/etc/hosts`. */
  readonly what: string;
  readonly network: string | undefined;
  readonly address: string | undefined;
  /** Whether what it leads to is an instance of the service. */
  readonly isInstance: boolean;
}

/** Whom a container asks. */
export interface ResolverFacts {
  /** Undefined: Docker asks somebody that it does not tell. */
  readonly servers: readonly AskedServer[] | undefined;
}

export interface AskedServer {
  readonly address: string;
  /** What it answered when it was asked just now; undefined for our own. */
  readonly answer: { readonly addresses: readonly string[] } | { readonly problem: string } | undefined;
}

export interface PolicyFacts {
  readonly policy: Policy;
  readonly consumer: string;
  readonly decision: Decision;
  /** Whether this host may speak for the consumer. */
  readonly maySpeak: boolean;
}

export interface InstanceFacts {
  readonly instance: Instance;
  readonly own: boolean;
  /** Whether new connections may go to it as the catalog has it. */
  readonly usable: boolean;
  /** Wall clock since when it has its status, where that is known. */
  readonly sinceMs: number | undefined;
  /** How this host reaches it. */
  readonly path: InstancePath;
  /** Until when this host's links avoid it, and why. */
  readonly ejectedUntilMs: number | undefined;
  readonly ejectedFor: LinkBackendDocument['ejectedFor'] | undefined;
  readonly suspect: boolean;
  /** 0: this host; 1: its zone; 2: all others. */
  readonly distance: 0 | 1 | 2;
}

export type InstancePath =
  | { readonly kind: 'dial'; readonly address: string; readonly port: number }
  | { readonly kind: 'tunnel' }
  | { readonly kind: 'none'; readonly reason: string };

export type ProbeFacts =
  | { readonly ok: true; readonly elapsedMs: number }
  /** `code`: the system's, such as ECONNREFUSED, or a tunnel's reason. */
  | { readonly ok: false; readonly code: string; readonly problem: string };
