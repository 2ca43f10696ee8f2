import { createServer, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import type { ServiceDocument, SplitDocument } from '../sidecar/admin/documents.ts';
import type { Agent } from './support/agent.ts';
import { freePort, statusOf } from './support/faults.ts';
import { firstHost, joinTo, meshHost, tokenOf } from './support/mesh-host.ts';
import { isWorker, workersOf } from './support/planes.ts';
import { waitFor } from './support/wait.ts';

/** Splits with real sidecars: the guard of a host that may change no settings takes a failing canary back for the mesh. */

const slow = { timeoutMs: 30_000, everyMs: 100 };

/** An application that answers with its name, and with 500 while it fails. */
async function application(t: Test, name: string) {
  const state = { port: 0, fails: false, requests: 0 };
  const server = createServer((_, response) => {
    state.requests += 1;
    response.writeHead(state.fails ? 500 : 200).end(name);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  state.port = (server.address() as AddressInfo).port;
  return state;
}

/** Who answers `count` requests, one after the other, and how. */
async function get(port: number, count: number): Promise<Record<string, number>> {
  const answers: Record<string, number> = {};
  for (let sent = 0; sent < count; sent += 1) {
    const answer = await new Promise<string>((resolve) => {
      const asked = request({ host: '127.0.0.1', port, agent: false }, (response) => {
        let text = `${response.statusCode} `;
        response.setEncoding('utf8').on('data', (part: string) => {
          text += part;
        });
        response.on('end', () => resolve(text));
      });
      asked.on('error', (error) => resolve(error.message)).end();
    });
    answers[answer] = (answers[answer] ?? 0) + 1;
  }
  return answers;
}

const splitOf = (agent: Agent): Promise<SplitDocument> => agent.json<SplitDocument>('/api/splits/web');

const trips = async (agent: Agent): Promise<string[]> =>
  (await statusOf(agent)).todo.filter(({ id }) => id.startsWith('split.')).map(({ message }) => message);

t.test('a failing canary is taken back by the host that sees it', { timeout: 110_000 }, async (t) => {
  const [stable, canary] = [await application(t, 'stable'), await application(t, 'canary')];
  const port = await freePort();
  const here = await firstHost(t, { services: { web: { port: 80, protocol: 'http' } } });
  await here.agent.start();
  const instance = (tag: string, at: number) => ({
    ...{ service: 'web', name: tag, address: '127.0.0.1', port: at, protocol: 'http', tags: [tag] },
  });
  const there = await meshHost(t, 'web-2', {
    workers: 1,
    instances: [instance('stable', stable.port), instance('canary', canary.port)],
    links: [{ service: 'web', listen: `127.0.0.1:${port}` }],
    log: { access: 'on', sample: 1000 },
  });
  t.teardown(() => {
    for (const pid of workersOf(there.agent)) if (isWorker(pid)) process.kill(pid, 'SIGKILL');
  });
  const joined = await joinTo(here, there, tokenOf(here.init));
  t.equal(joined.status, 0, joined.stderr);
  await there.agent.start();
  await waitFor(
    'the instances',
    async () => (await there.agent.json<ServiceDocument>('/api/services/web')).usable === 2,
    slow,
  );

  const refused = await there.agent.cli('split', 'web', 'stable=1');
  t.equal(refused.status, 1, 'a member may set no split');
  t.match(refused.stderr, /settings are changed on/);
  const set = await here.agent.cli('split', 'web', 'stable=100', 'canary=0', '--guard', '3');
  t.equal(set.status, 0, set.stderr);
  await waitFor('the split there', async () => (await splitOf(there.agent)).guard === 3, slow);
  t.same(await get(port, 50), { '200 stable': 50 });

  const live = await here.agent.cli('split', 'web', 'stable=60', 'canary=40');
  t.match(live.stdout, / ok web is split: stable 60 %, canary 40 %; before: stable 100 %, canary 0 %\n/);
  await waitFor('requests to both', async () => Object.keys(await get(port, 20)).length === 2, slow);
  const shown = await waitFor(
    'figures',
    async () => {
      await get(port, 20);
      const found = await splitOf(there.agent);
      return found.sides.every(({ rates }) => rates.requests > 0) && found;
    },
    slow,
  );
  t.match(shown, {
    host: 'web-2',
    takenBack: null,
    sides: [{ tag: 'canary', usable: 1, errors: 0, errorRate: 0 }, {}],
  });
  t.ok(shown.sides.every(({ latencyMs }) => latencyMs !== null && latencyMs >= 0));

  canary.fails = true;
  const tripped = await waitFor(
    'the guard',
    async () => {
      await get(port, 20);
      return (await splitOf(here.agent)).takenBack;
    },
    slow,
  );
  t.match(tripped, { tag: 'canary', weight: 40, host: 'web-2', against: 'stable', againstErrors: 0 });
  t.ok(tripped.errors >= 5 && tripped.errors <= tripped.requests);
  const until = canary.requests;
  t.same(await get(port, 50), { '200 stable': 50 });
  t.equal(canary.requests, until, 'nothing goes there any more');
  for (const { agent } of [here, there]) {
    await waitFor('the mesh', async () => (await splitOf(agent)).split?.canary === 0, slow);
    t.match(await trips(agent), [/^web: canary was taken back to 0 by the guard of web-2: \d+ of \d+ requests failed/]);
  }
  const told = await here.agent.cli('split', 'web');
  t.match(told.stdout, / x canary was taken back to 0 by the guard of web-2 .*legate split web canary=40 stable=60/s);
  t.equal((await here.agent.cli('split', 'web', '--back')).status, 1, 'the way back leads to what failed');
  t.match((await here.agent.cli('services')).stdout, /; canary taken back\n/);

  canary.fails = false;
  t.equal((await here.agent.cli('split', 'web', 'canary=40', 'stable=60')).status, 0);
  await waitFor('another try', async () => (await get(port, 20))['200 canary'], slow);
  for (const { agent } of [here, there]) await waitFor('no word of it', async () => (await trips(agent)).length === 0);
  const back = await here.agent.cli('split', 'web', '--back');
  t.match(back.stdout, /; before: stable 60 %, canary 40 %\n/);
  await waitFor('the way back', async () => (await get(port, 20))['200 canary'] === undefined, slow);

  t.equal((await here.agent.cli('split', 'web', 'nobody=1')).status, 0);
  await waitFor('requests to all', async () => Object.keys(await get(port, 20)).length === 2, slow);
  for (const { agent } of [here, there]) {
    await waitFor('that said', async () => (await trips(agent)).length > 0, slow);
    t.match(await trips(agent), [/^web: no tag of its split has a usable instance \(nobody\): requests go to all/]);
  }
  t.equal((await here.agent.cli('split', 'web', '--off')).status, 0);
  for (const { agent } of [here, there]) await waitFor('no word of it', async () => (await trips(agent)).length === 0);

  const lines = there.agent.log.filter((line) => line.includes('"http.status":500')).map((line) => JSON.parse(line));
  t.ok(lines.length > 0, 'what failed is logged, whatever the sample');
  t.ok(lines.every(({ sampled }) => sampled === undefined));
});
