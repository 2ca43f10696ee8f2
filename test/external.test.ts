import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { InstancesDocument } from '../sidecar/admin/documents.ts';
import type { PolicyDocument } from '../sidecar/admin/policy-documents.ts';
import { Agent } from './support/agent.ts';
import { ask, freePort, sayingServer } from './support/faults.ts';
import { waitFor } from './support/wait.ts';

t.test('a target outside of the mesh is reached through a link, is signed, and is in no store', async (t) => {
  const { port } = await sayingServer(t, 'mail');
  const link = await freePort();
  const config = {
    store: { kind: 'embedded', listen: `127.0.0.1:${await freePort()}` },
    tunnel: { listen: `127.0.0.1:${await freePort()}` },
    services: { mail: { port: 25, external: [`127.0.0.1:${port}`] } },
    links: [{ service: 'mail', listen: `127.0.0.1:${link}` }],
  };
  const agent = new Agent(t, config);
  const made = await agent.cli('init', '-c', agent.configFile);
  t.equal(made.status, 0, made.stderr);
  await agent.start();
  const said = (): Promise<string> => ask(link).catch(() => 'refused');
  await waitFor('the target', async () => (await said()) === 'mail');
  const { instances } = await agent.json<InstancesDocument>('/api/instances?service=mail');
  const name = `mail-127.0.0.1-${port}`;
  t.match(instances, [{ name, port, status: 'passing', reach: 'host', source: `external:127.0.0.1:${port}` }]);
  const shown = await agent.cli('instances', 'mail');
  t.match(shown.stdout, /external/);
  const { external } = await agent.json<PolicyDocument>('/api/policy');
  t.same(external, [{ service: 'mail', targets: [`127.0.0.1:${port}`] }], 'for all hosts');
  const backup = join(agent.folder, 'backup');
  const kept = await agent.cli('store', 'backup', backup);
  t.equal(kept.status, 0, kept.stderr);
  const text = readFileSync(backup, 'utf8');
  t.match(text, /services/);
  t.notMatch(text, name);

  // The policy has it still when the file does not say it any more.
  await agent.kill();
  agent.configure({ ...config, services: {} });
  await agent.start();
  await waitFor('the target', async () => (await said()) === 'mail');
});
