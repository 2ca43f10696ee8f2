import { chmodSync, rmSync } from 'node:fs';
import type { Server } from 'node:http';
import { connect, type Server as NetServer } from 'node:net';
import { dirname } from 'node:path';
import { createAdaptorServer } from '@hono/node-server';
import { Hono } from 'hono';
import { LegateError } from '../../src/base/errors.ts';
import { makePrivateFolder } from '../../src/base/files.ts';
import type { Log } from '../../src/base/log.ts';
import { explainListenError } from '../../src/base/sockets.ts';
import type { AdminListen } from '../../src/config/config.ts';
import { type Endpoint, formatEndpoint } from '../../src/model/address.ts';
import { bearerMatches, hostHeaderMatches } from './access.ts';
import type { AdminBackend } from './backend.ts';
import { adminRoutes, answerError } from './routes.ts';

/** Connections open at once on one listener. */
const maxConnections = 256;

export interface AdminServer {
  /** Where it really listens; a port 0 is resolved. */
  readonly listens: readonly AdminListen[];
  close(): Promise<void>;
}

/**
 * Opens the admin doors: a unix socket that only its owner can use, and TCP where asked, which always needs the token
 * except for `/healthz` and `/readyz`. One that cannot be opened fails the whole call, with the reason.
 */
export async function openAdminServer(options: {
  readonly listen: readonly AdminListen[];
  readonly token: string;
  readonly backend: AdminBackend;
  readonly log: Log;
}): Promise<AdminServer> {
  const routes = adminRoutes(options.backend, options.log);
  const servers: Server[] = [];
  const listens: AdminListen[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(servers.map(closeServer));
    for (const listen of listens) if (listen.kind === 'unix') rmSync(listen.path, { force: true });
  };
  try {
    for (const listen of options.listen) {
      if (listen.kind === 'unix') {
        servers.push(await listenUnix(listen.path, routes));
        listens.push(listen);
      } else {
        const bound: { endpoint: Endpoint } = { endpoint: listen };
        const server = await listenTcp(
          listen,
          guarded(routes, () => bound.endpoint, options.token),
        );
        servers.push(server);
        const address = server.address();
        const port = typeof address === 'object' && address !== null ? address.port : listen.port;
        bound.endpoint = { address: listen.address, port };
        listens.push({ kind: 'tcp', ...bound.endpoint });
      }
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { listens, close };
}

function guarded(routes: Hono, endpoint: () => Endpoint, token: string): Hono {
  const app = new Hono();
  app.use(async (context, next) => {
    if (!hostHeaderMatches(context.req.header('host'), endpoint())) {
      return answerError(
        context,
        new LegateError('E_UNAUTHORIZED', 'the Host header does not name this sidecar', {
          hint: `ask http://${formatEndpoint(endpoint())}`,
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

function createServer(app: Hono): Server {
  const server = createAdaptorServer({ fetch: app.fetch }) as Server;
  server.maxConnections = maxConnections;
  server.headersTimeout = 10_000;
  server.requestTimeout = 30_000;
  return server;
}

async function listenTcp(endpoint: Endpoint, app: Hono): Promise<Server> {
  const server = createServer(app);
  try {
    await listening(server, () => server.listen({ host: endpoint.address, port: endpoint.port }));
  } catch (error) {
    throw await explainListenError(error, endpoint, 'tcp');
  }
  return server;
}

async function listenUnix(path: string, app: Hono): Promise<Server> {
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

function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
