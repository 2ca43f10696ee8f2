import { type ChildProcess, execFile, fork, spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { askUdp, decode, queryPacket } from '../../dns/test-support.ts';
import { unless } from '../support/needs.ts';
import { waitFor } from '../support/wait.ts';
import type { Bench, Figure } from './bench.ts';

const run = promisify(execFile);
const roundSeconds = 2;
const rounds = 3;
/** `/proc/<pid>/stat` counts in hundredths of a second, on every Linux that we know. */
const ticksPerSecond = 100;

interface Peer {
  readonly name: string;
  readonly port: number;
  readonly child: ChildProcess;
}

interface Sample {
  readonly perSecond: number;
  readonly perCpuSecond: number;
}

const questions = [
  { type: 'A', name: 'db.mesh.internal', records: 1 },
  { type: 'SRV', name: '_db._tcp.mesh.internal', records: 2 },
] as const;

/** Queries a second and per CPU second of the server, against dnsmasq with the same names, by dnsperf. */
export const dnsBench: Bench = {
  name: 'dns',
  skip: () => unless('command:dnsmasq', 'command:dnsperf'),
  async run(say) {
    const folder = mkdtempSync(join(tmpdir(), 'legate-bench-dns-'));
    const peers: Peer[] = [];
    try {
      peers.push(await startOurs());
      peers.push(await startDnsmasq());
      return await compare(peers, folder, say);
    } finally {
      for (const { child } of peers) child.kill('SIGKILL');
      rmSync(folder, { recursive: true, force: true });
    }
  },
};

async function compare(peers: readonly Peer[], folder: string, say: (line: string) => void): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const question of questions) {
    const file = join(folder, question.type);
    writeFileSync(file, `${question.name} ${question.type}\n`);
    for (const peer of peers) {
      await answersRight(peer, question);
      await load(peer, file, 1);
    }
    const samples = new Map(peers.map((peer) => [peer.name, [] as Sample[]]));
    for (let round = 1; round <= rounds; round += 1) {
      for (const peer of peers) {
        const sample = await load(peer, file, roundSeconds);
        samples.get(peer.name)?.push(sample);
        const [wall, cpu] = [sample.perSecond, sample.perCpuSecond].map((rate) =>
          Math.round(rate).toLocaleString('en'),
        );
        say(`${question.type} round ${round}: ${peer.name} ${wall} queries/s, ${cpu} per CPU second`);
      }
    }
    const of = (name: string, key: keyof Sample): number =>
      median((samples.get(name) ?? []).map((sample) => sample[key]));
    const figure = (what: string, key: keyof Sample): Figure => {
      const peer = { name: 'dnsmasq', value: of('dnsmasq', key) };
      return { what: `${question.type} ${what}`, unit: 'queries/s', ours: of('legate', key), peer, better: 'higher' };
    };
    figures.push(figure('queries', 'perSecond'), { ...figure('queries per CPU second', 'perCpuSecond'), aim: 0.6 });
  }
  return figures;
}

async function startOurs(): Promise<Peer> {
  const child = fork(fileURLToPath(new URL('./dns-server.js', import.meta.url)), { stdio: 'inherit' });
  const [port] = await once(child, 'message', { signal: AbortSignal.timeout(10_000) });
  return { name: 'legate', port: Number(port), child };
}

/** A port that is free over UDP may be taken over TCP, or be taken meanwhile: dnsmasq then ends, and tries another one. */
async function startDnsmasq(triesLeft = 2): Promise<Peer> {
  const port = await freePort();
  const records = ['db.mesh.internal,240.77.0.5', 'db-1.mesh.internal,172.17.0.2', 'db-2.mesh.internal,172.17.0.3'];
  const child = spawn(
    'dnsmasq',
    [
      ...['--no-daemon', '--conf-file=/dev/null', '--no-resolv', '--no-hosts', '--pid-file=', '--local-ttl=5'],
      ...[`--port=${port}`, '--listen-address=127.0.0.1', '--bind-interfaces'],
      ...records.map((record) => `--host-record=${record}`),
      ...[1, 2].map((index) => `--srv-host=_db._tcp.mesh.internal,db-${index}.mesh.internal,5432,1,1`),
    ],
    { stdio: 'ignore' },
  );
  const peer = { name: 'dnsmasq', port, child };
  try {
    const ended = (): boolean => child.exitCode !== null || child.signalCode !== null;
    await waitFor('dnsmasq', () => ended() || answersRight(peer, questions[0]).then(() => true));
    if (!ended()) return peer;
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
  if (triesLeft === 0) throw new Error(`dnsmasq ended with ${child.exitCode ?? child.signalCode}`);
  return startDnsmasq(triesLeft - 1);
}

/** A server that answers quickly and wrongly would win. */
async function answersRight({ name, port }: Peer, question: (typeof questions)[number]): Promise<void> {
  const answer = decode(await askUdp({ address: '127.0.0.1', port }, queryPacket(question.name, question.type)));
  const count = answer.answers?.filter(({ type }) => type === question.type).length;
  if (count !== question.records)
    throw new Error(`${name} gave ${count} records for ${question.name} ${question.type}`);
}

async function load({ name, port, child }: Peer, file: string, seconds: number): Promise<Sample> {
  const pid = child.pid ?? 0;
  const before = cpuTicks(pid);
  const options = ['-s', '127.0.0.1', '-p', `${port}`, '-d', file, '-l', `${seconds}`, '-c', '4', '-q', '100'];
  const { stdout } = await run('dnsperf', options, { timeout: (seconds + 10) * 1000 });
  const cpuSeconds = (cpuTicks(pid) - before) / ticksPerSecond;
  const completed = Number(/Queries completed:\s+(\d+)/.exec(stdout)?.[1]);
  const ran = Number(/Run time \(s\):\s+([\d.]+)/.exec(stdout)?.[1]);
  if (!(completed > 0 && ran > 0 && cpuSeconds > 0)) throw new Error(`dnsperf measured nothing of ${name}: ${stdout}`);
  return { perSecond: completed / ran, perCpuSecond: completed / cpuSeconds };
}

/** User and system time of a process, all its threads. */
function cpuTicks(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

async function freePort(): Promise<number> {
  const socket = createSocket('udp4');
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve));
  const { port } = socket.address();
  await new Promise<void>((resolve) => socket.close(() => resolve()));
  return port;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}
