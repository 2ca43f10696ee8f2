import { type Context, Hono, type MiddlewareHandler } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { streamSSE } from 'hono/streaming';
import { describeError, type ErrorCode, isLegateError, LegateError } from '../../src/base/errors.ts';
import type { Log } from '../../src/base/log.ts';
import { printable, truncate } from '../../src/base/text.ts';
import { authorityRoutes } from './authority-routes.ts';
import type { AdminBackend } from './backend.ts';
import type { ErrorDocument } from './documents.ts';
import { keyValueRoutes } from './key-value.ts';
import { policyRoutes } from './policy-routes.ts';
import { storeRoutes } from './store-routes.ts';

/** Longest body of a request, in bytes: a value of the store and its wrapping. */
const bodyLimitBytes = 1024 * 1024 + 4096;
/** A backup of 10,000 instances has about 10 MB; beyond them are the users' own keys. */
const backupLimitBytes = 256 * 1024 * 1024;
const restorePath = '/api/store/restore';
/** Streams of server-sent events open at once. */
const maxEventStreams = 64;
/** A comment line keeps an idle stream of events alive through middleboxes. */
const eventKeepAliveMs = 15_000;

const statusOf: Partial<Record<ErrorCode, 400 | 401 | 403 | 404 | 409 | 413 | 503>> = {
  E_USAGE: 400,
  E_CONFIG: 400,
  E_INVALID: 400,
  E_UNAUTHORIZED: 401,
  E_DENIED: 403,
  E_NOT_FOUND: 404,
  E_CONFLICT: 409,
  E_IN_USE: 409,
  E_TOO_LARGE: 413,
  E_STORE_AWAY: 503,
  E_TIMEOUT: 503,
  E_CLOSED: 503,
};

/** The routes of CONTRACT's admin API over one backend. Who may call them is decided by the listener. */
export function adminRoutes(backend: AdminBackend, log: Log): Hono {
  const app = new Hono();
  const refused = backend.metrics.counter(
    'legate_admin_errors_total',
    'Admin requests that were answered with an error.',
  );
  const requests = backend.metrics.counter('legate_admin_requests_total', 'Admin requests.');
  app.use(async (_context, next) => {
    requests.value += 1;
    await next();
  });
  const limited = (bytes: number): MiddlewareHandler =>
    bodyLimit({ maxSize: bytes, onError: (context) => answerError(context, tooLarge(bytes)) });
  const usual = limited(bodyLimitBytes);
  const ofBackup = limited(backupLimitBytes);
  app.use((context, next) => (context.req.path === restorePath ? ofBackup : usual)(context, next));
  app.onError((error, context) => {
    refused.value += 1;
    if (!isLegateError(error))
      log.error('admin request failed', { 'http.path': printable(context.req.path), error: describeError(error) });
    return answerError(context, error);
  });
  app.notFound((context) =>
    answerError(context, new LegateError('E_NOT_FOUND', `there is no ${printable(truncate(context.req.path, 200))}`)),
  );

  app.get('/healthz', (context) => context.text('ok\n'));
  app.get('/readyz', (context) => (backend.ready() ? context.text('ready\n') : context.text('not ready\n', 503)));
  app.get('/metrics', async (context) => {
    context.header('Content-Type', backend.metrics.contentType);
    return context.body(await backend.metrics.exposition());
  });
  app.get('/api/status', async (context) => context.json(await backend.status()));
  app.get('/api/hosts', async (context) => context.json({ hosts: await backend.hosts(), picture: backend.picture() }));
  app.get('/api/services', (context) => context.json(backend.services()));
  app.get('/api/services/:name', (context) => context.json(backend.service(context.req.param('name'))));
  app.put('/api/services/:name', async (context) =>
    context.json(await backend.setService(context.req.param('name'), await jsonObject(context))),
  );
  app.delete('/api/services/:name', async (context) =>
    context.json(await backend.forgetService(context.req.param('name'))),
  );
  app.get('/api/splits/:name', (context) => context.json(backend.split(context.req.param('name'))));
  app.get('/api/instances', (context) => {
    const service = context.req.query('service');
    const ungranted = backend.ungranted(service);
    return context.json({ instances: backend.instances(service), ungranted, picture: backend.picture() });
  });
  app.get('/api/links', async (context) => context.json(await backend.links()));
  app.get('/api/resolve', async (context) => {
    const name = context.req.query('name');
    if (name === undefined) throw new LegateError('E_INVALID', 'resolve needs ?name=');
    return context.json(await backend.resolve(name, context.req.query('type') ?? 'A', context.req.query('from')));
  });
  app.get('/api/why', async (context) => {
    const name = context.req.query('name');
    if (name === undefined) throw new LegateError('E_INVALID', 'why needs ?name=');
    return context.json(await backend.why(name, context.req.query('consumer')));
  });
  app.put('/api/instances/:id{.+}', async (context) =>
    context.json(await backend.register(context.req.param('id'), await jsonObject(context))),
  );
  app.delete('/api/instances/:id{.+}', async (context) => {
    await backend.deregister(context.req.param('id'));
    return context.json({ deregistered: context.req.param('id') });
  });
  app.post('/api/drain', async (context) => context.json(await backend.drain(await jsonObject(context))));
  app.route('/api', authorityRoutes(backend, jsonObject));
  app.post('/api/handover', async (context) => {
    await backend.handOver();
    return context.json({ handingOver: true });
  });
  app.route('/api/kv', keyValueRoutes(backend));
  app.route('/api/store', storeRoutes(backend, jsonObject));
  app.route('/api', policyRoutes(backend, jsonObject));
  eventRoute(app, backend);
  return app;
}

function eventRoute(app: Hono, backend: AdminBackend): void {
  let open = 0;
  app.get('/api/events', (context) => {
    if (open >= maxEventStreams) {
      throw new LegateError('E_IN_USE', `${maxEventStreams} event streams are open already`, {
        hint: 'end one of them',
      });
    }
    open += 1;
    return streamSSE(context, async (stream) => {
      let wake: (() => void) | undefined;
      const end = backend.changes.subscribe(() => wake?.());
      let version = 0;
      let aborted = false;
      stream.onAbort(() => {
        aborted = true;
        wake?.();
      });
      try {
        while (!aborted) {
          await stream.writeSSE({ event: 'change', data: String(version++) });
          await new Promise<void>((resolve) => {
            const timer = setTimeout(resolve, eventKeepAliveMs).unref();
            wake = () => {
              clearTimeout(timer);
              resolve();
            };
          });
        }
      } finally {
        end();
        open -= 1;
      }
    });
  });
}

async function jsonObject<T extends object>(context: Context): Promise<T> {
  let body: unknown;
  try {
    body = await context.req.json();
  } catch (error) {
    throw new LegateError('E_INVALID', `the request's body is not JSON (${describeError(error)})`);
  }
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw new LegateError('E_INVALID', "the request's body is not a JSON object");
  }
  return body as T;
}

function tooLarge(bytes: number): LegateError {
  return new LegateError('E_TOO_LARGE', `the request's body is larger than ${bytes} bytes`);
}

/** Every error leaves in the one shape that the contract has; what is not ours says nothing of the inside. */
export function answerError(context: Context, error: unknown): Response {
  const known = isLegateError(error) ? error : undefined;
  const document: ErrorDocument = {
    error: {
      code: known?.code ?? 'E_INTERNAL',
      message: known?.message ?? 'the sidecar failed at this; its log says why',
      hint: known?.hint ?? '',
    },
  };
  const status = known === undefined ? 500 : (statusOf[known.code] ?? 500);
  if (status === 401) context.header('WWW-Authenticate', 'Bearer');
  return context.json(document, status);
}
