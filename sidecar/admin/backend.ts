import type { Observable } from '../../src/base/feed.ts';
import type { Metrics } from '../../src/base/metrics.ts';
import type { Store } from '../../src/store/store.ts';
import type {
  DrainDocument,
  DrainResultDocument,
  HostDocument,
  InstanceDocument,
  LinkDocument,
  RegisterDocument,
  ResolveDocument,
  ServiceDocument,
  ServicesDocument,
  StatusDocument,
} from './documents.ts';

/** What the admin API asks of the sidecar. Failures are LegateErrors; their code decides the HTTP status. */
export interface AdminBackend {
  readonly metrics: Metrics;
  /** Changes whenever a document may have changed; `--watch` asks again then. */
  readonly changes: Observable<unknown>;
  /** The store and the prefix of the users' own keys; E_STORE_AWAY while it is not open. */
  userKeys(): { readonly store: Store; readonly prefix: string };
  /** Whether names are answered and links carried from a known picture. */
  ready(): boolean;
  status(): Promise<StatusDocument>;
  hosts(): readonly HostDocument[];
  services(): ServicesDocument;
  service(name: string): ServiceDocument;
  instances(service?: string): readonly InstanceDocument[];
  links(): readonly LinkDocument[];
  resolve(name: string, type: string): Promise<ResolveDocument>;
  /** `id` is `host/name` or only the name. */
  register(id: string, body: RegisterDocument): Promise<InstanceDocument>;
  deregister(id: string): Promise<void>;
  drain(body: DrainDocument): Promise<DrainResultDocument>;
}
