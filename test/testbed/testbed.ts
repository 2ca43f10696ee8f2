import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Teardown } from '../support/agent.ts';
import type { Need } from '../support/needs.ts';
import { TestbedHost } from './host.ts';
import { imageTar } from './images.ts';
import { takeLock } from './lock.ts';
import { maxHosts, planHost, type State, stateFile } from './plan.ts';
import { startTimeOf } from './processes.ts';
import { readState, removeAll } from './remains.ts';
import { type Faults, Switch } from './switch.ts';

/** Two test files may want one at the same time; the second waits for the first, as does who comes by hand. */
const waitMs = 240_000;

/** What a testbed needs of the machine, for `unless(...)`. */
export const testbedNeeds: readonly Need[] = [
  'netns',
  'nft',
  'dockerd',
  'busybox',
  'command:docker-init',
  'command:nsenter',
  'command:unshare',
  'command:setpriv',
  'command:tc',
];

export interface TestbedOptions {
  /** 1 to 6; default 3. */
  readonly hosts?: number;
  /** An unpacked newer engine for some hosts, by number (see engines.ts). */
  readonly engines?: Readonly<Record<number, string>>;
  /** false: only the hosts, their engines are not started and have no images. */
  readonly start?: boolean;
  /** The test has `testbedTurn` for longer than one testbed. */
  readonly hasTurn?: boolean;
  /** Told what goes on. */
  readonly say?: (line: string) => void;
}

/**
 * Real hosts on one machine, joined by a switch where faults are made. `up` in a test, `attach` for a second process.
 */
export class Testbed {
  readonly hosts: readonly TestbedHost[];
  readonly folder: string;
  readonly #network: Switch;
  /** Present in who holds the lock, until all is down. */
  #release: (() => void) | undefined;

  private constructor(state: State, release?: () => void) {
    this.folder = state.folder;
    this.#network = new Switch(state.folder, state.hosts);
    this.#release = release;
    const owned = state.owner !== undefined && release !== undefined;
    this.hosts = state.hosts.map((plan) => new TestbedHost({ plan, network: this.#network, owned }));
  }

  /**
   * Brings hosts up for a test, which takes them down at its end. Waits while another process has them; what one that
   * ended badly left behind is removed first. Fails when a testbed was brought up by hand.
   */
  static async up(t: Teardown, options: TestbedOptions = {}): Promise<Testbed> {
    if (options.hasTurn !== true) await testbedTurn(t);
    const owner = { pid: process.pid, startTime: startTimeOf(process.pid) ?? '' };
    const testbed = await Testbed.#make(options, owner);
    t.teardown(() => testbed.down());
    try {
      await testbed.#create(options);
    } catch (error) {
      // Not every runner tears down what a failed test had registered before it continues.
      await testbed.down();
      throw error;
    }
    return testbed;
  }

  /** Brings hosts up that stay until somebody takes them down: for work by hand. */
  static async upToStay(options: TestbedOptions = {}): Promise<Testbed> {
    const testbed = await Testbed.#make(options);
    try {
      await testbed.#create(options);
      testbed.#release?.();
      testbed.#release = undefined;
    } catch (error) {
      await testbed.down();
      throw error;
    }
    return testbed;
  }

  /** The testbed that is up, whoever brought it up; undefined when there is none. */
  static attach(): Testbed | undefined {
    const state = readState();
    return state === undefined ? undefined : new Testbed(state);
  }

  /** Takes down what is there or was left behind; fails when it belongs to a process that runs. */
  static async takeDown(): Promise<void> {
    const release = await takeLock({ lock: 'hosts', waitMs: 0, busy: heldBy, say: () => undefined });
    try {
      await removeAll();
    } finally {
      release();
    }
  }

  static async #make(options: TestbedOptions, owner?: State['owner']): Promise<Testbed> {
    const { hosts = 3, engines = {}, say = () => undefined } = options;
    if (!Number.isInteger(hosts) || hosts < 1 || hosts > maxHosts)
      throw new Error(`${hosts} is not 1 to ${maxHosts} hosts`);
    const release = await takeLock({ lock: 'hosts', waitMs, busy: heldBy, say });
    try {
      const before = readState();
      if (before !== undefined && before.owner === undefined && new Testbed(before).hosts.some((host) => host.isOn)) {
        throw new Error(`a testbed is up, by hand since ${before.since}: npm run testbed -- down`);
      }
      if (before !== undefined) say('removing what an earlier testbed left behind');
      await removeAll();
      const folder = mkdtempSync(join(tmpdir(), 'legate-testbed-'));
      const plans = Array.from({ length: hosts }, (_, index) => planHost(folder, index + 1, engines[index + 1]));
      const state: State = { ...(owner && { owner }), since: new Date().toISOString(), folder, hosts: plans };
      // Before anything is made, so that it can be found.
      writeFileSync(stateFile, JSON.stringify(state), { mode: 0o600 });
      return new Testbed(state, release);
    } catch (error) {
      release();
      throw error;
    }
  }

  async #create({ start = true, say = () => undefined }: TestbedOptions): Promise<void> {
    const began = performance.now();
    say(`making ${this.hosts.length === 1 ? 'a host' : `${this.hosts.length} hosts`}`);
    const seconds = (): string => `${((performance.now() - began) / 1000).toFixed(1)} s`;
    await this.#network.create();
    if (start) await imageTar(this.folder, 'busybox');
    const up = async (host: TestbedHost): Promise<void> => {
      await host.format();
      await host.boot({ engine: start });
      if (start) {
        const version = await host.docker('version', '--format', '{{.Server.Version}}');
        await host.image('busybox');
        say(`${host.name}  ${host.address}  Docker ${version}  ${seconds()}`);
      } else say(`${host.name}  ${host.address}  ${seconds()}`);
    };
    const all = await Promise.allSettled(this.hosts.map(up));
    for (const result of all) if (result.status === 'rejected') throw result.reason;
  }

  /** Host 1 to the number that was asked for. */
  host(number: number): TestbedHost {
    const host = this.hosts[number - 1];
    if (host === undefined) throw new Error(`there is no host ${number}: 1 to ${this.hosts.length}`);
    return host;
  }

  get faults(): Faults {
    return this.#network.faults;
  }

  /** Nothing passes between two hosts, silently: connecting takes its timeout. */
  cut(a: number, b: number): Promise<void> {
    return this.#network.cut(a, b);
  }

  /** Nothing passes from one host to another; what that one sends arrives. */
  cutOneWay(from: number, to: number): Promise<void> {
    return this.#network.cutOneWay(from, to);
  }

  /** A host is alone, as with its cable pulled: it is told after seconds that nobody can be reached. */
  isolate(number: number): Promise<void> {
    return this.#network.isolate(number);
  }

  /** `percent` of the packets from and to a host are lost, each way. */
  loss(number: number, percent: number): Promise<void> {
    return this.#network.loss(number, percent);
  }

  /** A host's cable carries no more than `kbit` kbit/s, each way. */
  rate(number: number, kbit: number): Promise<void> {
    return this.#network.rate(number, kbit);
  }

  /** Takes back all faults of the network; those of one host; the cuts between two. */
  heal(a?: number, b?: number): Promise<void> {
    return this.#network.heal(a, b);
  }

  /** Ends and removes everything; only once, and only in the process that brought it up. */
  async down(): Promise<void> {
    const release = this.#release;
    this.#release = undefined;
    if (release === undefined) return;
    try {
      await removeAll();
    } finally {
      release();
    }
  }
}

/** Waits until no other test file has its turn on testbeds, and keeps the turn until the test ends. */
export async function testbedTurn(t: Teardown): Promise<void> {
  t.teardown(await takeLock({ lock: 'turn', waitMs, busy: heldBy, say: () => undefined }));
}

function heldBy(): string {
  const state = readState();
  const who = state?.owner === undefined ? 'another process' : `the process ${state.owner.pid}`;
  return `the testbed is in use by ${who}`;
}
