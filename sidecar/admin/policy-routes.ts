import { type Context, Hono } from 'hono';
import type { AdminBackend } from './backend.ts';
import type { PolicySettingsDocument } from './policy-documents.ts';

/** The policy: who may call whom, and which hosts may offer what. Changes are made on the authority's host. */
export function policyRoutes(
  { policy }: AdminBackend,
  readBody: <T extends object>(context: Context) => Promise<T>,
): Hono {
  const app = new Hono();
  app.get('/policy', (context) => context.json(policy.document()));
  app.put('/policy', async (context) =>
    context.json(await policy.set(await readBody<PolicySettingsDocument>(context))),
  );
  app.get('/learned', async (context) => context.json(await policy.learned()));
  const pair = '/intents/:consumer/:service';
  app.get(pair, (context) => context.json(policy.check(...pairOf(context))));
  app.put(pair, async (context) => {
    const { action } = await readBody<{ action?: unknown }>(context);
    return context.json(await policy.setIntent(...pairOf(context), action));
  });
  app.delete(pair, async (context) => context.json(await policy.removeIntent(...pairOf(context))));
  const grant = '/hosts/:host/grants/:service';
  const change = async (context: Context, on: boolean): Promise<Response> =>
    context.json(await policy.grant(context.req.param('host') ?? '', context.req.param('service') ?? '', on));
  app.put(grant, (context) => change(context, true));
  app.delete(grant, (context) => change(context, false));
  app.post('/hosts/:host/revoke', async (context) => context.json(await policy.revoke(context.req.param('host'))));
  return app;
}

function pairOf(context: Context): [consumer: string, service: string] {
  return [context.req.param('consumer') ?? '', context.req.param('service') ?? ''];
}
