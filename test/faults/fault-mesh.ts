import { join } from 'node:path';
import { Client } from 'undici';
import type { ServiceDocument, StatusDocument } from '../../sidecar/admin/documents.ts';
import { checkout, type Teardown } from '../support/agent.ts';
import { consulProgram } from '../support/consul.ts';
import { waitFor } from '../support/wait.ts';
import type { HostSidecar } from '../testbed/host-sidecar.ts';
import { Testbed } from '../testbed/testbed.ts';
import { ConsulOnHosts, EmbeddedOnHost, EtcdOnHosts, type MeshStore, type Sidecars } from './mesh-store.ts';
import type { TrafficReport } from './traffic.child.ts';

export type StoreKind = 'etcd' | 'consul' | 'embedded';

/** How links reach other hosts: to published ports in the clear, or through tunnels to containers that publish none. */
export type Way = 'clear' | 'tunnels';

export interface FaultMeshOptions {
  readonly way?: Way;
  /** How long certificates live, with tunnels: `7d`. */
  readonly certificateLife?: string;
  readonly say?: (line: string) => void;
}

const service = 'web';
const linkPort = 18080;
const publishedPort = 8080;
/** Fifty requests a second. */
const periodMs = 20;
const nftTable = 'inet fault_table';

/** The host with the mesh's authority, where there are tunnels. */
export const authorityHost = 3;

/**
 * Three hosts with a store, a sidecar each, a container of the service on hosts 2 and 3, and on host 1 a consumer that
 * asks for it through a link without pause.
 */
export class FaultMesh {
  readonly testbed: Testbed;
  readonly store: MeshStore;
  readonly way: Way;
  readonly #sidecars = new Map<number, HostSidecar>();
  readonly #trafficSocket: string;

  private constructor(testbed: Testbed, kind: StoreKind, way: Way) {
    this.testbed = testbed;
    this.way = way;
    const sidecars: Sidecars = {
      kill: async (host) => void (await this.#sidecars.get(host)?.kill('SIGKILL')),
      start: (host) => this.startSidecar(host),
    };
    this.store =
      kind === 'etcd'
        ? new EtcdOnHosts(testbed)
        : kind === 'consul'
          ? new ConsulOnHosts(testbed, consulProgram())
          : new EmbeddedOnHost(testbed, sidecars);
    this.#trafficSocket = join(testbed.host(1).folder, 'traffic.sock');
  }

  static async up(t: Teardown, kind: StoreKind, options: FaultMeshOptions = {}): Promise<FaultMesh> {
    const { way = 'clear', certificateLife = '7d', say } = options;
    const testbed = await Testbed.up(t, { hosts: 3, ...(say && { say }) });
    const mesh = new FaultMesh(testbed, kind, way);
    await mesh.store.start();
    // The host with an embedded store comes first, so that the others find it.
    for (const host of [3, 2, 1]) {
      if (way === 'tunnels') await mesh.#enrol(host, certificateLife);
      await mesh.startSidecar(host);
    }
    for (const host of [2, 3]) await mesh.startBackend(host);
    await mesh.bothUsed();
    const script = join(checkout, 'build', 'test', 'faults', 'traffic.child.js');
    await testbed.host(1).spawn(process.execPath, script, mesh.#trafficSocket, String(linkPort), String(periodMs));
    await waitFor('the consumer to have answers', async () => {
      const { answers } = await mesh.traffic();
      return Object.keys(answers).length === 2;
    });
    return mesh;
  }

  /** The sidecar of a host that is on. */
  sidecar(host: number): HostSidecar {
    const sidecar = this.#sidecars.get(host);
    if (sidecar === undefined) throw new Error(`host ${host} has no sidecar`);
    return sidecar;
  }

  async startSidecar(host: number): Promise<void> {
    this.#sidecars.set(host, await this.testbed.host(host).startSidecar(this.#config(host)));
  }

  /** Starts a sidecar that takes over from the one that runs; resolves when the old one has ended. */
  async replaceSidecar(host: number): Promise<void> {
    await this.sidecar(host).replace();
  }

  #config(host: number): Readonly<Record<string, unknown>> {
    return {
      store: this.store.config(host, this.way),
      ...(this.way === 'clear' && { network: { underlay: 'trusted' } }),
      services: { [service]: { port: 80 } },
      ...(host === 1 && { links: [{ service, listen: `127.0.0.1:${linkPort}` }] }),
    };
  }

  /** `legate init` on the authority's host, `legate join` with a fresh token on the others. */
  async #enrol(host: number, certificateLife: string): Promise<void> {
    const { sidecar } = this.testbed.host(host);
    sidecar.configure(this.#config(host));
    const file = '/etc/legate/legate.yaml';
    if (host === authorityHost) {
      await this.testbed.host(host).run('legate', 'init', '-c', file, '--certificate-life', certificateLife);
      return;
    }
    const token = (await this.testbed.host(authorityHost).run('legate', 'token')).trim();
    const { address } = this.testbed.host(authorityHost);
    await this.testbed.host(host).run('sh', '-c', `echo ${token} | legate join ${address} --token - -c ${file}`);
  }

  /** A web server in a container that answers with its host's name; with tunnels it publishes no port. */
  async startBackend(host: number): Promise<void> {
    const { name } = this.testbed.host(host);
    const labels = ['--label', `legate.service=${service}`, '--label', 'legate.port=80', '--label', 'legate.check=tcp'];
    const command = `mkdir -p /www; echo ${name} > /www/index.html; exec httpd -f -p 80 -h /www`;
    const published = this.way === 'clear' ? ['-p', `${publishedPort}:80`] : [];
    const options = ['-d', '--name', service, '--restart', 'unless-stopped', ...published];
    await this.testbed.host(host).docker('run', ...options, ...labels, 'busybox', 'sh', '-c', command);
  }

  /** Host 1 uses the instances of both other hosts. */
  async bothUsed(timeoutMs = 60_000): Promise<void> {
    await waitFor(
      'both instances to be used',
      async () => {
        const answer = await this.sidecar(1).api('GET', `/api/services/${service}`);
        return answer.status === 200 && (JSON.parse(answer.text) as ServiceDocument).usable === 2;
      },
      { timeoutMs, everyMs: 50 },
    );
  }

  /** All sidecars say that the store answers. */
  async storeAnswers(timeoutMs = 60_000): Promise<void> {
    for (const host of [1, 2, 3]) {
      await waitFor(
        `the sidecar of host ${host} to reach the store`,
        async () => (await this.sidecar(host).json<StatusDocument>('/api/status')).store.state === 'connected',
        { timeoutMs, everyMs: 100 },
      );
    }
  }

  async startTrafficAnew(): Promise<void> {
    await this.#ask('/reset');
  }

  traffic(): Promise<TrafficReport> {
    return this.#ask('/report');
  }

  /** The store's ports of a host lead nowhere, silently; with `local` also for the host itself. */
  async blockStore(host: number, { local = false } = {}): Promise<void> {
    const ports = `{ ${this.store.ports.join(', ')} }`;
    const lo = local ? '' : 'iifname != "lo" ';
    const out = local ? '' : 'oifname != "lo" ';
    const rules = [
      `table ${nftTable} {`,
      `chain in { type filter hook input priority -300; ${lo}tcp dport ${ports} drop; ${lo}tcp sport ${ports} drop; }`,
      `chain out { type filter hook output priority -300; ${out}tcp dport ${ports} drop; ${out}tcp sport ${ports} drop; }`,
      '}',
    ].join('\n');
    await this.testbed.host(host).run('sh', '-c', `printf '%s' '${rules}' | nft -f -`);
  }

  /** Nobody reaches the tunnels' port of a host any more, silently. */
  async blockTunnel(host: number): Promise<void> {
    const rules = `table ${nftTable} { chain in { type filter hook input priority -300; tcp dport 7711 drop; }; chain out { type filter hook output priority -300; tcp sport 7711 drop; }; }`;
    await this.testbed.host(host).run('sh', '-c', `printf '%s' '${rules}' | nft -f -`);
  }

  unblockTunnel(host: number): Promise<void> {
    return this.unblockStore(host);
  }

  async unblockStore(host: number): Promise<void> {
    await this.testbed.host(host).run('nft', 'delete', 'table', ...nftTable.split(' '));
  }

  async #ask(path: string): Promise<TrafficReport> {
    const client = new Client('http://traffic', { socketPath: this.#trafficSocket });
    try {
      const { body } = await client.request({ method: 'GET', path, headersTimeout: 5000 });
      return (await body.json()) as TrafficReport;
    } finally {
      await client.destroy();
    }
  }
}
