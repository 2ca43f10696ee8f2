import { Resolver } from 'node:dns/promises';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { isIP } from 'node:net';
import { systemCode } from '../../src/base/errors.ts';
import { isLoopback } from '../../src/model/address.ts';
import type { AskedServer, ResolverFacts } from './facts.ts';

/** Where Docker answers containers of networks that users made. */
const dockerServer = '127.0.0.11';
const maxBytes = 64 * 1024;
/** C libraries look at three (resolv.conf(5), MAXNS). */
const maxServers = 3;
const limitMs = 1000;

export interface ContainerNames {
  /** Of a process in it. */
  readonly pid: number;
  /** What `docker run --dns` named. */
  readonly dns: readonly string[];
}

/** Whom a container asks for names. Undefined when its file cannot be read and nothing was named. */
export async function resolverOf({ pid, dns }: ContainerNames): Promise<ResolverFacts['servers'] | 'unreadable'> {
  const text = pid === 0 ? undefined : await readSmallFile(`/proc/${pid}/root/etc/resolv.conf`).catch(() => undefined);
  if (text === undefined) return dns.length > 0 ? served(dns) : 'unreadable';
  return serversIn(text, dns);
}

/** The servers that a container's resolv.conf leads to; undefined where Docker stands in between and names nobody. */
export function serversIn(text: string, dns: readonly string[]): ResolverFacts['servers'] {
  const named = [...text.matchAll(/^\s*nameserver\s+(\S+)/gm)].map(([, address = '']) => address);
  const servers = named.filter((address) => isIP(address) !== 0);
  if (!servers.includes(dockerServer)) return served(servers).map(withinContainer);
  if (dns.length > 0) return served(dns);
  // Engines from 25 on write down whom they ask: `# ExtServers: [10.0.0.2 host(127.0.0.53)]`.
  const [, outer = ''] = /^# ExtServers: \[([^\]]*)\]/m.exec(text) ?? [];
  const asked = outer.split(/[\s,]+/).map((word) => /^(?:host\()?([0-9a-fA-F.:]+)\)?$/.exec(word)?.[1] ?? '');
  const known = asked.filter((address) => isIP(address) !== 0);
  return known.length > 0 ? served(known) : undefined;
}

function served(addresses: readonly string[]): AskedServer[] {
  return addresses.slice(0, maxServers).map((address) => ({ address, answer: undefined }));
}

/** Its own loopback, where this host cannot ask. */
function withinContainer(server: AskedServer): AskedServer {
  return isLoopback(server.address)
    ? { ...server, answer: { problem: 'not to be seen, it is in the container' } }
    : server;
}

/** Asks a name server for a name's IPv4 addresses. Never rejects. */
export async function askServer(address: string, name: string): Promise<NonNullable<AskedServer['answer']>> {
  const resolver = new Resolver({ timeout: limitMs, tries: 1 });
  try {
    resolver.setServers([address.includes(':') ? `[${address}]` : address]);
    return { addresses: await resolver.resolve4(name) };
  } catch (error) {
    const code = systemCode(error) ?? '';
    if (code === 'ENOTFOUND') return { problem: 'there is no such name' };
    if (code === 'ENODATA') return { problem: 'the name has no address' };
    if (code === 'ETIMEOUT') return { problem: `nothing within ${limitMs / 1000} s` };
    return { problem: code === '' ? 'nothing' : code };
  } finally {
    resolver.cancel();
  }
}

/** A container may put anything there: only a plain file counts, not what a link leads to, and only its beginning. */
async function readSmallFile(path: string): Promise<string> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    if (!(await file.stat()).isFile()) return '';
    const { buffer, bytesRead } = await file.read(Buffer.alloc(maxBytes), 0, maxBytes, 0);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
}
