import { spawn } from 'node:child_process';
import { Resolver } from 'node:dns/promises';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';
import type { ServiceDocument, StatusDocument } from '../../sidecar/admin/documents.ts';
import { observe, Steps } from './steps.ts';
import { ContainerWorld, dockerVersion, output, ProcessWorld, type World } from './world.ts';

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

async function main(): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'legate-demo-'));
  const stop = new AbortController();
  const closers: (() => Promise<void> | void)[] = [() => rmSync(folder, { recursive: true, force: true })];
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());
  try {
    return await demonstrate(folder, closers, stop.signal);
  } finally {
    for (const close of closers.reverse()) await close();
    if (process.stdout.isTTY) console.log('   everything that was started has been removed');
  }
}

async function demonstrate(
  folder: string,
  closers: (() => Promise<void> | void)[],
  stopped: AbortSignal,
): Promise<number> {
  const steps = new Steps();
  const engine = await dockerVersion();
  const linkPort = await freePort();
  const sidecar = new DemoSidecar(folder, linkPort, engine !== undefined);
  closers.push(() => sidecar.stop());
  let status: StatusDocument | undefined;
  const up = await steps.step('starting a sidecar', async () => {
    status = await sidecar.start();
    const where = engine === undefined ? 'no Docker here: plain processes' : `Docker ${engine}`;
    return `sidecar ${status.host.name} is up (embedded store in ${folder}, ${where})`;
  });
  if (!up || status === undefined) return 1;
  const vips = status.vip.state === 'on';
  const server = status.names.find((each) => each.purpose === 'configured')?.listen ?? '';
  const consumerOptions = vips ? ['--dns', vipServer(status), '--dns-search', 'mesh.internal'] : undefined;
  const world: World =
    engine === undefined
      ? new ProcessWorld(scripts, await freePort(), (name, port) => sidecar.register(name, port))
      : new ContainerWorld(scripts, consumerOptions);
  closers.push(() => world.close());

  await steps.step('starting two instances of demo-db', async () => {
    if (world instanceof ContainerWorld) await world.makeImage();
    await Promise.all([world.startDatabase('db-1'), world.startDatabase('db-2')]);
    await sidecar.until('two usable instances of demo-db', (db) => db.usable === 2);
    return world.kind === 'containers'
      ? 'demo-db: 2 containers registered by label, none publishes a port'
      : 'demo-db: 2 processes registered by `legate register`';
  });
  await steps.step('asking for demo-db', () => askNames(server, vips));
  const target = vips ? 'demo-db.mesh.internal:5432' : `127.0.0.1:${linkPort}`;
  const consumer = vips && world.kind === 'containers' ? 'a third container' : 'a client on this host';
  const dialled = vips && world.kind === 'processes' ? `${await addressOf(server)}:5432` : target;
  await steps.step(`reaching ${target}`, async () => {
    const seen = await world.consume(dialled, 4, questions, 30_000);
    observe(seen.failures.length === 0 && seen.unanswered === 0, `${seen.failures.length} of ${seen.asked} failed`);
    observe(Object.keys(seen.answers).length === 2, `only ${Object.keys(seen.answers).join()} answered`);
    const counts = Object.entries(seen.answers)
      .sort()
      .map(([name, count]) => `${count} by ${name}`);
    return `${consumer} reached ${target} ${seen.asked} times: ${counts.join(', ')}`;
  });
  await steps.step(`killing db-1 under ${busyConnections} busy connections`, () =>
    killUnderTraffic(sidecar, world, dialled),
  );
  await sidecar.showMore(steps, status, world.kind);
  if (steps.failed === 0 && !endsByItself) {
    steps.note('Ctrl-C ends it and leaves nothing behind.');
    if (!stopped.aborted) await once(stopped, 'abort');
  }
  return steps.failed === 0 ? 0 : 1;
}

async function askNames(server: string, vips: boolean): Promise<string> {
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([server]);
  const addresses = await resolver.resolve4('demo-db.mesh.internal');
  const targets = await resolver.resolveSrv('_demo-db._tcp.mesh.internal');
  observe(addresses.length > 0, 'no address');
  observe(targets.length === 2, `${targets.length} SRV records`);
  const meaning = vips ? 'one address, for ever' : "this host's listener";
  return `demo-db.mesh.internal → ${addresses.join(' ')} (${meaning}); SRV → ${targets.length} instances`;
}

async function addressOf(server: string): Promise<string> {
  const resolver = new Resolver({ timeout: 2000, tries: 1 });
  resolver.setServers([server]);
  return (await resolver.resolve4('demo-db.mesh.internal'))[0] ?? '';
}

async function killUnderTraffic(sidecar: DemoSidecar, world: World, target: string): Promise<string> {
  const traffic = world.consume(target, busyConnections, Number.MAX_SAFE_INTEGER, 4000);
  await sidecar.busy(busyConnections);
  const orderedAt = performance.now();
  const left = sidecar.until('db-1 to be left out', (db) => db.usable === 1).then(() => performance.now() - orderedAt);
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
  return (
    `kill -9 of db-1 under ${busyConnections} busy connections: ${inFlight} in flight cut and asked again, ` +
    `0 new ones failed, ${seen.asked} of ${seen.asked} answered; out of the catalog ${leftOutMs.toFixed(0)} ms after the order`
  );
}

function vipServer(status: StatusDocument): string {
  return status.names.find((each) => each.purpose === 'virtual address')?.listen.replace(/:53$/, '') ?? '';
}

/** The sidecar as a user runs it: a configuration file, `legate agent`, and the command line. */
class DemoSidecar {
  readonly #config: string;
  readonly #socket: string;
  readonly #folder: string;
  #child: ReturnType<typeof spawn> | undefined;
  #errors = '';

  constructor(folder: string, linkPort: number, docker: boolean) {
    this.#folder = folder;
    this.#config = join(folder, 'legate.yaml');
    this.#socket = join(folder, 'admin.sock');
    writeFileSync(
      this.#config,
      stringify({
        host: 'web-1',
        advertise: '127.0.0.1',
        data_dir: join(folder, 'data'),
        docker: { expose: docker ? 'labelled' : 'off' },
        dns: { listen: ['127.0.0.1:0'], bridges: 'off' },
        admin: { listen: [`unix:${this.#socket}`] },
        links: [{ service: 'demo-db', listen: `127.0.0.1:${linkPort}` }],
      }),
    );
  }

  async start(): Promise<StatusDocument> {
    const child = spawn(process.execPath, [legate, 'agent', '-c', this.#config], {
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    });
    this.#child = child;
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#errors = (this.#errors + text).slice(-4000);
    });
    for (let attempt = 0; attempt < 200; attempt += 1) {
      if (child.exitCode !== null) throw new Error(`it ended: ${this.#errors.trim().split('\n').at(-1) ?? ''}`);
      const status = await this.#ask<StatusDocument>('status').catch(() => undefined);
      if (status !== undefined && status.store.state === 'connected' && status.docker.state !== 'connecting')
        return status;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error('no answer within 10 s');
  }

  async register(name: string, port: number): Promise<void> {
    const file = join(this.#folder, `${name}.yaml`);
    const check = { kind: 'tcp', interval: '500ms', fall: 1 };
    writeFileSync(
      file,
      stringify({ instances: [{ service: 'demo-db', name, address: '127.0.0.1', port, checks: [check] }] }),
    );
    await output(process.execPath, legate, '--admin', `unix:${this.#socket}`, 'register', '-f', file);
  }

  /** Waits until the service `db` is as `condition` wants it. */
  async until(what: string, condition: (db: ServiceDocument) => boolean): Promise<void> {
    const until = performance.now() + 15_000;
    while (performance.now() < until) {
      const db = await this.#get<ServiceDocument>('/api/services/demo-db').catch(() => undefined);
      if (db !== undefined && condition(db)) return;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    throw new Error(`waited 15 s in vain for ${what}`);
  }

  /** Waits until the links to db carried at least a few rounds of `connections`. */
  async busy(connections: number): Promise<void> {
    const before = await this.#carried();
    const until = performance.now() + 10_000;
    while ((await this.#carried()) < before + connections * 4) {
      if (performance.now() > until) throw new Error('the consumer did not begin');
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  async showMore(steps: Steps, status: StatusDocument, kind: World['kind']): Promise<void> {
    const command = `legate --admin unix:${this.#socket}`;
    if (status.vip.state === 'on' && kind === 'containers') {
      steps.note(`try it:  docker run --rm -it --dns ${vipServer(status)} IMAGE sh        ${command} status`);
    } else {
      steps.note(`try it:  ${command} status`);
    }
    if (kind === 'processes')
      steps.note('With Docker running it would show containers that register themselves by label.');
    if (status.vip.state === 'off') {
      steps.note(
        `Without virtual addresses here (${status.vip.reason ?? ''}): as root with nftables every container reaches db:5432 under its own name.`,
      );
    }
  }

  async stop(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const end = once(child, 'exit');
    child.kill('SIGTERM');
    await end;
  }

  async #carried(): Promise<number> {
    const { links } = await this.#get<{ links: { service: string; connections: { total: number } }[] }>('/api/links');
    return links.filter((link) => link.service === 'demo-db').reduce((sum, link) => sum + link.connections.total, 0);
  }

  async #ask<T>(...words: string[]): Promise<T> {
    return JSON.parse(
      await output(process.execPath, legate, '--admin', `unix:${this.#socket}`, '--json', ...words),
    ) as T;
  }

  async #get<T>(path: string): Promise<T> {
    const { request } = await import('node:http');
    const text = await new Promise<string>((resolve, reject) => {
      request({ socketPath: this.#socket, path, timeout: 5000 }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (chunk: string) => {
          body += chunk;
        });
        response.on('end', () => (response.statusCode === 200 ? resolve(body) : reject(new Error(body))));
      })
        .on('error', reject)
        .end();
    });
    return JSON.parse(text) as T;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

process.exitCode = await main();
