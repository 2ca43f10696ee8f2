import { type Context, Hono } from 'hono';
import type { AdminBackend } from './backend.ts';
import type { TokenRequest } from './documents.ts';

/** What only the authority's host does: it gives tokens out (`/tokens`), and tells of and replaces its root (`/ca`). */
export function authorityRoutes(
  backend: AdminBackend,
  readBody: <T extends object>(context: Context) => Promise<T>,
): Hono {
  const app = new Hono();
  app.post('/tokens', async (context) =>
    context.json(await backend.authority.giveToken(await readBody<TokenRequest>(context))),
  );
  app.get('/ca', (context) => context.json(backend.authority.document()));
  app.post('/ca/rotate', async (context) =>
    context.json(await backend.authority.rotate(await readBody<{ finish?: boolean }>(context))),
  );
  return app;
}
