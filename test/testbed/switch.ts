import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { must, run } from '../support/agent.ts';
import { type HostPlan, switchNetns } from './plan.ts';

/** What is wrong with the network now. Numbers are those of hosts. */
export interface Faults {
  /** From, to: IP packets this way are dropped; ARP passes, so that nobody is told and connecting takes its timeout. */
  readonly cuts: readonly (readonly [from: number, to: number])[];
  /** Nothing at all passes, as with the cable pulled. */
  readonly isolated: readonly number[];
  /** Percent of packets that are lost, each way. */
  readonly loss: Readonly<Record<string, number>>;
  /** kbit/s, each way. */
  readonly rate: Readonly<Record<string, number>>;
}

const noFaults: Faults = { cuts: [], isolated: [], loss: {}, rate: {} };
/** Of tbf: what may pass at once, and how long a packet waits before it is dropped. */
const burst = '16kb';
const queueMs = 200;

const without = (entries: Readonly<Record<string, number>>, number: number): Record<string, number> =>
  Object.fromEntries(Object.entries(entries).filter(([key]) => key !== String(number)));

/** The kernel compares with no number that is always larger. */
const chance = (percent: number): string => (percent === 100 ? '' : `numgen random mod 100 < ${percent}`);

/**
 * The switch between the hosts: a bridge in a namespace of its own, where cables are plugged and faults are made. Faults
 * belong to the ports: a host that is switched off and on finds them again. They are kept in a file, so that any process
 * can add to them.
 */
export class Switch {
  readonly #file: string;
  readonly #hosts: readonly HostPlan[];

  constructor(folder: string, hosts: readonly HostPlan[]) {
    this.#file = join(folder, 'faults.json');
    this.#hosts = hosts;
  }

  async create(): Promise<void> {
    await must(
      'sh',
      '-ec',
      `ip netns add ${switchNetns}
      ip -n ${switchNetns} link set lo up
      ip -n ${switchNetns} link add switch type bridge
      ip -n ${switchNetns} addr add 10.77.0.254/24 dev switch
      ip -n ${switchNetns} link set switch up
      ip netns exec ${switchNetns} sh -c 'for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done'`,
    );
  }

  /** Makes the host's network namespace anew, with a cable to its port. */
  async plug(host: HostPlan): Promise<void> {
    const { netns, port, mac, address } = host;
    await must(
      'sh',
      '-ec',
      `ip netns add ${netns}
      ip -n ${netns} link set lo up
      ip link add ${port} netns ${switchNetns} type veth peer name eth0 address ${mac} netns ${netns}
      ip -n ${switchNetns} link set ${port} master switch up
      ip -n ${netns} addr add ${address}/24 dev eth0
      ip -n ${netns} link set eth0 up
      ip -n ${netns} route add default via 10.77.0.254
      ip netns exec ${netns} sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'`,
    );
    const kbit = this.faults.rate[host.number];
    if (kbit !== undefined) await this.#shape(host, kbit);
  }

  /** Takes the cable away: from now on the host is silent. */
  async unplug({ port }: HostPlan): Promise<void> {
    await run('ip', ['-n', switchNetns, 'link', 'del', port]);
  }

  get faults(): Faults {
    if (!existsSync(this.#file)) return noFaults;
    return JSON.parse(readFileSync(this.#file, 'utf8')) as Faults;
  }

  /** No packet from `from` reaches `to`; the other way all pass. */
  async cutOneWay(from: number, to: number): Promise<void> {
    await this.#set({ ...this.faults, cuts: [...this.faults.cuts, this.#pair(from, to)] });
  }

  async cut(a: number, b: number): Promise<void> {
    await this.#set({ ...this.faults, cuts: [...this.faults.cuts, this.#pair(a, b), this.#pair(b, a)] });
  }

  async isolate(number: number): Promise<void> {
    this.#host(number);
    await this.#set({ ...this.faults, isolated: [...this.faults.isolated, number] });
  }

  /** `percent` of the packets to and from a host are lost, 0 to 100. */
  async loss(number: number, percent: number): Promise<void> {
    this.#host(number);
    if (!Number.isInteger(percent) || percent < 0 || percent > 100) throw new Error(`${percent} is not 0 to 100 %`);
    await this.#set({ ...this.faults, loss: { ...this.faults.loss, [number]: percent } });
  }

  /** A host sends and receives no more than `kbit` kbit/s each way. */
  async rate(number: number, kbit: number): Promise<void> {
    const host = this.#host(number);
    if (!Number.isInteger(kbit) || kbit < 8) throw new Error(`${kbit} is not a whole number of at least 8 kbit/s`);
    await this.#set({ ...this.faults, rate: { ...this.faults.rate, [number]: kbit } });
    await this.#shape(host, kbit);
  }

  /** Takes back all faults; those of one host; those between two. */
  async heal(a?: number, b?: number): Promise<void> {
    const { cuts, isolated, loss, rate } = this.faults;
    if (a !== undefined && b !== undefined) {
      await this.#set({ cuts: cuts.filter((cut) => !(cut.includes(a) && cut.includes(b))), isolated, loss, rate });
      return;
    }
    const healed = a === undefined ? this.#hosts : [this.#host(a)];
    for (const host of healed) if (rate[host.number] !== undefined) await this.#shape(host, undefined);
    if (a === undefined) await this.#set(noFaults);
    else {
      await this.#set({
        cuts: cuts.filter((cut) => !cut.includes(a)),
        isolated: isolated.filter((number) => number !== a),
        loss: without(loss, a),
        rate: without(rate, a),
      });
    }
  }

  #host(number: number): HostPlan {
    const host = this.#hosts.find((each) => each.number === number);
    if (host === undefined) throw new Error(`there is no host ${number}: 1 to ${this.#hosts.length}`);
    return host;
  }

  #pair(from: number, to: number): readonly [number, number] {
    if (from === to) throw new Error('a cut is between two hosts');
    return [this.#host(from).number, this.#host(to).number];
  }

  async #set(faults: Faults): Promise<void> {
    const port = (number: number | string): string => `"${this.#host(Number(number)).port}"`;
    const rules = [
      ...faults.isolated.flatMap((number) => [`iifname ${port(number)} drop`, `oifname ${port(number)} drop`]),
      ...faults.cuts.map(([from, to]) => `ether type != arp iifname ${port(from)} oifname ${port(to)} drop`),
      ...Object.entries(faults.loss).flatMap(([number, percent]) =>
        ['iifname', 'oifname'].map((end) => `${end} ${port(number)} ${chance(percent)} drop`),
      ),
    ];
    const chain = `chain forward { type filter hook forward priority 0; policy accept;\n${rules.join('\n')}\n}`;
    const text = `table bridge faults\ndelete table bridge faults\ntable bridge faults {\n${chain}\n}\n`;
    const ran = await run('ip', ['netns', 'exec', switchNetns, 'nft', '-f', '-'], { input: text });
    if (ran.status !== 0) throw new Error(`nft: ${ran.stderr}`);
    writeFileSync(this.#file, JSON.stringify(faults));
  }

  /** Both ends of the cable are slow: the port towards the host, its eth0 from it. */
  async #shape({ netns, port }: HostPlan, kbit: number | undefined): Promise<void> {
    for (const [namespace, device] of [
      [switchNetns, port],
      [netns, 'eth0'],
    ] as const) {
      const qdisc = ['-n', namespace, 'qdisc'];
      if (kbit === undefined) await run('tc', [...qdisc, 'del', 'dev', device, 'root']);
      else {
        const shape = ['tbf', 'rate', `${kbit}kbit`, 'burst', burst, 'latency', `${queueMs}ms`];
        // A host that is off has no cable; it is shaped when it is plugged in.
        const ran = await run('tc', [...qdisc, 'replace', 'dev', device, 'root', ...shape]);
        if (ran.status !== 0 && !/Cannot (find|open)/.test(ran.stderr)) throw new Error(`tc: ${ran.stderr}`);
      }
    }
  }
}
