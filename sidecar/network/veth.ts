import { readdir, readFile } from 'node:fs/promises';
import { runCommand } from '../../proxy/kernel/command.ts';
import { Coalesced } from '../../src/base/coalesced.ts';
import { describeError, LegateError, systemCode } from '../../src/base/errors.ts';

/** A container has no more networks than that. */
const maxInterfaces = 64;

/**
 * Finds the host's end of containers' veth pairs. What the container's side tells cannot be used against another one: it
 * only decides from where that container's own address is accepted.
 */
export class VethFinder {
  /** The host's interfaces, names by index. */
  readonly #hostInterfaces = new Coalesced(listVeths);

  /**
   * The host's interfaces of the process's network namespace, by the MAC address of the other end; those that are not
   * found are left out. Rejects with E_NOT_FOUND when the process cannot be seen from here, E_PERMISSION when its
   * interfaces may not be looked at.
   */
  async find(pid: number, macs: readonly string[]): Promise<ReadonlyMap<string, string>> {
    const seen = await this.#peersOf(pid, macs);
    const names = await this.#hostInterfaces.run();
    const found = new Map<string, string>();
    for (const [mac, index] of seen) {
      const name = names.get(index);
      if (name !== undefined) found.set(mac, name);
    }
    return found;
  }

  /** The indices of the other ends, by MAC address: from the container's own /sys, else from within its namespace. */
  async #peersOf(pid: number, macs: readonly string[]): Promise<ReadonlyMap<string, number>> {
    try {
      const peers = await readSys(`/proc/${pid}/root/sys/class/net`, macs);
      if (peers.size === macs.length) return peers;
    } catch (error) {
      if (systemCode(error) === undefined) throw error;
    }
    // Is it there at all? A command would only say that it failed.
    await readdir(`/proc/${pid}/ns`).catch((error: unknown) => {
      throw notVisible(pid, error);
    });
    const text = await runCommand('nsenter', [`--net=/proc/${pid}/ns/net`, 'ip', '-j', 'link', 'show']);
    return new Map(parseLinks(text).flatMap(({ mac, peer }) => (macs.includes(mac) && peer > 0 ? [[mac, peer]] : [])));
  }
}

async function readSys(folder: string, macs: readonly string[]): Promise<ReadonlyMap<string, number>> {
  const peers = new Map<string, number>();
  for (const name of (await readdir(folder)).slice(0, maxInterfaces)) {
    if (name === 'lo') continue;
    const read = async (file: string): Promise<string> =>
      (await readFile(`${folder}/${name}/${file}`, 'utf8').catch(() => '')).trim();
    const mac = await read('address');
    if (!macs.includes(mac)) continue;
    const [peer, own] = [Number(await read('iflink')), Number(await read('ifindex'))];
    if (Number.isSafeInteger(peer) && peer > 0 && peer !== own) peers.set(mac, peer);
  }
  return peers;
}

async function listVeths(): Promise<ReadonlyMap<number, string>> {
  const text = await runCommand('ip', ['-j', 'link', 'show', 'type', 'veth']);
  return new Map(parseLinks(text).map(({ index, name }) => [index, name]));
}

/** Reads what `ip -j link show` prints; entries of another form are left out. Throws when it is no list. */
export function parseLinks(text: string): { index: number; name: string; mac: string; peer: number }[] {
  const document: unknown = text.trim() === '' ? [] : JSON.parse(text);
  if (!Array.isArray(document)) throw new LegateError('E_INVALID', 'ip printed something else than a list');
  return document.flatMap((entry: unknown) => {
    const field = (name: string): unknown =>
      typeof entry === 'object' && entry !== null ? Reflect.get(entry, name) : undefined;
    const [index, name, mac, peer] = [field('ifindex'), field('ifname'), field('address'), field('link_index')];
    if (typeof index !== 'number' || typeof name !== 'string') return [];
    return [{ index, name, mac: typeof mac === 'string' ? mac : '', peer: typeof peer === 'number' ? peer : 0 }];
  });
}

function notVisible(pid: number, error: unknown): LegateError {
  if (systemCode(error) === 'ENOENT') {
    return new LegateError('E_NOT_FOUND', `the processes of containers (${pid}) are not to be seen from here`, {
      hint: "run the sidecar with the host's process ids (docker run --pid host)",
      cause: error,
    });
  }
  return new LegateError('E_PERMISSION', `the interfaces of containers may not be looked at: ${describeError(error)}`, {
    hint: 'run the sidecar as root, or with the capability SYS_PTRACE',
    cause: error,
  });
}
