import { chmodSync, existsSync, rmSync } from 'node:fs';
import type { Server } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import { connect, type Server as NetServer } from 'node:net';
import { dirname } from 'node:path';
import { createAdaptorServer, type HttpBindings } from '@hono/node-server';
import { type Context, Hono } from 'hono';
import type { Clock } from '../../src/base/clock.ts';
import type { Conditions } from '../../src/base/conditions.ts';
import { describeError, isLegateError, LegateError } from '../../src/base/errors.ts';
import type { Observable } from '../../src/base/feed.ts';
import { makePrivateFolder } from '../../src/base/files.ts';
import type { Log } from '../../src/base/log.ts';
import { explainListenError } from '../../src/base/sockets.ts';
import type { AdminListen } from '../../src/config/config.ts';
import { type Endpoint, formatEndpoint, isLoopback } from '../../src/model/address.ts';
import type { Credentials } from '../../src/model/credentials.ts';
import { bearerMatches, hostHeaderMatches } from './access.ts';
import type { AdminBackend } from './backend.ts';
import { adminRoutes, answerError } from './routes.ts';

/** Connections open at once on one listener. */
const maxConnections = 256;
/** Between looks whether the doors are still there. */
const watchEveryMs = 5000;

export interface AdminServerOptions {
  readonly listen: readonly AdminListen[];
  readonly token: string;
  /** With these TCP is opened beyond loopback, over TLS. */
  readonly credentials: Observable<Credentials | undefined>;
  /** What this host may be called there besides its addresses. */
  readonly names: readonly string[];
  readonly backend: AdminBackend;
  readonly clock: Clock;
  readonly log: Log;
  readonly conditions: Conditions;
}

/**
 * The admin doors: a unix socket that only its owner can use, and TCP where asked, which always needs the token except for
 * `/healthz` and `/readyz`. Beyond loopback that is TLS with this host's certificate, and closed while it has none. A socket that cannot be opened at the start fails `open`; a TCP port that cannot be had is a
 * condition and is tried again, and a socket that somebody removed is made again: names and links depend on neither.
 */
export class AdminServer {
  readonly #options: AdminServerOptions;
  readonly #routes: Hono;
  readonly #servers = new Map<AdminListen, Server | TlsServer>();
  readonly #opening = new Set<AdminListen>();
  #unsubscribe: (() => void) | undefined;
  readonly #stop = new AbortController();

  constructor(options: AdminServerOptions) {
    this.#options = options;
    this.#routes = adminRoutes(options.backend, options.log);
  }

  async open(): Promise<void> {
    for (const listen of this.#options.listen) {
      if (listen.kind === 'unix') this.#servers.set(listen, await listenUnix(listen.path, this.#routes));
      else await this.#openTcp(listen);
    }
    this.#unsubscribe = this.#options.credentials.subscribe(() => void this.#renew());
    this.#watch().catch((error: unknown) => {
      if (!this.#stop.signal.aborted) throw error;
    });
  }

  async close(): Promise<void> {
    this.#stop.abort();
    this.#unsubscribe?.();
    await Promise.all([...this.#servers.values()].map(closeServer));
    for (const listen of this.#servers.keys()) if (listen.kind === 'unix') rmSync(listen.path, { force: true });
  }

  async #openTcp(listen: TcpListen): Promise<void> {
    const { conditions, token, credentials, names } = this.#options;
    const id = `admin.listen.${formatEndpoint(listen)}`;
    const where = `no admin API on ${formatEndpoint(listen)}`;
    const secure = !isLoopback(listen.address);
    const { value: shown } = credentials;
    if (secure && shown === undefined) {
      const hint = 'legate init or legate join gives this host one; until then use the socket, or 127.0.0.1:7710';
      conditions.raise(
        id,
        'warning',
        `${where}: beyond loopback it needs this host's certificate, and it has none`,
        hint,
      );
      return;
    }
    if (this.#opening.has(listen)) return;
    this.#opening.add(listen);
    try {
      const endpointOf = (port: number): Endpoint => ({ address: listen.address, port });
      const app = guarded(this.#routes, endpointOf, { token, ...(secure ? { names, scheme: 'https' } : {}) });
      this.#servers.set(listen, await listenTcp(listen, createServer(app, secure ? shown : undefined)));
      conditions.clear(id);
    } catch (error) {
      const hint = isLegateError(error) ? (error.hint ?? '') : '';
      conditions.raise(id, 'error', `${where}: ${describeError(error)}`, hint);
    } finally {
      this.#opening.delete(listen);
    }
  }

  /** The certificate was renewed: new connections get the new one, those that run go on. Or there is one at last. */
  async #renew(): Promise<void> {
    const { credentials, listen } = this.#options;
    const { value: shown } = credentials;
    if (shown === undefined) return;
    for (const each of listen) {
      if (each.kind === 'unix' || isLoopback(each.address) || this.#stop.signal.aborted) continue;
      const server = this.#servers.get(each);
      if (server === undefined) await this.#openTcp(each);
      else if ('setSecureContext' in server) server.setSecureContext(tlsOptions(shown));
    }
  }

  /** Looks now and then whether every door is there. */
  async #watch(): Promise<void> {
    const { clock, listen, log } = this.#options;
    for (;;) {
      await clock.sleep(watchEveryMs, this.#stop.signal);
      for (const each of listen) {
        const server = this.#servers.get(each);
        if (each.kind === 'tcp') {
          if (server === undefined) await this.#openTcp(each);
        } else if (!existsSync(each.path)) {
          log.warn('the admin socket had been removed and is made again', { 'admin.listen': each.path });
          if (server !== undefined) await closeServer(server);
          this.#servers.set(each, await listenUnix(each.path, this.#routes));
        }
      }
    }
  }
}

/** `endpointOf` makes the listener's endpoint of the port on which the request came in: 0 was resolved by then. */
function guarded(
  routes: Hono,
  endpointOf: (port: number) => Endpoint,
  { token, names = [], scheme = 'http' }: { token: string; names?: readonly string[]; scheme?: string },
): Hono {
  const app = new Hono();
  app.use(async (context, next) => {
    const endpoint = endpointOf(localPort(context));
    if (!hostHeaderMatches(context.req.header('host'), endpoint, names)) {
      return answerError(
        context,
        new LegateError('E_UNAUTHORIZED', 'the Host header does not name this sidecar', {
          hint: `ask ${scheme}://${formatEndpoint(endpoint)}`,
        }),
      );
    }
    const open = context.req.path === '/healthz' || context.req.path === '/readyz';
    if (!open && !bearerMatches(context.req.header('authorization'), token)) {
      return answerError(
        context,
        new LegateError('E_UNAUTHORIZED', 'this needs the admin token', {
          hint: 'send "Authorization: Bearer TOKEN"; the token is in admin.token in the data directory',
        }),
      );
    }
    await next();
  });
  app.route('/', routes);
  return app;
}

/** The port on which a request came in. */
function localPort(context: Context): number {
  const { incoming } = context.env as HttpBindings;
  return incoming.socket.localPort ?? 0;
}

type TcpListen = AdminListen & { readonly kind: 'tcp' };

function tlsOptions({ chain, key }: Credentials): { minVersion: 'TLSv1.2'; cert: string; key: string } {
  return { minVersion: 'TLSv1.2', cert: chain, key };
}

/** With credentials it speaks TLS. */
function createServer(app: Hono, credentials?: Credentials): Server | TlsServer {
  const secure =
    credentials === undefined
      ? {}
      : { createServer: createTlsServer, serverOptions: { ...tlsOptions(credentials), handshakeTimeout: 10_000 } };
  const server = createAdaptorServer({ fetch: app.fetch, ...secure }) as Server | TlsServer;
  server.maxConnections = maxConnections;
  server.headersTimeout = 10_000;
  server.requestTimeout = 30_000;
  return server;
}

async function listenTcp<T extends NetServer>(endpoint: Endpoint, server: T): Promise<T> {
  try {
    await listening(server, () => server.listen({ host: endpoint.address, port: endpoint.port }));
  } catch (error) {
    throw await explainListenError(error, endpoint, 'tcp');
  }
  return server;
}

async function listenUnix(path: string, app: Hono): Promise<Server | TlsServer> {
  makePrivateFolder(dirname(path));
  if (await answers(path)) {
    throw new LegateError('E_IN_USE', `the admin socket ${path} is held by a running sidecar`, {
      hint: 'stop it first, or set admin.listen to another path',
    });
  }
  rmSync(path, { force: true });
  const server = createServer(app);
  const mask = process.umask(0o177);
  try {
    await listening(server, () => server.listen(path));
  } catch (error) {
    throw new LegateError('E_PERMISSION', `cannot listen on the admin socket ${path}`, {
      hint: 'set admin.listen to a path in a folder that this user may write to (at most 107 characters)',
      cause: error,
    });
  } finally {
    process.umask(mask);
  }
  chmodSync(path, 0o600);
  return server;
}

function listening(server: NetServer, listen: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.once('listening', () => {
      server.off('error', reject);
      resolve();
    });
    listen();
  });
}

/** Whether somebody accepts connections on a unix socket's path. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.setTimeout(1000, () => socket.destroy());
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
    socket.once('close', () => resolve(false));
  });
}

function closeServer(server: Server | TlsServer): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
