import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Client } from 'undici';
import { checkout, legateMain, must, type Ran, run } from '../support/agent.ts';
import { waitFor } from '../support/wait.ts';
import { HostProcess } from './host-process.ts';
import { HostSidecar, type SidecarOptions } from './host-sidecar.ts';
import { type ImageName, imageTar } from './images.ts';
import { cgroupName, type HostPlan } from './plan.ts';
import { childrenOf, startTimeOf } from './processes.ts';
import type { Switch } from './switch.ts';

/** Booting takes half a second, on a busy machine longer; an engine that recovers from a power cut some seconds. */
const bootTimeoutMs = 60_000;

export interface HostOptions {
  readonly plan: HostPlan;
  readonly network: Switch;
  /** Its processes end with the process that calls. */
  readonly owned: boolean;
}

export interface BootOptions {
  /** false: the engine waits for `startEngine`. */
  readonly engine?: boolean;
}

/** A host of the testbed: its own network, processes, /etc, /var/lib, /run and Docker Engine on the machine's programs. */
export class TestbedHost {
  readonly number: number;
  /** `host-1`; its hostname, too. */
  readonly name: string;
  readonly address: string;
  /** Seen under the same path from the machine and from all hosts; survives power cuts. */
  readonly folder: string;
  /** The engine's socket, for whoever asks from outside. */
  readonly dockerSocket: string;
  readonly #plan: HostPlan;
  readonly #network: Switch;
  readonly #owned: boolean;
  #sidecar: HostSidecar | undefined;

  constructor({ plan, network, owned }: HostOptions) {
    this.number = plan.number;
    this.name = plan.name;
    this.address = plan.address;
    this.folder = plan.folder;
    this.dockerSocket = join(plan.folder, 'docker.sock');
    this.#plan = plan;
    this.#network = network;
    this.#owned = owned;
  }

  /** Its disk, with nothing on it but the machine's /etc. */
  async format(): Promise<void> {
    const { folder, name, address } = this.#plan;
    const etc = join(folder, 'disk', 'etc');
    for (const made of ['disk/etc', 'disk/var-lib', 'bin']) mkdirSync(join(folder, made), { recursive: true });
    await must('cp', '-a', '/etc/.', etc);
    for (const own of ['docker', 'legate', 'resolv.conf', 'hostname', 'hosts']) {
      rmSync(join(etc, own), { recursive: true, force: true });
    }
    for (const made of ['docker', 'legate']) mkdirSync(join(etc, made));
    // Nobody is there, and the switch says so at once.
    writeFileSync(join(etc, 'resolv.conf'), 'nameserver 10.77.0.254\n');
    writeFileSync(join(etc, 'hostname'), `${name}\n`);
    writeFileSync(join(etc, 'hosts'), `127.0.0.1 localhost\n${address} ${name}\n`);
    writeFileSync(join(folder, 'engine.sh'), this.#engineScript());
    const command = `#!/bin/sh\nexec ${process.execPath} ${legateMain} "$@"\n`;
    writeFileSync(join(folder, 'bin', 'legate'), command, { mode: 0o755 });
  }

  /** Its first process, as the machine sees it; undefined while it is off. */
  get pid(): number | undefined {
    try {
      const [pid = '', startTime] = readFileSync(join(this.folder, 'init'), 'utf8').trim().split(' ');
      return startTimeOf(Number(pid)) === startTime ? Number(pid) : undefined;
    } catch {
      return undefined;
    }
  }

  get isOn(): boolean {
    return this.pid !== undefined;
  }

  /** Switches it on, with the disk that it has, and waits for its engine. */
  async boot({ engine = true }: BootOptions = {}): Promise<void> {
    if (this.isOn) throw new Error(`${this.name} is on already`);
    rmSync(join(this.folder, 'ready'), { force: true });
    rmSync(this.dockerSocket, { force: true });
    await this.#network.plug(this.#plan);
    await this.#startInit(engine);
    if (engine) await this.#engineAnswers();
  }

  /** The power goes: it is silent from one moment to the next, and nothing that ran on it runs any more. */
  async powerOff(): Promise<void> {
    const pid = this.pid;
    if (pid === undefined) return;
    // The cable first: processes that are killed would say goodbye to whom they were connected with.
    await this.#network.unplug(this.#plan);
    process.kill(pid, 'SIGKILL');
    await waitFor(`${this.name} to be off`, () => !existsSync(`/proc/${pid}`) || !this.isOn, { timeoutMs: 20_000 });
    await run('ip', ['netns', 'del', this.#plan.netns]);
  }

  /** What to put in front of a command so that it runs on this host, with a plain environment. */
  inside(env: Readonly<Record<string, string>> = {}): readonly string[] {
    const pid = this.pid;
    if (pid === undefined) throw new Error(`${this.name} is off`);
    const variables = { PATH: this.#path, HOME: '/root', TERM: process.env.TERM ?? 'dumb', LANG: 'C.UTF-8', ...env };
    const settings = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
    const namespaces = ['--mount', '--uts', '--ipc', '--net', '--pid'];
    return ['nsenter', '--target', String(pid), ...namespaces, '--wd=/', '--', 'env', '-i', ...settings];
  }

  /** Runs a command on the host to its end (at most a minute); fails when its exit status is not 0. */
  async run(command: string, ...args: string[]): Promise<string> {
    const ran = await this.tryRun(command, ...args);
    if (ran.status === 0) return ran.stdout.trim();
    throw new Error(`${this.name}: ${command} ${args.join(' ')}: ${ran.status}\n${ran.stderr}${ran.stdout}`);
  }

  /** As `run`, whatever its exit status. */
  tryRun(command: string, ...args: string[]): Promise<Ran> {
    const [first = '', ...words] = this.inside();
    return run(first, [...words, command, ...args]);
  }

  /** Starts a process that ends with the host, or when told. */
  spawn(command: string, ...args: string[]): Promise<HostProcess> {
    return HostProcess.start([...this.inside(), command, ...args]);
  }

  /** The `docker` command with this host's engine. */
  async docker(...args: string[]): Promise<string> {
    return this.run('docker', ...args);
  }

  /** Makes sure that the engine has an image, which then is called as here; what it holds is told in images.ts. */
  async image(name: ImageName): Promise<ImageName> {
    const found = await this.tryRun('docker', 'image', 'inspect', name);
    if (found.status !== 0) {
      await this.docker('import', '--change', 'CMD ["sh"]', await imageTar(dirname(this.folder), name), name);
    }
    return name;
  }

  /** SIGKILL for dockerd alone: containerd and the containers go on, as they do when it crashes. */
  async killEngine(): Promise<void> {
    await this.run(
      'sh',
      '-c',
      'kill -9 $(cat /run/docker.pid) && while kill -0 $(cat /run/docker.pid); do sleep 0.05; done 2>/dev/null',
    );
  }

  async startEngine(): Promise<void> {
    const [first = '', ...words] = this.inside();
    await run(first, [...words, 'sh', '-c', `sh ${this.folder}/engine.sh </dev/null &`]);
    await this.#engineAnswers();
  }

  /**
   * Starts a sidecar as a plain process, of the checkout's build, and waits until it is ready. `config` is written to the
   * host's disk with defaults for what it leaves out (see HostSidecar); without it, what is there is used again. One at a time:
   * every call gives the same object.
   */
  startSidecar(config?: Readonly<Record<string, unknown>>, options: SidecarOptions = {}): Promise<HostSidecar> {
    return this.sidecar.start(config, options);
  }

  /** Its sidecar, which may not run yet. */
  get sidecar(): HostSidecar {
    this.#sidecar ??= new HostSidecar(this);
    return this.#sidecar;
  }

  get #path(): string {
    return `${join(this.folder, 'bin')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`;
  }

  async #startInit(engine: boolean): Promise<void> {
    const { netns, folder, name } = this.#plan;
    const log = openSync(join(folder, 'host.log'), 'a');
    const script = join(checkout, 'test', 'testbed', 'host-init.sh');
    const lifeline = this.#owned ? ['setpriv', '--pdeathsig', 'KILL'] : [];
    const namespaces = ['--mount', '--uts', '--ipc', '--pid', '--fork', '--kill-child', '--mount-proc'];
    const [command = '', ...args] = [
      ...lifeline,
      ...['nsenter', `--net=/run/netns/${netns}`, 'unshare', ...namespaces],
      ...['env', '-i', `PATH=${this.#path}`, 'HOME=/root'],
      ...['docker-init', '-s', '--', 'sh', script, folder, name, ...(engine ? ['engine'] : [])],
    ];
    const child = spawn(command, args, { stdio: ['ignore', log, log], detached: true });
    child.unref();
    const init = await waitFor(`${name} to have a first process`, () => firstChild(child), { everyMs: 5 });
    writeFileSync(join(folder, 'init'), `${init} ${startTimeOf(init)}\n`);
    await waitFor(`${name} to be up`, () => existsSync(join(folder, 'ready')) || this.#fault(), {
      timeoutMs: bootTimeoutMs,
      everyMs: 10,
    });
    this.#fault();
  }

  /** Throws when the host has ended before its time. */
  #fault(): false {
    if (this.isOn) return false;
    throw new Error(`${this.name} went off: ${readFileSync(join(this.folder, 'host.log'), 'utf8').slice(-2000)}`);
  }

  async #engineAnswers(): Promise<void> {
    try {
      await waitFor(`the engine of ${this.name}`, () => pings(this.dockerSocket), {
        timeoutMs: bootTimeoutMs,
        everyMs: 50,
      });
    } catch (error) {
      const log = join(this.folder, 'dockerd.log');
      const text = existsSync(log) ? readFileSync(log, 'utf8').slice(-2000) : 'it wrote no log';
      throw new Error(`the engine of ${this.name} does not answer: ${text}`, { cause: error });
    }
  }

  #engineScript(): string {
    const { number, folder, engine } = this.#plan;
    const options = [
      '--host=unix:///run/docker.sock',
      `--host=unix://${this.dockerSocket}`,
      '--data-root=/var/lib/docker',
      '--exec-root=/run/docker',
      '--pidfile=/run/docker.pid',
      `--bip=10.78.${number}.1/24`,
      `--default-address-pool=base=10.79.${number}.0/24,size=28`,
      `--cgroup-parent=/${cgroupName}/host-${number}`,
      '--exec-opt=native.cgroupdriver=cgroupfs',
    ];
    const path = engine === undefined ? '' : `PATH=${engine}/usr/sbin:${engine}/usr/bin:$PATH\n`;
    return `${path}export PATH\nexec dockerd ${options.join(' ')} >>${folder}/dockerd.log 2>&1\n`;
  }
}

function firstChild(child: ChildProcess): number | undefined {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) {
    throw new Error('the host did not start');
  }
  return childrenOf(child.pid)[0];
}

async function pings(socketPath: string): Promise<boolean> {
  const client = new Client('http://docker', { socketPath });
  try {
    const { statusCode, body } = await client.request({ method: 'GET', path: '/_ping', headersTimeout: 5000 });
    await body.dump();
    return statusCode === 200;
  } finally {
    await client.destroy();
  }
}
