import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { must, run, type Teardown } from './agent.ts';

/**
 * A host and a client of the test's own, each a network namespace, joined by a bridge that looks like one of Docker's:
 * nothing that happens to rules, routes and ports here touches the machine.
 */
export class SmallNetwork {
  readonly host: string;
  readonly client: string;
  readonly bridge: string;
  readonly gateway = '10.214.0.1';
  readonly clientAddress = '10.214.0.2';
  readonly #t: Teardown;

  private constructor(t: Teardown) {
    const mark = `${process.pid}${Math.random().toString(36).slice(2, 5)}`;
    this.#t = t;
    this.host = `lgt-h-${mark}`;
    this.client = `lgt-c-${mark}`;
    this.bridge = `br-${process.pid.toString(16).padStart(12, '0')}`;
  }

  static async open(t: Teardown): Promise<SmallNetwork> {
    const net = new SmallNetwork(t);
    t.teardown(() => net.#remove());
    for (const name of [net.host, net.client]) {
      await must('ip', 'netns', 'add', name);
      await must('ip', '-n', name, 'link', 'set', 'lo', 'up');
    }
    await must('ip', '-n', net.host, 'link', 'add', net.bridge, 'type', 'bridge');
    await must('ip', '-n', net.host, 'addr', 'add', `${net.gateway}/24`, 'dev', net.bridge);
    await must('ip', '-n', net.host, 'link', 'set', net.bridge, 'up');
    await must(
      'ip',
      'link',
      'add',
      'port',
      'netns',
      net.host,
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      net.client,
    );
    await must('ip', '-n', net.host, 'link', 'set', 'port', 'master', net.bridge, 'up');
    await must('ip', '-n', net.client, 'addr', 'add', `${net.clientAddress}/24`, 'dev', 'eth0');
    await must('ip', '-n', net.client, 'link', 'set', 'eth0', 'up');
    await must('ip', '-n', net.client, 'route', 'add', 'default', 'via', net.gateway);
    return net;
  }

  /** What to put in front of a command so that it runs on the host or the client. */
  inside(where: 'host' | 'client'): readonly string[] {
    return ['ip', 'netns', 'exec', where === 'host' ? this.host : this.client];
  }

  onHost(...command: string[]): Promise<string> {
    return must('ip', 'netns', 'exec', this.host, ...command);
  }

  /** Runs a JavaScript program to its end; what it printed. */
  async script(where: 'host' | 'client', program: string, ...args: string[]): Promise<string> {
    const [command = '', ...rest] = this.inside(where);
    const ran = await run(command, [...rest, process.execPath, '-e', program, ...args], { timeoutMs: 30_000 });
    if (ran.status !== 0) throw new Error(`${ran.status}: ${ran.stderr}`);
    return ran.stdout.trim();
  }

  /** Starts a program that stays until the test ends and resolves with its first line of output. */
  async start(where: 'host' | 'client', ...line: string[]): Promise<{ child: ChildProcess; first: string }> {
    const [command = '', ...rest] = this.inside(where);
    const child = spawn(command, [...rest, ...line], { stdio: ['ignore', 'pipe', 'inherit'] });
    this.#t.teardown(() => {
      child.kill('SIGKILL');
    });
    const [chunk] = (await once(child.stdout, 'data')) as [Buffer];
    child.stdout.resume();
    return { child, first: chunk.toString().trim() };
  }

  async #remove(): Promise<void> {
    for (const name of [this.host, this.client]) {
      const { stdout } = await run('ip', ['netns', 'pids', name]);
      for (const pid of stdout.split('\n').filter((line) => line !== '')) await run('kill', ['-9', pid]);
      await run('ip', ['netns', 'del', name]);
    }
  }
}
