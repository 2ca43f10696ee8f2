import { type Context, Hono } from 'hono';
import { stream } from 'hono/streaming';
import type { AdminBackend } from './backend.ts';
import type { StoreCopyRequest } from './documents.ts';

/**
 * The mesh's store as a whole: `copy` moves the mesh to another one (begun by POST, looked at by GET, called off by
 * DELETE), `backup` gives all that lasts of it, `restore` takes that again.
 */
export function storeRoutes(backend: AdminBackend, readBody: <T extends object>(context: Context) => Promise<T>): Hono {
  const app = new Hono();
  app.post('/copy', async (context) => {
    const { dryRun, ...target } = await readBody<StoreCopyRequest>(context);
    return context.json(backend.copies.start(target, dryRun === true));
  });
  app.get('/copy', (context) => context.json(backend.copies.document));
  app.delete('/copy', (context) => context.json(backend.copies.cancel()));
  app.get('/backup', async (context) => {
    const parts = await backend.backup();
    context.header('Content-Type', 'application/x-ndjson');
    return stream(context, async (body) => {
      for (const part of parts) await body.write(part);
    });
  });
  app.post('/restore', async (context) => {
    const file = new Uint8Array(await context.req.arrayBuffer());
    const given = context.req.query();
    return context.json(await backend.restore(file, { overwrite: 'overwrite' in given, foreign: 'foreign' in given }));
  });
  return app;
}
