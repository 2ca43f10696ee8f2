import { readFile } from 'node:fs/promises';
import net from 'node:net';
import { describeError, LegateError, systemCode } from '../../src/base/errors.ts';
import { type Holder, holderOfInode } from '../../src/base/sockets.ts';

export interface Ownership {
  release(): Promise<void>;
}

/**
 * Takes the one ownership of `table` in this network namespace: an abstract unix socket, which the kernel keeps per
 * network namespace and gives back when its process dies. Rejects with E_IN_USE, naming the living owner where it can be
 * seen from here.
 */
export async function takeOwnership(table: string): Promise<Ownership> {
  const name = `legate-vip-${table}`;
  const server = net.createServer((socket) => socket.destroy());
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(`\0${name}`, resolve);
    });
  } catch (error) {
    if (systemCode(error) !== 'EADDRINUSE') {
      throw new LegateError('E_PERMISSION', `cannot take table ip ${table}: ${describeError(error)}`, { cause: error });
    }
    const holder = await holderOfAbstractSocket(name);
    const who = holder === undefined ? 'another sidecar' : `another sidecar (pid ${holder.pid})`;
    // Without the cause, which says the same again and has the socket's NUL in it.
    throw new LegateError('E_IN_USE', `${who} owns table ip ${table}`, {
      hint: 'stop it, give this one another vip.range, or set vip.mode: off',
    });
  }
  server.unref();
  return { release: () => new Promise((resolve) => server.close(() => resolve())) };
}

/** Abstract names are listed with an `@` in front, and one for each NUL that pads them. */
async function holderOfAbstractSocket(name: string): Promise<Holder | undefined> {
  const text = await readFile('/proc/net/unix', 'utf8').catch(() => '');
  for (const line of text.split('\n')) {
    const fields = line.trim().split(/\s+/);
    if ((fields[7] ?? '').replace(/@+$/, '') === `@${name}`) return holderOfInode(fields[6] ?? '');
  }
  return undefined;
}
