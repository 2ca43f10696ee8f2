import { type ChildProcess, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { openStore } from '../../src/store/backends.ts';
import { type Teardown, temporaryFolder } from '../support/agent.ts';
import { parts } from '../support/records.ts';
import { waitFor } from '../support/wait.ts';
import { leaseTtlMs } from './mesh-records.ts';
import { freeTcpPort, loopback } from './tools.ts';

/** A store under load, as a process that can be killed and started again on the same data and port. */
export interface StoreProcess {
  readonly name: string;
  readonly port: number;
  readonly pid: number;
  /** Requests that it has been sent so far, each message of a stream counted. */
  requests(): Promise<number>;
  kill(): Promise<void>;
  start(): Promise<void>;
}

/** etcd, one member, as Debian has it. */
export async function etcdProcess(t: Teardown): Promise<StoreProcess> {
  const [folder, port, peerPort] = [temporaryFolder(t), await freeTcpPort(), await freeTcpPort()];
  const [client, peer] = [`http://${loopback}:${port}`, `http://${loopback}:${peerPort}`];
  const words = ['--name', 'one', '--data-dir', folder, '--initial-cluster', `one=${peer}`, '--log-level', 'error'];
  words.push('--listen-client-urls', client, '--advertise-client-urls', client);
  words.push('--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer);
  const metrics = async (): Promise<string> => await (await fetch(`${client}/metrics`)).text();
  return await childStore(t, {
    name: 'etcd',
    port,
    spawn: () => spawn('etcd', words, { stdio: 'ignore' }),
    answers: async () => (await fetch(`${client}/health`)).ok,
    requests: async () => sumOf(await metrics(), 'grpc_server_msg_received_total'),
  });
}

/** The embedded store of a sidecar, which offers it to others. */
export async function embeddedProcess(t: Teardown): Promise<StoreProcess> {
  const [folder, port] = [temporaryFolder(t), await freeTcpPort()];
  let child: ChildProcess | undefined;
  let text = '';
  return await childStore(t, {
    name: 'embedded',
    port,
    spawn: () => {
      child = fork(fileURLToPath(import.meta.url), ['serve', folder, String(port)], { execArgv: [] });
      child.on('message', (metrics: string) => {
        text = metrics;
      });
      return child;
    },
    answers: () => text !== '' && child?.exitCode === null,
    requests: async () => {
      text = '';
      child?.send('metrics');
      await waitFor('the metrics of the store', () => text !== '');
      return sumOf(text, 'legate_store_server_requests_total');
    },
  });
}

interface ChildStore {
  readonly name: string;
  readonly port: number;
  readonly spawn: () => ChildProcess;
  readonly answers: () => Promise<boolean> | boolean;
  readonly requests: () => Promise<number>;
}

async function childStore(t: Teardown, options: ChildStore): Promise<StoreProcess> {
  let child: ChildProcess | undefined;
  const kill = async (): Promise<void> => {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  };
  const start = async (): Promise<void> => {
    child = options.spawn();
    await waitFor(`${options.name} to answer`, async () => await options.answers(), { timeoutMs: 30_000, everyMs: 10 });
  };
  t.teardown(kill);
  await start();
  const { name, port, requests } = options;
  return {
    name,
    port,
    requests,
    kill,
    start,
    get pid() {
      return child?.pid ?? 0;
    },
  };
}

function sumOf(metrics: string, name: string): number {
  let sum = 0;
  for (const line of metrics.split('\n')) {
    if (line.startsWith(`${name}{`) || line.startsWith(`${name} `))
      sum += Number(line.slice(line.lastIndexOf(' ') + 1));
  }
  return sum;
}

/** The process of `embeddedProcess`: nothing but the store and its server. */
async function serve(dataDir: string, port: number): Promise<void> {
  const common = parts();
  await openStore({ kind: 'embedded', leaseTtlMs, listen: { address: loopback, port } }, { ...common, dataDir });
  const tell = async (): Promise<void> => void process.send?.(await common.metrics.exposition());
  process.on('message', () => void tell());
  process.on('disconnect', () => process.exit(0));
  await tell();
}

if (process.argv[2] === 'serve') await serve(process.argv[3] ?? '', Number(process.argv[4]));
