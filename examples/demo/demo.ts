import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { HostDocument, StatusDocument } from '../../sidecar/admin/documents.ts';
import { plural } from '../../sidecar/cli/words.ts';
import { type DemoHost, DemoSidecar } from './sidecar.ts';
import { observe, Steps } from './steps.ts';
import { type Consumed, ContainerWorld, isServiceTaken, localEngine, ProcessWorld, type World } from './world.ts';

/**
 * The demonstration of `npm start`: two sidecars on this machine that stand for two hosts, real services that register
 * themselves, are resolved by DNS and linked across them, and one of them killed under traffic. It uses only what a user has: the configuration file, the command
 * line, docker, and the name server. Every printed figure was observed in this run.
 */
const checkout = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
const scripts = join(checkout, 'examples', 'demo');
const legate = join(checkout, 'build', 'sidecar', 'cli', 'main.js');
const endsByItself = process.argv.includes('--once') || !process.stdout.isTTY;
/** Only Linux takes every address of 127/8 for its own. */
const first: DemoHost = { name: 'web-1', address: '127.0.0.1', first: true };
const other: DemoHost = {
  name: 'web-2',
  address: process.platform === 'linux' ? '127.0.0.2' : '127.0.0.1',
  first: false,
};
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
  const shared = { legate, folder, service, storePort: await freePort() };
  const linkPort = await freePort();
  const otherLinkPort = await freePort(other.address);
  const sidecar = new DemoSidecar({
    ...shared,
    host: first,
    linkPort,
    tunnelPort: await freePort(),
    dockerSocket: engine?.socket,
  });
  const second = new DemoSidecar({
    ...shared,
    host: other,
    linkPort: otherLinkPort,
    tunnelPort: await freePort(other.address),
    dockerSocket: undefined,
  });
  closers.push(
    () => sidecar.stop(),
    () => second.stop(),
  );
  let status: StatusDocument | undefined;
  let otherStatus: StatusDocument | undefined;
  await steps.step('starting a mesh of two hosts', async () => {
    const token = await sidecar.init();
    status = await sidecar.start();
    await second.join(sidecar.tunnel, token);
    otherStatus = await second.start();
    await second.until('both hosts to know each other', '/api/hosts', ({ hosts }: { hosts: readonly HostDocument[] }) =>
      [first, other].every(({ name }) => hosts.some((host) => host.name === name && host.alive)),
    );
    const where = engine === undefined ? 'no Docker here, so with plain processes' : `Docker ${engine.version}`;
    return [
      `sidecar ${first.name} is up on ${first.address} (${where})`,
      `its certificate authority and embedded store are in ${folder}`,
      `sidecar ${other.name} is up on ${other.address}: it joined with a token, and has a certificate of its own`,
    ];
  });
  if (status === undefined || otherStatus === undefined || stopped.aborted) return 1;
  const vips = status.vip.state === 'on';
  const consumerOptions = vips ? ['--dns', vipServer(status), '--dns-search', 'mesh.internal'] : undefined;
  const containers = engine && new ContainerWorld({ folder: scripts, service, consumerOptions });
  const register = (name: string, port: number): Promise<void> => sidecar.register(name, port);
  const world: World = containers ?? new ProcessWorld({ folder: scripts, address: first.address, freePort, register });
  const otherWorld = new ProcessWorld({
    folder: scripts,
    address: other.address,
    freePort,
    register: (name, port) => second.register(name, port),
  });
  closers.push(
    () => world.close(),
    () => otherWorld.close(),
  );

  await steps.step(`starting three instances of ${service}`, async () => {
    await containers?.makeImage();
    if (stopped.aborted) return [];
    await Promise.all([world.startDatabase('db-1'), world.startDatabase('db-2'), otherWorld.startDatabase('db-3')]);
    for (const each of [sidecar, second]) await each.usable(service, 3);
    return [
      world.kind === 'containers'
        ? `${service} on ${first.name}: 2 containers registered by label, none publishes a port`
        : `${service} on ${first.name}: 2 processes registered by \`legate register\``,
      `${service} on ${other.name}: db-3, a process registered by \`legate register\``,
    ];
  });
  await steps.step(`asking ${first.name} for ${service}`, () => askNames(status, service, vips));
  await steps.step(`asking ${other.name} for ${service}`, () => askNames(otherStatus, service, false));
  const target = vips ? `${service}.mesh.internal:5432` : `${first.address}:${linkPort}`;
  const consumer = vips && world.kind === 'containers' ? 'another container' : 'a client';
  // The host's own resolver does not ask the mesh: a process here is given the address of the name.
  const names = resolverOf(status);
  const address = async (): Promise<string> => `${(await names.resolve4(`${service}.mesh.internal`))[0]}:5432`;
  const dialled = vips && world.kind === 'processes' ? await address().catch(() => target) : target;
  await steps.step(`reaching ${target}`, () =>
    reach(`${consumer} on ${first.name}`, target, world.consume(dialled, 4, questions, 30_000), ['db-1', 'db-2']),
  );
  const otherTarget = `${other.address}:${otherLinkPort}`;
  await steps.step(`reaching ${otherTarget}`, () =>
    reach(`a client on ${other.name}`, otherTarget, otherWorld.consume(otherTarget, 4, questions, 30_000), ['db-3']),
  );
  await steps.step(`killing db-3 under ${busyConnections} busy connections of ${other.name}`, () =>
    killUnderTraffic([second, sidecar], service, otherWorld, otherTarget),
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

function resolverOf(status: StatusDocument): Resolver {
  const names = new Resolver({ timeout: 2000, tries: 1 });
  names.setServers([status.names.find((each) => each.purpose === 'configured')?.listen ?? '']);
  return names;
}

async function reach(
  consumer: string,
  target: string,
  asking: Promise<Consumed>,
  expected: readonly string[],
): Promise<string[]> {
  const seen = await asking;
  observe(seen.failures.length === 0 && seen.unanswered === 0, `${seen.failures.length} of ${seen.asked} failed`);
  const answered = Object.keys(seen.answers).sort();
  observe(answered.join() === expected.join(), `${answered.join()} answered, not ${expected.join()}`);
  const counts = answered.map((name) => `${seen.answers[name]} by ${name}`);
  return [`${consumer} reached ${target} ${seen.asked} times`, `answered: ${counts.join(', ')}`];
}

async function askNames(status: StatusDocument | undefined, service: string, vips: boolean): Promise<string[]> {
  if (status === undefined) throw new Error('its sidecar is not up');
  const names = resolverOf(status);
  const addresses = await names.resolve4(`${service}.mesh.internal`);
  const targets = await names.resolveSrv(`_${service}._tcp.mesh.internal`);
  observe(addresses.length > 0, 'no address');
  observe(targets.length > 0, 'no SRV record');
  const meaning = vips ? 'one address, for ever' : "this host's listener";
  return [
    `${status.host.name}: A   ${service}.mesh.internal → ${addresses.join(' ')} (${meaning})`,
    `${status.host.name}: SRV _${service}._tcp.mesh.internal → ${targets.length} that it can name`,
  ];
}

async function killUnderTraffic(
  sidecars: readonly [DemoSidecar, DemoSidecar],
  service: string,
  world: World,
  target: string,
): Promise<string[]> {
  const [sidecar, second] = sidecars;
  const traffic = world.consume(target, busyConnections, Number.MAX_SAFE_INTEGER, 4000);
  traffic.catch(() => undefined);
  await sidecar.busy(busyConnections);
  const orderedAt = performance.now();
  const elapsedMs = (): number => performance.now() - orderedAt;
  const left = Promise.all([sidecar.usable(service, 2).then(elapsedMs), second.usable(service, 2).then(elapsedMs)]);
  left.catch(() => undefined);
  await world.killDatabase('db-3');
  const goneAt = Date.now();
  const [leftOutMs, otherMs] = await left;
  const seen = await traffic;
  // While a process dies its connections are reset one by one, and until the kernel has closed its listener that still
  // takes new ones, to reset them, too: what began before it was gone was in flight, also when it was asked anew.
  const fresh = seen.failures.filter((failure) => failure.beganAt > goneAt);
  const inFlight = seen.failures.length - fresh.length;
  observe(
    fresh.length === 0,
    `${plural(fresh.length, 'connection')} that began after it was gone failed (${fresh.at(-1)?.problem ?? ''})`,
  );
  observe(seen.unanswered === 0, `${plural(seen.unanswered, 'question')} never got an answer`);
  const far = ['db-1', 'db-2'];
  for (const name of far) observe((seen.answers[name] ?? 0) > 0, `${name} answered nothing`);
  return [
    `kill -9 of db-3 under ${busyConnections} busy connections: ${inFlight} in flight cut, 0 new ones failed`,
    `through the tunnel to ${second.host.name} went on: ${far.map((name) => `${seen.answers[name]} by ${name}`).join(', ')}`,
    `with those asked again ${seen.asked} of ${seen.asked} were answered; db-3 was left out ${leftOutMs.toFixed(0)} ms after the order`,
    `${second.host.name} left it out ${otherMs.toFixed(0)} ms after the order`,
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

async function freePort(address = first.address): Promise<number> {
  const server = createServer().listen(0, address);
  await once(server, 'listening');
  const bound = server.address();
  server.close();
  return typeof bound === 'object' && bound !== null ? bound.port : 0;
}

process.exitCode = await main();
