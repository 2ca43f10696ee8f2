import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import type { Log, LogFields } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { EtcdStoreConfig, StoreUrl } from '../../src/config/config.ts';
import { openEtcdStore } from '../../src/store/etcd/etcd-store.ts';
import type { Store, StoreStatus } from '../../src/store/store.ts';
import type { StoreTrust } from '../../src/store/trust.ts';
import { must, type Ran, run, type Teardown, temporaryFolder } from './agent.ts';
import { freePort } from './faults.ts';
import { waitFor } from './wait.ts';

export interface EtcdOptions {
  /** How many members; default 1. */
  readonly members?: 1 | 3;
  /** Certificates on the clients' side, which the members then ask of their clients, too. */
  readonly tls?: boolean;
  /** Further words for each member's command line. */
  readonly args?: readonly string[];
}

/** Certificates of an authority made for the test; the server's are for 127.0.0.1 and localhost. */
export interface TestCertificates {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** One process of etcd, with data of its own. */
export class EtcdMember {
  readonly name: string;
  readonly url: StoreUrl;
  readonly peerUrl: string;
  readonly folder: string;
  #words: readonly string[] = [];
  #child: ChildProcess | undefined;
  #output = '';

  constructor(name: string, folder: string, ports: { client: number; peer: number }, secure: boolean) {
    this.name = name;
    this.folder = folder;
    this.url = storeUrl(ports.client, secure);
    this.peerUrl = `http://127.0.0.1:${ports.peer}`;
  }

  /** Starts it, the first time with these words; it may take a moment until it answers. */
  start(words?: readonly string[]): void {
    if (words !== undefined) this.#words = words;
    const own = ['--name', this.name, '--data-dir', join(this.folder, this.name)];
    const child = spawn('etcd', [...own, ...this.#words], { stdio: ['ignore', 'ignore', 'pipe'] });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#output = (this.#output + text).slice(-20_000);
    });
    this.#child = child;
  }

  /** The last that it printed. */
  get output(): string {
    return this.#output;
  }

  get running(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Ends it and waits until it has ended. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#child;
    if (child === undefined || !this.running) return;
    const ended = once(child, 'exit');
    child.kill('SIGCONT');
    child.kill(signal);
    await ended;
  }

  /** Lets it keep its connections and answer nothing, until `resume`. */
  pause(): void {
    this.#child?.kill('SIGSTOP');
  }

  resume(): void {
    this.#child?.kill('SIGCONT');
  }
}

/** Real etcd of one or three members on loopback, with short elections. It ends with the test. */
export class EtcdCluster {
  readonly members: readonly EtcdMember[];
  readonly folder: string;
  readonly certificates: TestCertificates | undefined;

  private constructor(folder: string, members: readonly EtcdMember[], certificates: TestCertificates | undefined) {
    this.folder = folder;
    this.members = members;
    this.certificates = certificates;
  }

  /** Starts all members and waits until they answer. */
  static async start(t: Teardown, options: EtcdOptions = {}): Promise<EtcdCluster> {
    const folder = temporaryFolder(t, 'legate-etcd-');
    const certificates = options.tls ? await makeCertificates(folder) : undefined;
    const members: EtcdMember[] = [];
    for (let index = 0; index < (options.members ?? 1); index += 1) {
      const ports = { client: await freePort(), peer: await freePort() };
      members.push(new EtcdMember(`m${index}`, folder, ports, certificates !== undefined));
    }
    const cluster = new EtcdCluster(folder, members, certificates);
    t.teardown(() => cluster.stop());
    for (const member of members) member.start(cluster.#words(member, options.args ?? []));
    await cluster.healthy();
    return cluster;
  }

  get endpoints(): readonly StoreUrl[] {
    return this.members.map(({ url }) => url);
  }

  /** A store configuration for this cluster; what is given replaces the defaults. */
  config(changes: Partial<EtcdStoreConfig> = {}): EtcdStoreConfig {
    return {
      kind: 'etcd',
      leaseTtlMs: 10_000,
      endpoints: this.endpoints,
      prefix: '/legate',
      tls: this.certificates ?? {},
      credentialsFile: undefined,
      ...changes,
    };
  }

  /** Runs etcdctl against all members, or against those of `--endpoints` when the words say so. */
  async ctl(...words: readonly string[]): Promise<Ran> {
    const { certificates: tls } = this;
    const flags = tls === undefined ? [] : ['--cacert', tls.ca, '--cert', tls.cert, '--key', tls.key];
    const env: NodeJS.ProcessEnv = { ...process.env, ETCDCTL_API: '3' };
    if (!words.some((word) => word.startsWith('--endpoints'))) {
      env.ETCDCTL_ENDPOINTS = this.endpoints.map(({ text }) => text).join(',');
    }
    return await run('etcdctl', [...flags, ...words], { env });
  }

  /** As `ctl`; anything but success fails with what it printed. */
  async must(...words: readonly string[]): Promise<string> {
    const ran = await this.ctl(...words);
    if (ran.status !== 0) throw new Error(`etcdctl ${words.join(' ')}: ${ran.status}\n${ran.stderr}${ran.stdout}`);
    return ran.stdout.trim();
  }

  /** Waits until every member that runs answers a read that needs the quorum. */
  async healthy(): Promise<void> {
    const running = this.members.filter((member) => member.running);
    for (const { url, output } of running) {
      const check = async (): Promise<boolean> =>
        (await this.ctl(`--endpoints=${url.text}`, 'get', 'health', '--command-timeout=2s')).status === 0;
      await waitFor(`etcd at ${url.text}: ${output.slice(-500)}`, check, { timeoutMs: 30_000, everyMs: 100 });
    }
  }

  /** The member that leads now, of those that run. */
  async leader(): Promise<EtcdMember> {
    return await waitFor('a leader of etcd', async () => {
      for (const member of this.members.filter(({ running }) => running)) {
        const ran = await this.ctl(`--endpoints=${member.url.text}`, 'endpoint', 'status', '--write-out=json');
        if (ran.status !== 0) continue;
        const [{ Status: status }] = JSON.parse(ran.stdout.replace(/("\w*(?:_id|leader)"):(\d+)/g, '$1:"$2"'));
        if (status.header.member_id === status.leader) return member;
      }
      return undefined;
    });
  }

  /**
   * As an operator does it who wants every host to have a name and password of its own: a user `root`, and then
   * authentication on. Returns the words with which etcdctl goes on.
   */
  async enableAuth(): Promise<readonly string[]> {
    await this.must('user', 'add', 'root:secret-of-root');
    await this.must('user', 'grant-role', 'root', 'root');
    await this.must('auth', 'enable');
    return ['--user', 'root:secret-of-root'];
  }

  /** A file such as `store.credentials_file` names. */
  credentialsFile(line: string, mode = 0o600): string {
    const file = join(this.folder, `credentials-${Math.random().toString(36).slice(2)}`);
    writeFileSync(file, `${line}\n`, { mode });
    chmodSync(file, mode);
    return file;
  }

  async stop(): Promise<void> {
    await Promise.all(this.members.map((member) => member.kill()));
  }

  #words(member: EtcdMember, more: readonly string[]): string[] {
    const { certificates: tls } = this;
    const cluster = this.members.map(({ name, peerUrl }) => `${name}=${peerUrl}`).join(',');
    return [
      ...['--listen-client-urls', member.url.text, '--advertise-client-urls', member.url.text],
      ...['--listen-peer-urls', member.peerUrl, '--initial-advertise-peer-urls', member.peerUrl],
      ...['--initial-cluster', cluster, '--initial-cluster-token', this.folder],
      // Without it a member that was cut off forces an election when it is back.
      ...['--pre-vote', '--heartbeat-interval=50', '--election-timeout=500', '--logger=zap', '--log-level=error'],
      ...(tls === undefined
        ? []
        : ['--client-cert-auth', '--trusted-ca-file', tls.ca, '--cert-file', tls.cert, '--key-file', tls.key]),
      ...more,
    ];
  }
}

export function storeUrl(port: number, secure = false): StoreUrl {
  return { secure, host: '127.0.0.1', port, text: `${secure ? 'https' : 'http'}://127.0.0.1:${port}` };
}

async function makeCertificates(folder: string): Promise<TestCertificates> {
  const file = (name: string): string => join(folder, name);
  const [ca, caKey, cert, key] = [file('ca.pem'), file('ca-key.pem'), file('cert.pem'), file('key.pem')];
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  await must('openssl', 'req', '-x509', ...newKey, '-keyout', caKey, '-out', ca, '-days', '2', '-subj', '/CN=ca');
  await must('openssl', 'req', ...newKey, '-keyout', key, '-out', file('csr.pem'), '-subj', '/CN=test');
  writeFileSync(file('names'), 'subjectAltName=IP:127.0.0.1,DNS:localhost');
  const sign = ['-CA', ca, '-CAkey', caKey, '-CAcreateserial', '-days', '2', '-extfile', file('names')];
  await must('openssl', 'x509', '-req', '-in', file('csr.pem'), '-out', cert, ...sign);
  chmodSync(key, 0o600);
  return { ca, cert, key };
}

/** A TCP relay in front of a server, which can be made slow, silent, or cut, or be turned to another server. */
export class Relay {
  readonly port: number;
  targetPort: number;
  /** Each chunk waits this long, in both directions. */
  delayMs = 0;
  /** Connections are accepted and kept, and nothing passes. */
  silent = false;
  /** New connections are closed at once. */
  closed = false;
  /** Connections that were accepted so far. */
  accepted = 0;
  readonly #sockets = new Set<Socket>();

  private constructor(port: number, targetPort: number) {
    this.port = port;
    this.targetPort = targetPort;
  }

  static async open(t: Teardown, targetPort: number): Promise<Relay> {
    const server = createServer((socket) => relay.#accept(socket)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = server.address();
    const relay = new Relay(typeof address === 'object' && address !== null ? address.port : 0, targetPort);
    t.teardown(() => {
      server.close();
      relay.cut();
    });
    return relay;
  }

  /** Breaks all connections there are. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  #accept(socket: Socket): void {
    this.accepted += 1;
    if (this.closed) {
      socket.destroy();
      return;
    }
    const target = connect(this.targetPort, '127.0.0.1');
    this.#join(socket, target);
    this.#join(target, socket);
  }

  #join(from: Socket, to: Socket): void {
    this.#sockets.add(from);
    from.setNoDelay(true);
    from.on('error', () => undefined);
    from.on('close', () => {
      this.#sockets.delete(from);
      to.destroy();
    });
    from.on('data', (chunk) => {
      if (this.silent) return;
      if (this.delayMs > 0) setTimeout(() => to.write(chunk), this.delayMs).unref();
      else to.write(chunk);
    });
  }
}

/** A store with what a test looks at beside it. It is closed with the test. */
export interface TestStore {
  readonly store: Store;
  readonly conditions: Conditions;
  readonly metrics: Metrics;
  /** What it logged: message and fields, as one text each. */
  readonly lines: string[];
  /** The endpoint that it uses now. */
  endpoint(): string;
}

/** Opens a client, without waiting for anything. */
export async function openTestStore(
  t: Teardown,
  config: EtcdStoreConfig,
  clock: Clock = systemClock,
  trust?: StoreTrust,
): Promise<TestStore> {
  const lines: string[] = [];
  const note = (message: string, fields: LogFields = {}): void => {
    lines.push(`${message} ${JSON.stringify(fields)}`);
  };
  const log: Log = { child: () => log, debug: note, info: note, warn: note, error: note };
  const metrics = new Metrics();
  const conditions = new Conditions(log, clock, metrics);
  const store = await openEtcdStore(config, { clock, log, metrics, conditions, ...(trust && { trust }) });
  t.teardown(() => store.close());
  const endpoint = (): string => {
    const line = lines.findLast((each) => each.startsWith('store is connected')) ?? '';
    return /"store.endpoint":"([^"]*)"/.exec(line)?.[1] ?? '';
  };
  return { store, conditions, metrics, lines, endpoint };
}

/** Waits until the store's state is this one; gives its problem and hint as one text. */
export async function stateOf({ store }: TestStore, state: StoreStatus['state'], timeoutMs = 20_000): Promise<string> {
  await waitFor(`the store to be ${state}`, () => store.status.value.state === state, { timeoutMs });
  const { problem = '', hint = '' } = store.status.value;
  return `${problem} | ${hint}`;
}
