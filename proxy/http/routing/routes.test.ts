import { Agent, request } from 'node:http';
import { connect as connectHttp2, createServer as createHttp2 } from 'node:http2';
import type { AddressInfo } from 'node:net';
import t, { type Test } from 'tap';
import { systemClock } from '../../../src/base/clock.ts';
import { Latest } from '../../../src/base/feed.ts';
import { silentLog } from '../../../src/base/log.ts';
import type { Service } from '../../../src/catalog/snapshot.ts';
import type { Policy } from '../../../src/model/policy.ts';
import type { RouteRule } from '../../../src/model/routes.ts';
import { intents, policyOf } from '../../../test/support/policies.ts';
import { waitFor } from '../../../test/support/wait.ts';
import {
  Bed,
  deadPort,
  dial,
  instanceOf,
  otherHost,
  outcome,
  serviceOf,
  startBackend,
  startBed,
} from '../../link-plane.fixture.ts';
import { Permission } from '../../permission.ts';
import { at, mesh } from '../../tunnel/mesh.fixture.ts';
import { type Answer, ask, http, Named } from './routes.fixture.ts';

const named = (t: Test, ...names: readonly string[]): Promise<Named[]> =>
  Promise.all(names.map((name) => new Named(t, name).start()));

const routes = (...rules: readonly RouteRule[]): Partial<Service> => ({ routes: rules });

/** How often each of them answered. */
async function shares(bed: Bed, count: number, headers: Record<string, string> = {}): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (let turn = 0; turn < count; turn += 1) {
    const { body } = await ask(bed, '/', { headers });
    counts[body] = (counts[body] ?? 0) + 1;
  }
  return counts;
}

t.test('requests go to another service, and what it is called is what is counted', async (t) => {
  const [own, api] = (await named(t, 'own', 'api')) as [Named, Named];
  const db = http('db', [own.as('db')], routes({ match: { path: '/api' }, service: 'api', strip: '/api', add: '/v2' }));
  const bed = await startBed(t, { services: [db, http('api', [api.as('api')])] });
  t.equal((await ask(bed)).body, 'own');
  t.equal((await ask(bed, '/apix')).body, 'own');
  t.match(await ask(bed, '/api/x?y=/api', { method: 'POST', body: 'hello' }), { status: 200, body: 'api' });
  t.match(api.got[0], { method: 'POST', url: '/v2/x?y=/api', body: 'hello', headers: { host: 'db' } });
  t.match(await ask(bed, '/x/../api'), { status: 400, body: /dot segments/ });
  t.equal(await bed.metric('legate_http_requests_total{service="api",instance="here/api",end="2xx"}'), 1);
  t.equal(await bed.metric('legate_http_requests_total{service="db",instance="here/own",end="2xx"}'), 2);
  t.equal(await bed.metric('legate_http_refused_total{reason="target"}'), 1);

  const [one, two] = (await named(t, 'one', 'two')) as [Named, Named];
  const tagged = [one.as('api', { tags: ['one'] }), two.as('api', { tags: ['two'] })];
  const looping = { split: { one: 3, two: 1 }, ...routes({ match: {}, service: 'db' }) };
  bed.set(http('db', [own.as('db')], routes({ match: {}, service: 'api' })), http('api', tagged, looping));
  t.same(await shares(bed, 8), { one: 6, two: 2 }, 'its own split holds there, and its routes do not');
  bed.set(http('db', [own.as('db')], routes({ match: {}, service: 'api', split: { two: 1 } })), http('api', tagged));
  t.same(await shares(bed, 3), { two: 3 }, 'the rule’s split comes first');
  bed.set(http('db', [own.as('db')]), http('api', tagged));
  t.same(await shares(bed, 3), { own: 3 }, 'without rules all is as it was');
});

t.test('services that are not there, or speak otherwise', async (t) => {
  const [own, api] = (await named(t, 'own', 'api')) as [Named, Named];
  const db = http('db', [own.as('db')], routes({ match: { path: '/api' }, service: 'api' }));
  const bed = await startBed(t, { services: [db] });
  t.match(await ask(bed, '/api'), { status: 503, body: /leads to api, which nobody offers/ });
  t.match(bed.conditions.list(), [{ id: 'link.route.db', message: /a route of db leads to api, which nobody offers/ }]);
  bed.set(db, http('api', [api.as('api')]));
  t.match(await ask(bed, '/api'), { status: 200, body: 'api' }, 'as soon as it is there');
  t.same(bed.conditions.list(), []);
  bed.set(db, http('api', [api.as('api')], { protocol: 'grpc' }));
  t.match(await ask(bed, '/api'), { status: 502, body: /api, which speaks grpc and not http\/1.1/ });
  t.match(bed.conditions.list(), [{ message: /which speaks grpc, and not http/ }]);
  bed.set(db, http('api', []));
  t.match(await ask(bed, '/api'), { status: 503, body: /no instance is usable/ });
  bed.set(db, http('api', [instanceOf({ name: 'dead', service: 'api', port: await deadPort(), protocol: 'http' })]));
  t.match(await ask(bed, '/api'), { status: 503, body: /ECONNREFUSED/ });
  t.equal(await bed.metric('legate_link_connect_failures_total{service="db"}'), 0);
  t.ok((await bed.metric('legate_link_connect_failures_total{service="api"}')) > 0);
  bed.set(http('db', [own.as('db')]));
  await waitFor('nobody leads there any more', () => bed.conditions.list().length === 0);
});

t.test('a route gives nobody a right', async (t) => {
  const [own, api] = (await named(t, 'own', 'api')) as [Named, Named];
  const policy = new Latest<Policy | undefined>(policyOf({ intents: intents('deny * api') }));
  const bed = new Bed({ services: [] });
  const permission = new Permission({ policy, clock: systemClock, log: silentLog, metrics: bed.metrics });
  const db = http('db', [own.as('db')], routes({ match: { path: '/api' }, service: 'api' }));
  const inner = await startBed(t, { services: [db, http('api', [api.as('api')])], permission });
  t.match(await ask(inner, '/api'), { status: 403, body: /the intent deny \* api forbids host to call api/ });
  t.match(await ask(inner, '/'), { status: 200, body: 'own' });
  t.match(inner.plane.links()[0]?.denied, { total: 1, last: { message: /forbids host to call api/ } });
  policy.set(policyOf({ intents: intents('deny * api', 'allow host api') }));
  t.match(await ask(inner, '/api'), { status: 200, body: 'api' });
  t.equal(api.got.length, 1);
  policy.set(policyOf({ default: 'deny', intents: intents('allow host db') }));
  t.match(await ask(inner, '/api'), { status: 403, body: /no intent names host and api/ });
});

t.test('what a new policy forbids is cut, also where a route led', async (t) => {
  const [own] = (await named(t, 'own')) as [Named];
  const policy = new Latest<Policy | undefined>(policyOf());
  const silent = await startBackend(t, (socket) => socket.resume());
  const permission = new Permission({
    policy,
    clock: systemClock,
    log: silentLog,
    metrics: new Bed({ services: [] }).metrics,
  });
  const slow = instanceOf({ name: 'slow', service: 'slow', port: silent.port, protocol: 'http' });
  const db = http('db', [own.as('db')], routes({ match: { path: '/api' }, service: 'slow' }));
  const bed = await startBed(t, { services: [db, http('slow', [slow])], permission });
  const socket = dial(t, bed.port);
  const answer = outcome(socket);
  socket.write('POST /api HTTP/1.1\r\nHost: db\r\nContent-Length: 5\r\n\r\n');
  await waitFor('it is carried', () => bed.plane.activeConnections({ instance: 'here/slow' }) === 1);
  policy.set(policyOf({ intents: intents('deny * slow') }));
  t.not((await answer).how, 'end');
  t.equal(bed.plane.links()[0]?.denied.total, 1);
});

t.test('headers, redirects and keep-alive', async (t) => {
  const [own] = (await named(t, 'own')) as [Named];
  const edits: RouteRule = {
    match: { path: '/edit' },
    set: { 'x-env': 'test', 'x-forwarded-for': '10.0.0.1', via: 'me', 'user-agent': 'other' },
    remove: ['cookie', 'x-request-id'],
    response: { set: { 'cache-control': 'no-store' }, remove: ['x-from'] },
  };
  const db = http(
    'db',
    [own.as('db')],
    routes(
      edits,
      { match: { path: '/old' }, redirect: { to: '/new/*', status: 308 } },
      { match: { host: 'old.example.com' }, redirect: { to: 'https://example.com/*', status: 301 } },
    ),
  );
  const bed = await startBed(t, { services: [db] });
  const headers = {
    Cookie: 'a=b',
    'X-Request-Id': '7',
    'User-Agent': 'curl',
    'X-Env': 'prod',
    'X-Forwarded-For': '1.2.3.4',
  };
  const edited = await ask(bed, '/edit', { headers });
  t.match(edited, { status: 200, headers: { 'cache-control': 'no-store', 'content-length': '3' } });
  t.notOk(edited.headers['x-from']);
  const got = own.got[0]?.headers;
  t.match(got, { 'x-env': 'test', 'x-forwarded-for': '10.0.0.1', via: 'me', 'user-agent': 'other' });
  t.same([got?.cookie, got?.['x-request-id']], [undefined, undefined]);
  t.match(got, { 'x-forwarded-proto': 'http', traceparent: /^00-/ }, 'what the route does not name is as ever');
  const socket = dial(t, bed.port);
  const answer = outcome(socket);
  const get = (path: string, more = ''): string => `GET ${path} HTTP/1.1\r\nHost: db\r\n${more}\r\n`;
  const put = 'PUT /old HTTP/1.1\r\nHost: db\r\nContent-Length: 3\r\n\r\nabc';
  const absolute = 'GET http://old.example.com HTTP/1.1\r\nHost: old.example.com\r\nConnection: close\r\n\r\n';
  socket.write(`${get('/old//evil.com?q')}${put}${get('/x')}${absolute}`);
  const text = (await answer).data.toString().replaceAll(/(?:Date|Connection|Keep-Alive): .*\r\n/g, '');
  const to = (status: string, location: string): string =>
    `HTTP/1.1 ${status}\r\nLocation: ${location}\r\nContent-Length: 0\r\n\r\n`;
  t.equal(
    text,
    `${to('308 Permanent Redirect', '/new/evil.com?q')}${to('308 Permanent Redirect', '/new/')}HTTP/1.1 200 OK\r\nX-From: own\r\nContent-Length: 3\r\n\r\nown${to('301 Moved Permanently', 'https://example.com/')}`,
    'all over one connection',
  );
});

t.test('splits, their cookies and what they count', async (t) => {
  const [blue, green] = (await named(t, 'blue', 'green')) as [Named, Named];
  const instances = [blue.as('db', { tags: ['blue'] }), green.as('db', { tags: ['green'] })];
  const of = (fields: Partial<Service>): Service => http('db', instances, fields);
  const bed = await startBed(t, { services: [of({ split: { blue: 90, green: 10 } })], random: () => 0.5 });
  t.same(await shares(bed, 10), { blue: 9, green: 1 }, 'exact for ten');
  t.equal(await bed.metric('legate_http_split_requests_total{service="db",tag="green",end="2xx"}'), 1);
  bed.set(of({ split: { blue: 100, green: 0 } }));
  t.same(await shares(bed, 5), { blue: 5 });
  bed.set(of({ split: { none: 100 } }));
  t.equal(Object.keys(await shares(bed, 4)).length, 2, 'nobody is refused for want of a tag');

  bed.set(of({ split: { blue: 50, green: 50 }, sticky: 'cookie:side' }));
  const first = await ask(bed);
  const [cookie = ''] = first.headers['set-cookie'] ?? [];
  t.equal(cookie, `side=${first.body}; Path=/; HttpOnly; SameSite=Lax`);
  const headers = { Cookie: `x=y; side=${first.body}` };
  t.same(await shares(bed, 6, headers), { [first.body]: 6 });
  t.notOk((await ask(bed, '/', { headers })).headers['set-cookie'], 'it is said once');
  const weights = first.body === 'blue' ? { blue: 1, green: 99 } : { blue: 99, green: 1 };
  bed.set(of({ split: weights, sticky: 'cookie:side' }));
  t.same(await shares(bed, 6, headers), { [first.body]: 6 }, 'weights change nothing for those who have one');
  const other = first.body === 'blue' ? 'green' : 'blue';
  bed.set(of({ split: { [first.body]: 0, [other]: 1 }, sticky: 'cookie:side' }));
  const moved = await ask(bed, '/', { headers });
  t.equal(moved.body, other, 'but for weight 0');
  t.match(moved.headers['set-cookie'], [`side=${other}; Path=/; HttpOnly; SameSite=Lax`]);
  bed.set(of({ split: { blue: 50, green: 50 }, sticky: 'header:x-user' }));
  for (const user of ['ada', 'bob', 'eve'])
    t.equal(Object.keys(await shares(bed, 4, { 'X-User': user })).length, 1, `${user} stays`);

  const dead = instanceOf({ name: 'dead', port: await deadPort(), protocol: 'http', tags: ['green'] });
  const before = await bed.metric('legate_http_split_requests_total{service="db",tag="blue",end="2xx"}');
  bed.set(http('db', [blue.as('db', { tags: ['blue'] }), dead], { split: { blue: 0.1, green: 99 } }));
  t.same(await shares(bed, 4), { blue: 4 }, 'a side that fails has its requests answered by the other');
  t.equal(await bed.metric('legate_http_split_requests_total{service="db",tag="blue",end="2xx"}'), before + 4);
});

t.test('a split that moves in ten steps under load loses nobody', async (t) => {
  const [blue, green, api] = (await named(t, 'blue', 'green', 'api')) as [Named, Named, Named];
  const instances = [blue.as('db', { tags: ['blue'] }), green.as('db', { tags: ['green'] })];
  const others = http('api', [api.as('api')]);
  const bed = await startBed(t, { services: [http('db', instances), others] });
  const agent = new Agent({ keepAlive: true, maxSockets: 8 });
  t.teardown(() => agent.destroy());
  const one = (path: string): Promise<string> =>
    new Promise((resolve) => {
      const up = request({ port: bed.port, path, agent, headers: { Host: 'db' } }, (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => {
          text += chunk.toString();
        });
        response.on('end', () => resolve(response.statusCode === 200 ? text : `${response.statusCode} ${text}`));
        response.on('error', (error) => resolve(error.message));
      });
      up.on('error', (error) => resolve(error.message));
      up.end();
    });
  for (let step = 0; step <= 10; step += 1) {
    const rules = routes({ match: { path: step % 2 === 0 ? '/api' : '/other' }, service: 'api' });
    const split = { blue: 100 - 10 * step, green: 10 * step };
    bed.set(http('db', instances, step === 5 ? { split } : { split, ...rules }), others);
    const counts: Record<string, number> = {};
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let turn = 0; turn < 25; turn += 1) {
          const got = await one('/');
          counts[got] = (counts[got] ?? 0) + 1;
        }
      }),
    );
    const wanted = 20 * step;
    const rest = Object.entries(counts).filter(([name]) => name !== 'blue' && name !== 'green');
    t.same(rest, [], `step ${step}: none fails`);
    t.ok(Math.abs((counts.green ?? 0) - wanted) <= 1, `step ${step}: ${counts.green ?? 0} of 200, wanted ${wanted}`);
  }
});

t.test('mirrors', async (t) => {
  const [own, copy, canary] = (await named(t, 'own', 'copy', 'canary')) as [Named, Named, Named];
  const instances = [own.as('db'), canary.as('db', { tags: ['canary'], weight: 0 })];
  const bed = await startBed(t, {
    services: [
      http('db', instances, routes({ match: {}, mirror: { service: 'copy' } })),
      http('copy', [copy.as('copy')]),
    ],
  });
  const mirrored = (service: string, end: string): Promise<number> =>
    bed.metric(`legate_http_mirrored_requests_total{service="${service}",end="${end}"}`);
  t.match(await ask(bed, '/a?b', { method: 'POST', body: 'hello', headers: { 'X-A': '1' } }), { body: 'own' });
  await waitFor('the copy', () => copy.got.length === 1);
  t.match(copy.got[0], {
    method: 'POST',
    url: '/a?b',
    body: 'hello',
    headers: { 'x-legate-mirror': '1', 'x-a': '1', host: 'db' },
  });
  t.notOk(own.got[0]?.headers['x-legate-mirror']);
  const chunked = { 'Transfer-Encoding': 'chunked' };
  t.match(await ask(bed, '/', { method: 'PUT', body: 'x'.repeat(60_000), headers: chunked }), { body: 'own' });
  await waitFor('the long copy', () => copy.got[1]?.body.length === 60_000);
  t.match(await ask(bed, '/', { method: 'PUT', body: 'x'.repeat(70_000), headers: chunked }), { body: 'own' });
  t.match(await ask(bed, '/', { method: 'PUT', body: 'x'.repeat(70_000) }), { body: 'own' });
  await waitFor('two are too large', async () => (await mirrored('copy', 'too large')) === 2);
  t.equal(await mirrored('copy', '2xx'), 2);
  t.ok(Number.isNaN(await bed.metric('legate_http_requests_total{service="copy"')), 'no figure of the service');

  const set = (rule: RouteRule, ...more: readonly Service[]): void =>
    bed.set(http('db', instances, routes(rule)), ...more);
  set({ match: {}, mirror: { tag: 'canary', percent: 25 } });
  for (let turn = 0; turn < 8; turn += 1) t.equal((await ask(bed)).body, 'own');
  await waitFor('a quarter of them', () => canary.got.length === 2);

  const dead = instanceOf({ name: 'dead', service: 'copy', port: await deadPort(), protocol: 'http' });
  set({ match: {}, mirror: { service: 'copy' } }, http('copy', [dead]));
  for (let turn = 0; turn < 5; turn += 1) t.equal((await ask(bed)).body, 'own');
  await waitFor('all copies have failed', async () => (await mirrored('copy', 'failed')) === 5);
  t.equal(await bed.metric('legate_link_connect_failures_total{service="copy"}'), 0, 'and nobody holds it against it');

  // It takes connections and never answers.
  const heads: string[] = [];
  const hole = await startBackend(t, (socket) => socket.on('data', (chunk) => heads.push(chunk.toString())));
  const mute = instanceOf({ name: 'mute', service: 'copy', port: hole.port, protocol: 'http' });
  set({ match: {}, mirror: { service: 'copy' } }, http('copy', [mute]));
  const answers: Answer[] = [];
  for (let turn = 0; turn < 300; turn += 20)
    answers.push(...(await Promise.all(Array.from({ length: 20 }, () => ask(bed)))));
  t.ok(answers.every(({ body }) => body === 'own'));
  await waitFor('as many as there is room for', () => heads.length === 256);
  t.equal(await mirrored('copy', 'busy'), 44);
});

t.test('over HTTP/2', async (t) => {
  const got: Record<string, unknown>[] = [];
  const instance = async (name: string): Promise<number> => {
    const server = createHttp2((incoming, response) => {
      got.push({ name, ...incoming.headers });
      response.setHeader('x-from', name);
      response.end(name);
    });
    server.on('session', (session) => {
      session.on('error', () => undefined);
      t.teardown(() => session.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    t.teardown(() => server.close());
    return (server.address() as AddressInfo).port;
  };
  const of = async (name: string, tag: string, service = 'db') =>
    instanceOf({ name, service, port: await instance(name), protocol: 'http2', tags: [tag] });
  const instances = [await of('blue', 'blue'), await of('green', 'green')];
  const api = serviceOf([await of('api', '', 'api')], { name: 'api', protocol: 'grpc' });
  const rule: RouteRule = {
    match: { path: '/api', method: ['GET'] },
    service: 'api',
    strip: '/api',
    set: { 'x-env': 'test' },
    remove: ['x-secret'],
    response: { set: { 'x-by': 'legate' }, remove: ['x-from'] },
  };
  const db: Partial<Service> = {
    protocol: 'http2',
    split: { blue: 3, green: 1 },
    sticky: 'cookie',
    routes: [
      rule,
      { match: { path: '/old' }, redirect: { to: '/new*', status: 307 } },
      { match: { path: '/gone' }, service: 'gone' },
    ],
  };
  const policy = new Latest<Policy | undefined>(policyOf());
  const permission = new Permission({
    policy,
    clock: systemClock,
    log: silentLog,
    metrics: new Bed({ services: [] }).metrics,
  });
  const bed = await startBed(t, { services: [serviceOf(instances, db), api], random: () => 0.5, permission });
  const session = connectHttp2(`http://127.0.0.1:${bed.port}`);
  session.on('error', () => undefined);
  t.teardown(() => session.destroy());
  const ask = (path: string, headers: Record<string, string> = {}): Promise<Record<string, unknown>> =>
    new Promise((resolve, reject) => {
      const stream = session.request({ ':path': path, ...headers });
      let said = {};
      let body = '';
      stream.on('response', (given) => {
        said = { ...given };
      });
      stream.on('data', (chunk: Buffer) => {
        body += chunk.toString();
      });
      stream.on('error', reject);
      stream.on('close', () => resolve({ ...said, body }));
    });
  t.match(await ask('/api/x?y', { 'x-secret': '1', 'x-env': 'prod' }), {
    ':status': 200,
    body: 'api',
    'x-by': 'legate',
  });
  t.match(got[0], { name: 'api', ':path': '/x?y', 'x-env': 'test' });
  t.same([got[0]?.['x-secret'], (await ask('/api'))['x-from']], [undefined, undefined]);
  t.match(await ask('/old/x?y'), { ':status': 307, location: '/new/x?y', 'content-length': '0', body: '' });
  t.match(await ask('/gone'), { ':status': 503, body: /gone, which nobody offers/ });
  t.match(await ask('/x/..'), { ':status': 400 });
  t.match(bed.conditions.list()[0]?.message, /leads to gone, which nobody offers/);
  const counts: Record<string, number> = {};
  let cookie = '';
  for (let turn = 0; turn < 8; turn += 1) {
    const answer = await ask('/');
    counts[String(answer.body)] = (counts[String(answer.body)] ?? 0) + 1;
    if (answer.body === 'green') cookie = String(answer['set-cookie']);
  }
  t.same(counts, { blue: 6, green: 2 });
  t.equal(cookie, 'legate-side=green; Path=/; HttpOnly; SameSite=Lax');
  for (let turn = 0; turn < 4; turn += 1) {
    const answer = await ask('/', { cookie: 'legate-side=green' });
    t.equal(answer.body, 'green');
    t.notOk(answer['set-cookie']);
  }
  t.equal(await bed.metric('legate_http_split_requests_total{service="db",tag="green",end="2xx"}'), 6);
  t.equal(await bed.metric('legate_http_requests_total{service="api",instance="here/api",end="2xx"}'), 2);
  policy.set(policyOf({ intents: intents('deny * api') }));
  t.match(await ask('/api'), { ':status': 403, body: /forbids host to call api/ });
});

t.test('another service on another host is reached over its tunnel, as whoever asks', async (t) => {
  const [own, far] = (await named(t, 'own', 'far')) as [Named, Named];
  const db = http('db', [own.as('db')], routes({ match: { path: '/api' }, service: 'api' }));
  const api = http('api', [at(otherHost, 'far', far.port, { protocol: 'http', service: 'api' })]);
  const m = await mesh(t, [db, api]);
  t.match(await ask(m.bed, '/api'), { status: 200, body: 'far' });
  t.match(m.tunnels.heads, [{ consumer: 'host', service: 'api', instance: 'far', declared: false }]);
  t.same([...m.tunnels.wanted], [otherHost], 'its tunnel is kept');
  m.set(http('db', [own.as('db')]), api);
  await waitFor('until no rule names it', () => m.tunnels.wanted.size === 0);
});
