import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { StatusDocument } from '../../sidecar/admin/documents.ts';
import { DemoSidecar } from './sidecar.ts';
import { observe, Steps } from './steps.ts';
import { ContainerWorld, isServiceTaken, localEngine, ProcessWorld, type World } from './world.ts';

/**
 * The demonstration of `npm start`: one sidecar on this machine, real services that register themselves, are resolved by
 * DNS and linked, and one of them killed under traffic. It uses only what a user has: the configuration file, the command
 * line, docker, and the name server. Every printed figure was observed in this run.
 */
const checkout = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
const scripts = join(checkout, 'examples', 'demo');
const legate = join(checkout, 'build', 'sidecar', 'cli', 'main.js');
const endsByItself = process.argv.includes('--once') || !process.stdout.isTTY;
const questions = 400;
const busyConnections = 64;

type Closers = (() => Promise<void> | void)[];

async function main(): Promise<number> {
  const stop = new AbortController();
  // Kept for good: a second Ctrl-C must not end it before everything is taken back.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop.abort());
  // The terminal may be gone; what was started has to go all the same.
  process.stdout.on('error', () => stop.abort());
  const folder = mkdtempSync(join(tmpdir(), 'legate-demo-'));
  const closers: Closers = [() => rmSync(folder, { recursive: true, force: true })];
  try {
    return await demonstrate(folder, closers, stop.signal);
  } finally {
    for (const close of closers.reverse()) {
      await Promise.resolve()
        .then(close)
        .catch((error: unknown) => console.error(error));
    }
    if (stop.signal.aborted) console.log('   Everything that was started has been removed.');
  }
}

async function demonstrate(folder: string, closers: Closers, stopped: AbortSignal): Promise<number> {
  const steps = new Steps(stopped);
  const engine = await localEngine();
  // Another demonstration on this engine, or its remains, must not be taken for ours.
  const service = engine !== undefined && (await isServiceTaken('demo-db')) ? `demo-db-${process.pid}` : 'demo-db';
  const linkPort = await freePort();
  const sidecar = new DemoSidecar({ legate, folder, service, linkPort, dockerSocket: engine?.socket });
  closers.push(() => sidecar.stop());
  let status: StatusDocument | undefined;
  await steps.step('starting a sidecar', async () => {
    status = await sidecar.start();
    const where = engine === undefined ? 'no Docker here, so with plain processes' : `Docker ${engine.version}`;
    return [`sidecar ${status.host.name} is up (${where})`, `its embedded store is in ${folder}`];
  });
  if (status === undefined || stopped.aborted) return 1;
  const vips = status.vip.state === 'on';
  const server = status.names.find((each) => each.purpose === 'configured')?.listen ?? '';
  const consumerOptions = vips ? ['--dns', vipServer(status), '--dns-search', 'mesh.internal'] : undefined;
  const containers = engine && new ContainerWorld({ folder: scripts, service, consumerOptions });
  const register = (name: string, port: number): Promise<void> => sidecar.register(name, port);
  const world: World = containers ?? new ProcessWorld({ folder: scripts, freePort, register });
  closers.push(() => world.close());

  await steps.step(`starting two instances of ${service}`, async () => {
    await containers?.makeImage();
    if (stopped.aborted) return [];
    await Promise.all([world.startDatabase('db-1'), world.startDatabase('db-2')]);
    await sidecar.until(`two usable instances of ${service}`, (found) => found.usable === 2);
    return world.kind === 'containers'
      ? [`${service}: 2 containers registered by label, none publishes a port`]
      : [`${service}: 2 processes registered by \`legate register\``];
  });
  const names = new Resolver({ timeout: 2000, tries: 1 });
  names.setServers([server]);
  await steps.step(`asking for ${service}`, () => askNames(names, service, vips));
  const target = vips ? `${service}.mesh.internal:5432` : `127.0.0.1:${linkPort}`;
  const consumer = vips && world.kind === 'containers' ? 'a third container' : 'a client on this host';
  // The host's own resolver does not ask the mesh: a process here is given the address of the name.
  const address = async (): Promise<string> => `${(await names.resolve4(`${service}.mesh.internal`))[0]}:5432`;
  const dialled = vips && world.kind === 'processes' ? await address().catch(() => target) : target;
  await steps.step(`reaching ${target}`, async () => {
    const seen = await world.consume(dialled, 4, questions, 30_000);
    observe(seen.failures.length === 0 && seen.unanswered === 0, `${seen.failures.length} of ${seen.asked} failed`);
    observe(Object.keys(seen.answers).length === 2, `only ${Object.keys(seen.answers).join()} answered`);
    const counts = Object.entries(seen.answers)
      .sort()
      .map(([name, count]) => `${count} by ${name}`);
    return [`${consumer} reached ${target} ${seen.asked} times`, `answered: ${counts.join(', ')}`];
  });
  await steps.step(`killing db-1 under ${busyConnections} busy connections`, () =>
    killUnderTraffic(sidecar, world, dialled),
  );
  if (stopped.aborted) return 1;
  showMore(steps, status, world.kind, service);
  if (steps.failed === 0 && !endsByItself) {
    if (vips && world.kind === 'containers') {
      steps.note(`Try it: docker run --rm -it --dns ${vipServer(status)} IMAGE sh, and in it reach ${service}:5432`);
    }
    steps.note(`Try it: LEGATE_ADMIN=unix:${sidecar.socket} npx legate status`);
    steps.note('Ctrl-C ends it and leaves nothing behind.');
    await once(stopped, 'abort');
  }
  return steps.failed === 0 ? 0 : 1;
}

async function askNames(names: Resolver, service: string, vips: boolean): Promise<string[]> {
  const addresses = await names.resolve4(`${service}.mesh.internal`);
  const targets = await names.resolveSrv(`_${service}._tcp.mesh.internal`);
  observe(addresses.length > 0, 'no address');
  observe(targets.length === 2, `${targets.length} SRV records`);
  const meaning = vips ? 'one address, for ever' : "this host's listener";
  return [
    `A   ${service}.mesh.internal → ${addresses.join(' ')} (${meaning})`,
    `SRV _${service}._tcp.mesh.internal → ${targets.length} instances`,
  ];
}

async function killUnderTraffic(sidecar: DemoSidecar, world: World, target: string): Promise<string[]> {
  const traffic = world.consume(target, busyConnections, Number.MAX_SAFE_INTEGER, 4000);
  traffic.catch(() => undefined);
  await sidecar.busy(busyConnections);
  const orderedAt = performance.now();
  const left = sidecar
    .until('db-1 to be left out', (found) => found.usable === 1)
    .then(() => performance.now() - orderedAt);
  left.catch(() => undefined);
  await world.killDatabase('db-1');
  const leftOutMs = await left;
  const seen = await traffic;
  const cutAt = Math.min(...seen.failures.map((failure) => failure.endedAt));
  const inFlight = seen.failures.filter((failure) => failure.beganAt <= cutAt).length;
  const fresh = seen.failures.length - inFlight;
  observe(
    fresh === 0,
    `${fresh} connections that began after the kill failed (${seen.failures.at(-1)?.problem ?? ''})`,
  );
  observe(seen.unanswered === 0, `${seen.unanswered} questions were never answered`);
  return [
    `kill -9 of db-1 under ${busyConnections} busy connections: ${inFlight} in flight cut, 0 new ones failed`,
    `with those asked again ${seen.asked} of ${seen.asked} were answered; db-1 was left out ${leftOutMs.toFixed(0)} ms after the order`,
  ];
}

/** What this machine lacks, and what it would show with it. */
function showMore(steps: Steps, status: StatusDocument, kind: World['kind'], service: string): void {
  if (kind === 'processes') steps.note('With Docker on Linux it shows containers that register themselves by label.');
  if (status.vip.state === 'on') return;
  steps.note(`No virtual addresses here: ${status.vip.reason ?? 'no reason known'}.`);
  steps.note(`As root on Linux with nftables, every container reaches ${service}:5432 under that name.`);
}

function vipServer(status: StatusDocument): string {
  return status.names.find((each) => each.purpose === 'virtual address')?.listen.replace(/:53$/, '') ?? '';
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

process.exitCode = await main();
