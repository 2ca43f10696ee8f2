import type { Observable } from '../../src/base/feed.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { Keys } from '../../src/store/keys.ts';
import type { Store } from '../../src/store/store.ts';
import type {
  AuthorityDocument,
  DrainDocument,
  DrainResultDocument,
  ForgottenDocument,
  HostDocument,
  InstanceDocument,
  InstancesDocument,
  LinksDocument,
  PictureDocument,
  RefreshDocument,
  RegisterDocument,
  ResolveDocument,
  ServiceDocument,
  ServiceSettingsDocument,
  ServicesDocument,
  SplitDocument,
  StatusDocument,
  StoreCopyDocument,
  StoreCopyRequest,
  StoreRestoreDocument,
  TokenDocument,
  TokenRequest,
} from './documents.ts';
import type {
  GrantChangeDocument,
  IntentCheckDocument,
  LearnedDocument,
  PolicyDocument,
  PolicySettingsDocument,
  RevocationDocument,
} from './policy-documents.ts';
import type { WhyDocument } from './why-document.ts';

/** What the admin API asks of the sidecar. Failures are LegateErrors; their code decides the HTTP status. */
export interface AdminBackend {
  readonly metrics: Metrics;
  /** Changes whenever a document may have changed; `--watch` asks again then. */
  readonly changes: Observable<unknown>;
  /** The store, and where it has what; E_STORE_AWAY while it is not open. */
  userKeys(): { readonly store: Store; readonly keys: Keys };
  /** Whether names are answered and links carried from a known picture. */
  ready(): boolean;
  status(): Promise<StatusDocument>;
  /** How well hosts, services and instances are confirmed. */
  picture(): PictureDocument;
  hosts(): Promise<readonly HostDocument[]>;
  services(): ServicesDocument;
  service(name: string): ServiceDocument;
  /** How requests to it are divided; E_NOT_FOUND without such a service. */
  split(name: string): SplitDocument;
  instances(service?: string): readonly InstanceDocument[];
  /** What other hosts offer without a grant. */
  ungranted(service?: string): NonNullable<InstancesDocument['ungranted']>;
  links(): Promise<LinksDocument>;
  /** `from`: the name or id of a container of this host, in whose place the question is asked. */
  resolve(name: string, type: string, from: string | undefined): Promise<ResolveDocument>;
  /** The way of a connection; `consumer`: a container, service or listener of this host, which itself is the default. */
  why(name: string, consumer: string | undefined): Promise<WhyDocument>;
  /** `id` is `host/name` or only the name. A body without an instance refreshes the one that is there. */
  register(id: string, body: RegisterDocument | RefreshDocument): Promise<InstanceDocument>;
  deregister(id: string): Promise<void>;
  /** Sets what is given, for the whole mesh. */
  setService(name: string, body: ServiceSettingsDocument): Promise<ServiceDocument>;
  /** E_CONFLICT while the service has instances or this host's configuration names it. */
  forgetService(name: string): Promise<ForgottenDocument>;
  /** Moves the mesh to another store. */
  readonly copies: {
    readonly document: StoreCopyDocument;
    start(target: Omit<StoreCopyRequest, 'dryRun'>, dryRun: boolean): StoreCopyDocument;
    cancel(): StoreCopyDocument;
  };
  /** The whole of a backup, in parts. */
  backup(): Promise<Iterable<string>>;
  /** Writes what a backup has and the store has not; `overwrite`: also what it has otherwise. */
  restore(
    file: Uint8Array,
    how: { readonly overwrite: boolean; readonly foreign: boolean },
  ): Promise<StoreRestoreDocument>;
  /** The mesh's authority; E_NOT_FOUND on a host that is not its host, with where that is. */
  readonly authority: {
    document(): AuthorityDocument;
    giveToken(body: TokenRequest): Promise<TokenDocument>;
    rotate(body: { readonly finish?: boolean }): Promise<AuthorityDocument>;
  };
  drain(body: DrainDocument): Promise<DrainResultDocument>;
  /** Who may call whom, and which hosts may offer what. */
  readonly policy: {
    document(): PolicyDocument;
    set(body: PolicySettingsDocument): Promise<PolicyDocument>;
    check(consumer: string, service: string): IntentCheckDocument;
    setIntent(consumer: string, service: string, action: unknown): Promise<PolicyDocument>;
    removeIntent(consumer: string, service: string): Promise<PolicyDocument>;
    learned(): Promise<LearnedDocument>;
    /** `host` is a name or an id. */
    grant(host: string, service: string, on: boolean): Promise<GrantChangeDocument>;
    revoke(host: string): Promise<RevocationDocument>;
  };
  /** Another sidecar takes this one's place: begins to let go. E_CONFLICT where connections would be lost. */
  handOver(): Promise<void>;
}
