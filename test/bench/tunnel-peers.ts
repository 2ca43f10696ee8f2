import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import type { Credentials } from '../../src/model/credentials.ts';
import { makeTestAuthority } from '../support/certificates.ts';
import { hostId } from '../support/records.ts';
import { waitFor } from '../support/wait.ts';
import { farEnvoy, nearEnvoy } from './tunnel-envoy.ts';
import type { TunnelSetup } from './tunnel-legate.ts';
import type { TunnelWorld, Wire } from './tunnel-world.ts';

export const pairNames = ['legate', 'haproxy', 'envoy', 'direct'] as const;
export type PeerName = (typeof pairNames)[number];

/** A running pair of proxies, seen from the clients. */
export interface Pair {
  readonly name: PeerName;
  readonly address: string;
  readonly http: number;
  readonly bulk: number;
  /** Near and far; none for a direct connection. */
  readonly pids: readonly number[];
  /** Collects garbage, where there is somebody who does. */
  settle(): Promise<void>;
  end(): Promise<void>;
}

export interface Identities {
  readonly near: Credentials;
  readonly far: Credentials;
}

/** Every pair has ports of its own; the far ones are the next two. */
const firstPorts = { legate: 13_000, haproxy: 11_000, envoy: 12_000 } as const;
const loopback = '127.0.0.1';

export async function makeIdentities(folder: string): Promise<Identities> {
  const authority = await makeTestAuthority('bench');
  const [near, far] = [await authority.issue(hostId(1)), await authority.issue(hostId(2))];
  await writeFile(`${folder}/root.pem`, authority.root);
  for (const [name, { chain, key }] of [['near', near] as const, ['far', far] as const]) {
    await writeFile(`${folder}/${name}.crt`, chain);
    await writeFile(`${folder}/${name}.key`, key, { mode: 0o600 });
    await writeFile(`${folder}/${name}.pem`, `${chain}\n${key}`, { mode: 0o600 });
  }
  return { near, far };
}

export interface PairMaker {
  readonly world: TunnelWorld;
  readonly folder: string;
  readonly identities: Identities;
  /** The program; undefined where it could not be had. */
  readonly envoy: string | undefined;
  /** Flags for the Node processes of Legate's pair, as for a profile. */
  readonly nodeFlags: readonly string[];
}

/** Starts the pair over the wire, and waits until a request comes through. */
export async function startPair(maker: PairMaker, name: PeerName, wire: Wire): Promise<Pair> {
  const { world } = maker;
  if (name === 'direct') {
    const nothing = (): Promise<void> => Promise.resolve();
    return { name, address: wire.farAddress, ...world.origin, pids: [], settle: nothing, end: nothing };
  }
  const first = firstPorts[name];
  const children = await starters[name](maker, wire, first);
  const pair: Pair = {
    name,
    address: loopback,
    http: first,
    bulk: first + 1,
    pids: children.map(({ pid }) => pid ?? 0),
    settle: name === 'legate' ? () => collectGarbage(children) : () => Promise.resolve(),
    end: () => world.end(children),
  };
  await waitFor(`a request through ${name}`, () => answers(world, pair), { everyMs: 100, timeoutMs: 30_000 });
  return pair;
}

async function answers(world: TunnelWorld, { address, http }: Pair): Promise<boolean> {
  const { complete, requests } = await world.startLoad('requests', address, http, 1, 20, []).report();
  return complete === 1 && requests > 0;
}

type Starter = (maker: PairMaker, wire: Wire, first: number) => Promise<ChildProcess[]>;

const starters: { readonly [name in Exclude<PeerName, 'direct'>]: Starter } = {
  async haproxy({ world, folder }, { farAddress }, first) {
    const server = (port: number): string =>
      `${farAddress}:${port} ssl verify required ca-file ${folder}/root.pem crt ${folder}/near.pem`;
    const bind = (port: number): string => `${farAddress}:${port}`;
    const mutual = `ssl verify required ca-file ${folder}/root.pem crt ${folder}/far.pem`;
    const { http, bulk } = world.origin;
    const near = haproxyConfig(
      { bind: `${loopback}:${first}`, server: server(first + 2) },
      { bind: `${loopback}:${first + 1}`, server: server(first + 3) },
    );
    const far = haproxyConfig(
      { bind: `${bind(first + 2)} ${mutual}`, server: `${loopback}:${http}` },
      { bind: `${bind(first + 3)} ${mutual}`, server: `${loopback}:${bulk}` },
    );
    return eachSide(async (side) => {
      const file = `${folder}/haproxy-${side}.cfg`;
      await writeFile(file, side === 'near' ? near : far);
      return world.start(side, 'haproxy', ['-q', '-db', '-f', file]);
    });
  },
  async envoy({ world, folder, envoy = '' }, { farAddress }, first) {
    const { http, bulk } = world.origin;
    const far = { address: farAddress, port: first + 2 };
    const configs = {
      near: nearEnvoy(folder, far, { http: first, bulk: first + 1 }),
      far: farEnvoy(folder, far, { http, bulk }),
    };
    return eachSide(async (side) => {
      const file = `${folder}/envoy-${side}.json`;
      await writeFile(file, JSON.stringify(configs[side]));
      return world.start(side, envoy, ['-c', file, '--concurrency', '1', '--disable-hot-restart', '-l', 'off']);
    });
  },
  async legate({ world, identities, nodeFlags }, wire, first) {
    const script = fileURLToPath(new URL('./tunnel-legate.js', import.meta.url));
    return eachSide(async (side) => {
      const setup: TunnelSetup = {
        side,
        credentials: identities[side],
        peerId: identities[side === 'near' ? 'far' : 'near'].hostId,
        nearAddress: wire.nearAddress,
        farAddress: wire.farAddress,
        tunnelPort: first + 2,
        ports: side === 'near' ? { http: first, bulk: first + 1 } : world.origin,
      };
      const child = world.fork(side, script, [], ['--expose-gc', ...nodeFlags]);
      child.send(setup);
      await once(child, 'message', { signal: AbortSignal.timeout(20_000) });
      return child;
    });
  },
};

async function eachSide(start: (side: 'near' | 'far') => Promise<ChildProcess>): Promise<ChildProcess[]> {
  return [await start('near'), await start('far')];
}

async function collectGarbage(children: readonly ChildProcess[]): Promise<void> {
  for (const child of children) {
    const done = once(child, 'message', { signal: AbortSignal.timeout(20_000) });
    child.send('collect');
    await done;
  }
}

interface Hop {
  readonly bind: string;
  readonly server: string;
}

function haproxyConfig(http: Hop, bulk: Hop): string {
  const listen = (name: string, hop: Hop): string => `listen ${name}
  mode tcp
  bind ${hop.bind.replace(' ', ' backlog 4096 ')}${hop.bind.includes(' ') ? '' : ' backlog 4096'}
  server only ${hop.server}
`;
  return `global
  nbthread 1
  maxconn 9000
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  timeout connect 10s
  timeout client 300s
  timeout server 300s
${listen('http', http)}${listen('bulk', bulk)}`;
}
