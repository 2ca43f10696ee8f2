import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { openSync } from 'node:fs';
import { join } from 'node:path';
import { must, run, type Teardown, temporaryFolder } from './agent.ts';
import { waitFor } from './wait.ts';

/**
 * A Docker Engine of the test's own, with its own socket, data root and bridge, that may be restarted and stopped without
 * touching the machine's. It writes no packet filter rules: two engines would fight over them.
 */
export class Engine {
  readonly socket: string;
  readonly #folder: string;
  readonly #bridge: string;
  readonly #subnet: number;
  #child: ChildProcess | undefined;

  private constructor(folder: string) {
    this.#folder = folder;
    this.socket = join(folder, 'docker.sock');
    this.#subnet = 100 + (process.pid % 100);
    this.#bridge = `lgt${process.pid % 100_000}`;
  }

  static async start(t: Teardown): Promise<Engine> {
    const engine = new Engine(temporaryFolder(t, 'legate-engine-'));
    t.teardown(() => engine.#end());
    await must('ip', 'link', 'add', engine.#bridge, 'type', 'bridge');
    await must('ip', 'addr', 'add', `10.213.${engine.#subnet}.1/24`, 'dev', engine.#bridge);
    await must('ip', 'link', 'set', engine.#bridge, 'up');
    await engine.#run();
    return engine;
  }

  async restart(): Promise<void> {
    await this.#stop();
    await this.#run();
  }

  /** Stops the process without ending it: it accepts connections and answers none. */
  hang(): Promise<void> {
    this.#child?.kill('SIGSTOP');
    return Promise.resolve();
  }

  resume(): void {
    this.#child?.kill('SIGCONT');
  }

  async #run(): Promise<void> {
    const log = openSync(join(this.#folder, 'log'), 'a');
    const folder = (name: string): string => join(this.#folder, name);
    this.#child = spawn(
      'dockerd',
      [
        `--host=unix://${this.socket}`,
        `--data-root=${folder('data')}`,
        `--exec-root=${folder('exec')}`,
        `--pidfile=${folder('pid')}`,
        `--bridge=${this.#bridge}`,
        '--iptables=false',
        '--ip6tables=false',
        '--ip-masq=false',
        '--ip-forward=false',
        '--userland-proxy=false',
      ],
      { stdio: ['ignore', log, log] },
    );
    await waitFor(
      'the engine to answer',
      async () => (await run('docker', ['-H', `unix://${this.socket}`, 'version'])).status === 0,
      {
        timeoutMs: 30_000,
        everyMs: 100,
      },
    );
  }

  async #stop(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const end = once(child, 'exit');
    child.kill('SIGCONT');
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 30_000);
    await end;
    clearTimeout(timer);
  }

  async #end(): Promise<void> {
    this.resume();
    const containers = await run('docker', ['-H', `unix://${this.socket}`, 'ps', '-aq']);
    const ids = containers.stdout.split('\n').filter((id) => id !== '');
    if (ids.length > 0) await run('docker', ['-H', `unix://${this.socket}`, 'rm', '-f', ...ids]);
    await this.#stop();
    await run('ip', ['link', 'del', this.#bridge]);
    // What the engine mounted below its folders would keep them from being removed.
    const mounts = await run('sh', ['-c', `awk '{print $2}' /proc/mounts | grep '^${this.#folder}/' | sort -r`]);
    for (const mount of mounts.stdout.split('\n').filter((line) => line !== '')) await run('umount', ['-l', mount]);
  }
}
