import type { Socket as DatagramSocket } from 'node:dgram';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { isIPv6, type Server } from 'node:net';
import { describeError, LegateError, systemCode } from './errors.ts';
import { printable } from './text.ts';

/** A process that holds a socket. */
export interface Holder {
  readonly pid: number;
  /** Its command name, printable, at most 15 characters. */
  readonly program: string;
}

interface Place {
  readonly address: string;
  readonly port: number;
}

type Transport = 'tcp' | 'udp';

/** How many open files are looked at before the search is given up. */
const maxDescriptors = 200_000;
const descriptorsAtOnce = 64;

/**
 * Who listens where `endpoint` wants to, by the kernel's socket tables and the processes' open files. Undefined when
 * nobody does, or when the holder cannot be seen (another user's process without root, another PID namespace). Slow
 * (milliseconds to tens of them): only for explaining a failure.
 */
export async function holderOf(endpoint: Place, transport: Transport): Promise<Holder | undefined> {
  const inodes: { inode: string; exact: boolean }[] = [];
  // A busy host has tens of thousands of lines, nearly all of other ports: only those with this one are taken apart.
  const needle = `:${endpoint.port.toString(16).toUpperCase().padStart(4, '0')} `;
  for (const table of [transport, `${transport}6`]) {
    const text = await readFile(`/proc/net/${table}`, 'utf8').catch(() => '');
    for (const line of text.split('\n')) {
      if (!line.includes(needle)) continue;
      const [, local = '', , state, , , , , , inode = ''] = line.trim().split(/\s+/);
      const [hexAddress = '', hexPort = ''] = local.split(':');
      if (Number.parseInt(hexPort, 16) !== endpoint.port || inode === '0') continue;
      // Of TCP sockets only listening ones (0A) hold the port against a listener.
      if (transport === 'tcp' && state !== '0A') continue;
      const address = addressOfHex(hexAddress);
      if (overlaps(address, endpoint.address)) inodes.push({ inode, exact: address === endpoint.address });
    }
  }
  inodes.sort((a, b) => Number(b.exact) - Number(a.exact));
  for (const { inode } of inodes.slice(0, 8)) {
    const holder = await holderOfInode(inode);
    if (holder !== undefined) return holder;
  }
  return undefined;
}

/** The process that has the socket of this inode open; undefined when none can be seen. */
export async function holderOfInode(inode: string): Promise<Holder | undefined> {
  if (!/^[1-9]\d*$/.test(inode)) return undefined;
  const wanted = `socket:[${inode}]`;
  let looked = 0;
  for (const pid of await readdir('/proc').catch(() => [])) {
    if (!/^\d+$/.test(pid)) continue;
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
    for (let start = 0; start < descriptors.length; start += descriptorsAtOnce) {
      looked += descriptorsAtOnce;
      if (looked > maxDescriptors) return undefined;
      const some = descriptors.slice(start, start + descriptorsAtOnce);
      const targets = await Promise.all(some.map((each) => readlink(`/proc/${pid}/fd/${each}`).catch(() => '')));
      if (!targets.includes(wanted)) continue;
      const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
      return { pid: Number(pid), program: printable(name.trim()) || 'a process' };
    }
  }
  return undefined;
}

/** The kernel prints addresses as hexadecimal 32-bit words in the machine's byte order, little-endian here. */
function addressOfHex(hex: string): string {
  const bytes: number[] = [];
  for (let word = 0; word < hex.length; word += 8) {
    for (let byte = 6; byte >= 0; byte -= 2) bytes.push(Number.parseInt(hex.slice(word + byte, word + byte + 2), 16));
  }
  if (bytes.length === 4) return bytes.join('.');
  if (bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255) {
    return bytes.slice(12).join('.');
  }
  const groups: string[] = [];
  for (let index = 0; index < bytes.length; index += 2) {
    groups.push((((bytes[index] ?? 0) << 8) | (bytes[index + 1] ?? 0)).toString(16));
  }
  return canonicalIpv6(groups.join(':'));
}

/** URLs write IPv6 addresses in their one canonical form (RFC 5952). */
function canonicalIpv6(address: string): string {
  return new URL(`http://[${address}]`).hostname.slice(1, -1);
}

/** A wildcard overlaps with every address; `::` listens to IPv4 too. */
function overlaps(held: string, wanted: string): boolean {
  const plain = isIPv6(wanted) ? canonicalIpv6(wanted) : wanted;
  if (held === plain || held === '::' || plain === '::') return true;
  return (held === '0.0.0.0' || plain === '0.0.0.0') && !isIPv6(held) && !isIPv6(plain);
}

/** What a failure to listen means for a reader: who holds the port, which right or address is missing. */
export async function explainListenError(error: unknown, endpoint: Place, transport: Transport): Promise<LegateError> {
  const { address, port } = endpoint;
  const place = `${address.includes(':') ? `[${address}]` : address}:${port}/${transport}`;
  switch (systemCode(error)) {
    case 'EADDRINUSE': {
      const holder = await holderOf(endpoint, transport);
      const who = holder === undefined ? 'another process' : `${holder.program} (pid ${holder.pid})`;
      const flag = transport === 'tcp' ? 't' : 'u';
      const hint =
        holder === undefined
          ? `\`ss -ln${flag}p 'sport = :${port}'\` as root tells which; stop it or choose another port`
          : `stop ${holder.program} or choose another address or port`;
      return new LegateError('E_IN_USE', `${place} is held by ${who}`, { hint, cause: error });
    }
    case 'EACCES':
    case 'EPERM':
      return new LegateError('E_PERMISSION', `no right to bind port ${port} (${place})`, {
        hint: 'run as root, give the capability CAP_NET_BIND_SERVICE, or choose a port from 1024',
        cause: error,
      });
    case 'EADDRNOTAVAIL':
      return new LegateError('E_NOT_FOUND', `${address} is not an address of this host (${place})`, {
        hint: 'choose one that `ip addr` shows',
        cause: error,
      });
    default:
      return new LegateError('E_PERMISSION', `cannot listen on ${place}: ${describeError(error)}`, { cause: error });
  }
}

/** Listens with a TCP server; resolves with the port it has, rejects with what `explainListenError` says. */
export function listenTcp(server: Server, endpoint: Place, backlog = 4096): Promise<number> {
  return new Promise((resolve, reject) => {
    const onError = (error: Error): void => {
      explainListenError(error, endpoint, 'tcp').then(reject, reject);
    };
    server.once('error', onError);
    server.listen({ host: endpoint.address, port: endpoint.port, backlog, ipv6Only: isIPv6(endpoint.address) }, () => {
      server.off('error', onError);
      const bound = server.address();
      resolve(typeof bound === 'object' && bound !== null ? bound.port : endpoint.port);
    });
  });
}

/** Binds a UDP socket; resolves with the port it has, rejects with what `explainListenError` says. */
export function bindUdp(socket: DatagramSocket, endpoint: Place): Promise<number> {
  return new Promise((resolve, reject) => {
    const onError = (error: Error): void => {
      explainListenError(error, endpoint, 'udp').then(reject, reject);
    };
    socket.once('error', onError);
    socket.bind({ address: endpoint.address, port: endpoint.port, exclusive: true }, () => {
      socket.off('error', onError);
      resolve(socket.address().port);
    });
  });
}
