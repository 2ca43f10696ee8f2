import { readFileSync } from 'node:fs';
import t from 'tap';
import { ManualClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { checkout } from '../../test/support/agent.ts';
import { parseContainer } from './container.ts';
import { InternalRoutes } from './internal-routes.ts';

t.test(
  'a container whose only network is internal and has no gateway is told of, one with a gateway is not',
  async (t) => {
    const path = `${checkout}/sidecar/docker/fixtures/internal-network.json`;
    const text = readFileSync(path, 'utf8');
    const conditions = new Conditions(silentLog, new ManualClock(), new Metrics());
    const container = (document: string): NonNullable<ReturnType<typeof parseContainer>> => {
      const parsed: unknown = JSON.parse(document);
      const found = parseContainer(Array.isArray(parsed) ? parsed[0] : parsed);
      if (found === undefined) throw new Error('the fixture is not a container');
      return found;
    };
    const old = container(text);
    const modern = container(text.replace(/"Gateway": "192[^"]*"/, '"Gateway": ""'));
    const networkId = old.attachments[0]?.networkId ?? '';
    const network = { internal: true } as never;
    const routes = new InternalRoutes(conditions, () => new Map([[networkId, network]]));
    routes.inspected(old);
    t.same(conditions.list(), [], 'this engine gives it a route');
    routes.inspected(modern);
    t.match(conditions.list(), [{ severity: 'note', message: /internal network .* cannot reach virtual addresses/ }]);
    routes.forget(modern.id);
    t.same(conditions.list(), []);
  },
);
