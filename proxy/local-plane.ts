import type { Clock } from '../src/base/clock.ts';
import type { Observable } from '../src/base/feed.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Credentials } from '../src/model/credentials.ts';
import type { Policy } from '../src/model/policy.ts';
import type { EnrolmentDesk } from '../src/pki/desk.ts';
import type { DataPlane } from './data-plane.ts';
import type { LinkDocument } from './link-document.ts';
import { type ConnectionFilter, LinkPlane, type LinkPlaneOptions } from './link-plane.ts';
import { Permission } from './permission.ts';
import type { SidesOfProcess } from './side-document.ts';
import { type Probe, type ProbeResult, probeThrough } from './tunnel/probe.ts';
import type { TunnelDocument } from './tunnel/tunnel-document.ts';
import { TunnelPlane } from './tunnel/tunnel-plane.ts';

/** A caller and what it called, which would have been refused were it not for learning. */
export interface Learned {
  readonly consumer: string;
  readonly service: string;
  /** Connections, by default one. */
  readonly count?: number;
}

export interface DataPlaneOptions extends LinkPlaneOptions {
  readonly tunnel: { readonly listen: Endpoint };
  /** Undefined on a host that is in no mesh: then there are no tunnels. */
  readonly credentials: Observable<Credentials | undefined>;
  /** Undefined where there is none. */
  readonly policy: Observable<Policy | undefined>;
  /** On the authority's host: who lets new hosts in. */
  readonly desk?: EnrolmentDesk;
  readonly onLearned?: (learned: Learned) => void;
}

/** How long handshakes that are under way may take when this process leaves. */
const greetingMs = 1000;

/** The data plane in this very process. */
export class LocalDataPlane implements DataPlane {
  readonly #links: LinkPlane;
  readonly #tunnels: TunnelPlane;
  readonly #clock: Clock;

  constructor(options: DataPlaneOptions) {
    const permission = new Permission(options);
    this.#clock = options.clock;
    this.#tunnels = new TunnelPlane({
      ...options,
      listen: options.tunnel.listen,
      accept: (...asked) => this.#links.acceptStream(...asked),
    });
    this.#links = new LinkPlane({ ...options, permission, tunnels: this.#tunnels });
  }

  async start(): Promise<void> {
    await Promise.all([this.#tunnels.start(), this.#links.start()]);
  }

  links(): Promise<readonly LinkDocument[]> {
    return Promise.resolve(this.#links.links());
  }

  sides(): Promise<readonly SidesOfProcess[]> {
    return Promise.resolve([{ from: 'here', sides: this.#links.sides() }]);
  }

  tunnels(): Promise<readonly TunnelDocument[]> {
    return Promise.resolve(this.#tunnels.documents());
  }

  probe(probe: Probe): Promise<ProbeResult> {
    return probeThrough(this.#tunnels, probe, this.#clock);
  }

  listenerOf(service: string): Endpoint | undefined {
    return this.#links.listenerOf(service);
  }

  activeConnections(filter?: ConnectionFilter): Promise<number> {
    return Promise.resolve(this.#links.activeConnections(filter));
  }

  async drain(timeoutMs: number): Promise<number> {
    await this.#tunnels.leave();
    const greeted = this.#tunnels.greeted(Math.min(timeoutMs, greetingMs));
    const [cut] = await Promise.all([this.#links.drain(timeoutMs), greeted]);
    return cut;
  }

  async close(): Promise<void> {
    await this.#links.close();
    await this.#tunnels.close();
  }
}
