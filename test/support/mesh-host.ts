import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect } from 'node:tls';
import type { IdentityDocument, StatusDocument } from '../../sidecar/admin/documents.ts';
import { applicationProtocols } from '../../src/pki/desk.ts';
import { Agent, legateMain, type Ran, run, type Teardown } from './agent.ts';
import { freePort } from './faults.ts';

/** Runs `legate …`, without an admin socket of its own. */
export function legate(args: readonly string[], input?: string): Promise<Ran> {
  return run(process.execPath, [legateMain, ...args], input === undefined ? {} : { input });
}

/** A host of a mesh with an authority, as far as it was begun. */
export interface MeshHost {
  readonly agent: Agent;
  readonly ports: { readonly tunnel: number; readonly store: number };
  readonly dataDir: string;
  readonly config: Readonly<Record<string, unknown>>;
}

export async function meshHost(
  t: Teardown,
  name: string,
  more: Readonly<Record<string, unknown>> = {},
): Promise<MeshHost> {
  const ports = { tunnel: await freePort(), store: await freePort() };
  const config = { host: name, tunnel: { listen: `127.0.0.1:${ports.tunnel}` }, ...more };
  const agent = new Agent(t, config);
  return { agent, ports, config, dataDir: join(agent.folder, 'data') };
}

/** A host on which `legate init` was run, with an embedded store. */
export async function firstHost(
  t: Teardown,
  more: Readonly<Record<string, unknown>> = {},
  ...args: string[]
): Promise<MeshHost & { readonly init: Ran }> {
  const made = await meshHost(t, 'web-1', more);
  made.agent.configure({ ...made.config, store: { kind: 'embedded', listen: `127.0.0.1:${made.ports.store}` } });
  const init = await legate(['init', '-c', made.agent.configFile, ...args]);
  if (init.status !== 0) throw new Error(init.stderr + init.stdout);
  return { ...made, init };
}

/** The token in the last line of `legate init`. */
export function tokenOf({ stdout }: Ran): string {
  return /--token (\S+)/.exec(stdout.trim().split('\n').at(-1) ?? '')?.[1] ?? '';
}

/** A token of `legate token`. */
export async function nextToken({ agent }: MeshHost, ...args: string[]): Promise<string> {
  return (await agent.cli('token', ...args)).stdout.trim();
}

export function joinTo(to: MeshHost, host: MeshHost, token: string): Promise<Ran> {
  const address = `127.0.0.1:${to.ports.tunnel}`;
  return legate(['join', address, '--token', '-', '-c', host.agent.configFile], `${token}\n`);
}

export async function identityOf({ agent }: MeshHost): Promise<IdentityDocument> {
  return (await agent.json<StatusDocument>('/api/status')).identity;
}

/** The serial of what a listener shows, checked against the roots in a file; an error when it is not believed. */
export function served(port: number, rootsFile: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: '127.0.0.1',
      port,
      ca: readFileSync(rootsFile),
      ALPNProtocols: [applicationProtocols.tunnel],
      checkServerIdentity: () => undefined,
    });
    socket.setTimeout(5000, () => socket.destroy(new Error('no handshake within 5 s')));
    socket.once('error', reject);
    socket.once('secureConnect', () => {
      const serial = socket.getPeerX509Certificate()?.serialNumber.toLowerCase() ?? '';
      socket.off('error', reject).on('error', () => undefined);
      socket.destroy();
      resolve(serial);
    });
  });
}
