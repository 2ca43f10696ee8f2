import { waitFor } from '../support/wait.ts';
import type { HostProcess } from '../testbed/host-process.ts';
import type { Testbed } from '../testbed/testbed.ts';

/** The store of the fault table's mesh, on hosts 1 to 3, and what is done to it. */
export interface MeshStore {
  readonly name: string;
  /** The hosts on which a member runs. */
  readonly members: readonly number[];
  /** TCP ports of it. */
  readonly ports: readonly number[];
  /** `store:` of the sidecar on a host. */
  config(host: number, way?: 'clear' | 'tunnels'): Readonly<Record<string, unknown>>;
  /** Starts all members; before the sidecars, unless the members are sidecars. */
  start(): Promise<void>;
  /** The host that leads. */
  leader(): Promise<number>;
  /** SIGKILL. */
  kill(host: number): Promise<void>;
  restart(host: number): Promise<void>;
}

const electionMs = 30_000;

/** etcd with three members. */
export class EtcdOnHosts implements MeshStore {
  readonly name = 'etcd';
  readonly members = [1, 2, 3];
  readonly ports = [2379, 2380];
  readonly #testbed: Testbed;
  readonly #processes = new Map<number, HostProcess>();

  constructor(testbed: Testbed) {
    this.#testbed = testbed;
  }

  config(): Readonly<Record<string, unknown>> {
    const endpoints = this.members.map((host) => `http://${this.#testbed.host(host).address}:2379`);
    return { kind: 'etcd', endpoints, lease_ttl: '5s' };
  }

  async start(): Promise<void> {
    await Promise.all(this.members.map((host) => this.restart(host)));
    await waitFor('etcd to have a leader', () => this.leader().catch(() => undefined), { timeoutMs: electionMs });
  }

  async restart(number: number): Promise<void> {
    const host = this.#testbed.host(number);
    const peerOf = (member: number): string => `http://${this.#testbed.host(member).address}:2380`;
    const client = `http://${host.address}:2379`;
    const cluster = this.members.map((member) => `${this.#testbed.host(member).name}=${peerOf(member)}`).join();
    const words = ['--name', host.name, '--data-dir', '/var/lib/etcd-bed', '--pre-vote', '--initial-cluster', cluster];
    words.push('--listen-client-urls', `${client},http://127.0.0.1:2379`, '--advertise-client-urls', client);
    words.push('--listen-peer-urls', peerOf(number), '--initial-advertise-peer-urls', peerOf(number));
    this.#processes.set(number, await host.spawn('etcd', ...words, '--log-level', 'error'));
  }

  async leader(): Promise<number> {
    const endpoints = this.members.map((member) => `${this.#testbed.host(member).address}:2379`).join();
    for (const number of this.members) {
      const host = this.#testbed.host(number);
      if (!host.isOn) continue;
      const words = ['--endpoints', endpoints, '--command-timeout=2s', 'endpoint', 'status', '--write-out=json'];
      const { stdout } = await host.tryRun('env', 'ETCDCTL_API=3', 'etcdctl', ...words);
      const statuses = JSON.parse(stdout || '[]') as EtcdStatus[];
      const leading = statuses.find(({ Status }) => Status.leader === Status.header.member_id);
      const at =
        leading && this.members.find((member) => leading.Endpoint.startsWith(`${this.#testbed.host(member).address}:`));
      if (at !== undefined) return at;
    }
    throw new Error('etcd has no leader');
  }

  async kill(host: number): Promise<void> {
    await this.#processes.get(host)?.kill('SIGKILL');
  }
}

interface EtcdStatus {
  readonly Endpoint: string;
  readonly Status: { readonly leader: number; readonly header: { readonly member_id: number } };
}

/** The sidecars of the mesh, by host. */
export interface Sidecars {
  kill(host: number): Promise<void>;
  start(host: number): Promise<void>;
}

/** The sidecar of host 3 has the store, and offers it to the others. Its process is the sidecar's. */
export class EmbeddedOnHost implements MeshStore {
  readonly name = 'embedded';
  readonly members = [3];
  readonly ports = [7712];
  readonly #testbed: Testbed;
  readonly #sidecars: Sidecars;

  constructor(testbed: Testbed, sidecars: Sidecars) {
    this.#testbed = testbed;
    this.#sidecars = sidecars;
  }

  config(host: number, way = 'clear'): Readonly<Record<string, unknown>> {
    const at = `${this.#testbed.host(3).address}:7712`;
    const scheme = way === 'clear' ? 'http' : 'https';
    return host === 3
      ? { kind: 'embedded', listen: at, lease_ttl: '5s' }
      : { kind: 'etcd', endpoints: [`${scheme}://${at}`], lease_ttl: '5s' };
  }

  start(): Promise<void> {
    return Promise.resolve();
  }

  leader(): Promise<number> {
    return Promise.resolve(3);
  }

  kill(host: number): Promise<void> {
    return this.#sidecars.kill(host);
  }

  restart(host: number): Promise<void> {
    return this.#sidecars.start(host);
  }
}

/** Consul with three servers; each sidecar asks the one on its own host first. */
export class ConsulOnHosts implements MeshStore {
  readonly name = 'consul';
  readonly members = [1, 2, 3];
  readonly ports = [8300, 8301, 8302, 8500];
  readonly #testbed: Testbed;
  readonly #program: string;
  readonly #processes = new Map<number, HostProcess>();

  /** `program`: the path of `consul`. */
  constructor(testbed: Testbed, program: string) {
    this.#testbed = testbed;
    this.#program = program;
  }

  config(host: number): Readonly<Record<string, unknown>> {
    const others = this.members.filter((member) => member !== host);
    const endpoints = [host, ...others].map((member) => `http://${this.#testbed.host(member).address}:8500`);
    return { kind: 'consul', endpoints, lease_ttl: '10s' };
  }

  async start(): Promise<void> {
    await Promise.all(this.members.map((host) => this.restart(host)));
    await waitFor('Consul to have a leader', () => this.leader().catch(() => undefined), { timeoutMs: electionMs });
  }

  async restart(number: number): Promise<void> {
    const host = this.#testbed.host(number);
    const joins = this.members.flatMap((member) => ['-retry-join', this.#testbed.host(member).address]);
    const words = ['agent', '-server', '-bootstrap-expect=3', '-data-dir', '/var/lib/consul-bed', '-node', host.name];
    words.push('-bind', host.address, '-client', `${host.address} 127.0.0.1`, '-retry-interval', '1s', ...joins);
    const settings = 'performance { raft_multiplier = 1 } disable_update_check = true';
    this.#processes.set(number, await host.spawn(this.#program, ...words, '-log-level', 'err', '-hcl', settings));
  }

  async leader(): Promise<number> {
    for (const number of this.members) {
      const host = this.#testbed.host(number);
      if (!host.isOn) continue;
      const { stdout } = await host.tryRun('curl', '-s', '-m', '2', 'http://127.0.0.1:8500/v1/status/leader');
      const at = this.members.find((member) => stdout.includes(`"${this.#testbed.host(member).address}:`));
      if (at !== undefined) return at;
    }
    throw new Error('Consul has no leader');
  }

  async kill(host: number): Promise<void> {
    await this.#processes.get(host)?.kill('SIGKILL');
  }
}
