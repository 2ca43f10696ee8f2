import { once } from 'node:events';
import { Agent, createServer, request } from 'node:http';
import { connect as connectHttp2, createServer as createServer2 } from 'node:http2';
import { type AddressInfo, connect } from 'node:net';
import t, { type Test } from 'tap';
import { type HashOn, hashOnFault, parseHashOn } from '../../src/model/hash-on.ts';
import { waitFor } from '../../test/support/wait.ts';
import { hashOfText } from '../balance/hashing.ts';
import { type Bed, instanceOf, naming, outcome, serviceOf, startBackend, startBed } from '../link-plane.fixture.ts';
import { HashKey } from './hash-key.ts';
import { Head } from './head.ts';

const names = ['a', 'b', 'c', 'd'] as const;
const peer = { address: '10.0.0.7', port: 1234 };

t.test('what is hashed, as text', async (t) => {
  const good: readonly (readonly [string, HashOn])[] = [
    ['source', { kind: 'source' }],
    ['header:X-User', { kind: 'header', name: 'x-user' }],
    ['cookie:Session', { kind: 'cookie', name: 'Session' }],
  ];
  for (const [text, parsed] of good) t.strictSame(parseHashOn(text), parsed, text);
  const bad: readonly (readonly [string, RegExp])[] = [
    ['', /must be "source", "header:NAME" or "cookie:NAME"/],
    ['Source', /must be/],
    ['query:a', /must be/],
    ['header:', /must name a header, as in "header:x-user-id"/],
    ['cookie:', /must name a cookie, as in "cookie:session"/],
    ['header:a b', /letters, digits/],
    ['cookie:a=b', /letters, digits/],
    ['header:a\n', /letters, digits/],
    [`cookie:${'x'.repeat(65)}`, /at most 64/],
  ];
  for (const [text, fault] of bad) {
    t.match(hashOnFault(text), fault, JSON.stringify(text));
    t.equal(parseHashOn(text), undefined);
  }
});

t.test('equal values give equal keys in HTTP/1 and HTTP/2', async (t) => {
  const table: readonly (readonly [
    on: string,
    fields: readonly string[],
    headers: object,
    value: string | undefined,
  ])[] = [
    ['header:x-user', ['X-User: ann'], { 'x-user': 'ann' }, 'ann'],
    ['header:x-user', ['x-uses: bob', 'X-USER:  ann  '], { 'x-uses': 'bob', 'x-user': 'ann' }, 'ann'],
    ['header:x-user', ['X-User: ann', 'x-user: bob'], { 'x-user': 'ann, bob' }, 'ann, bob'],
    ['header:x-user', ['X-User: \xe9\xff'], { 'x-user': '\xe9\xff' }, '\xe9\xff'],
    ['header:x-user', ['X-User:'], { 'x-user': '' }, undefined],
    ['header:x-user', [], {}, undefined],
    ['header:host', [], { ':authority': 'db' }, 'db'],
    ['header:host', [], { host: 'db' }, 'db'],
    ['cookie:id', ['Cookie: a=1; id=7; b=2'], { cookie: 'a=1; id=7; b=2' }, '7'],
    ['cookie:id', ['Cookie: a=1', 'Cookie: id=7'], { cookie: 'a=1; id=7' }, '7'],
    ['cookie:id', ['Cookie: ID=1;  id=7 ;id=8'], { cookie: 'ID=1;  id=7 ;id=8' }, '7'],
    ['cookie:id', ['Cookie: xid=1; idx=2; a=id=3; id'], { cookie: 'xid=1; idx=2; a=id=3; id' }, undefined],
    ['cookie:id', ['Cookie: id=; id=a=b'], { cookie: 'id=; id=a=b' }, 'a=b'],
    ['cookie:id', ['Cookie: ;;; ='], { cookie: ';;; =' }, undefined],
    ['cookie:id', ['X-Cookie: id=7'], {}, undefined],
    ['source', ['X-User: ann'], { 'x-user': 'ann' }, peer.address],
  ];
  const head = new Head();
  for (const [on, fields, headers, value] of table) {
    const key = new HashKey(parseHashOn(on) ?? { kind: 'source' });
    const lines = ['GET / HTTP/1.1', 'Host: db', ...fields, '', ''];
    head.readRequest(Buffer.from(lines.join('\r\n'), 'latin1'), 0);
    const expected = value === undefined ? undefined : hashOfText(value);
    t.equal(key.ofHead(head, peer), expected, `${on} of ${JSON.stringify(fields)}`);
    t.equal(key.ofHeaders({ ...headers }, peer), expected, `${on} of ${JSON.stringify(headers)}`);
  }
  const source = new HashKey({ kind: 'source' });
  t.equal(source.ofHeaders({}, undefined), undefined);
  const long = new HashKey({ kind: 'header', name: 'x' });
  t.type(long.ofHeaders({ x: 'y'.repeat(100_000) }, peer), 'number', 'what is too long is cut');
});

/** A service of HTTP whose four instances say who they are, in both versions. */
async function web(t: Test, protocol: 'http' | 'http2', hashOn?: string): Promise<Bed> {
  const ports = await Promise.all(
    names.map(async (name) => {
      const server = protocol === 'http' ? createServer() : createServer2();
      server.on('request', (_request, response: { end(text: string): void }) => response.end(name));
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      t.teardown(() => server.close());
      return (server.address() as AddressInfo).port;
    }),
  );
  const instances = ports.map((port, index) => instanceOf({ name: names[index] ?? '', port, protocol }));
  const setting = hashOn === undefined ? {} : { hashOn };
  return startBed(t, { services: [serviceOf(instances, { protocol, balance: 'hash', ...setting })] });
}

/** Nothing runs: what the bound on loads would look at. */
function quiet(bed: Bed): Promise<unknown> {
  return waitFor('nothing runs', () =>
    bed.plane.links().every(({ backends }) => backends.every(({ active }) => active === 0)),
  );
}

async function get(bed: Bed, agent: Agent, headers: Record<string, string>): Promise<string> {
  await quiet(bed);
  const asked = request({ port: bed.port, host: '127.0.0.1', agent, headers });
  asked.end();
  const [response] = await once(asked, 'response');
  let text = '';
  for await (const chunk of response) text += String(chunk);
  return text;
}

async function gets(t: Test, bed: Bed, all: readonly Record<string, string>[]): Promise<string> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.teardown(() => agent.destroy());
  let text = '';
  for (const headers of all) text += await get(bed, agent, headers);
  return text;
}

async function gets2(t: Test, bed: Bed, all: readonly Record<string, string>[]): Promise<string> {
  const session = connectHttp2(`http://127.0.0.1:${bed.port}`);
  t.teardown(() => session.destroy());
  let text = '';
  for (const headers of all) {
    await quiet(bed);
    for await (const chunk of session.request({ ':path': '/', ...headers })) text += String(chunk);
  }
  return text;
}

t.test('requests go by header or cookie, alike in both versions', async (t) => {
  const users = Array.from({ length: 13 }, (_, index) => `user-${index}`);
  const table: readonly (readonly [hashOn: string, headerOf: (user: string) => Record<string, string>])[] = [
    ['header:X-User', (user) => ({ 'x-user': user })],
    ['cookie:session', (user) => ({ cookie: `lang=en; session=${user}` })],
  ];
  for (const [hashOn, headerOf] of table) {
    const one = await web(t, 'http', hashOn);
    const first = await gets(t, one, users.map(headerOf));
    t.ok(new Set(first).size >= 3, `they are spread: ${first}`);
    t.equal(await gets(t, one, users.map(headerOf)), first, 'each again to the same');
    const two = await web(t, 'http2', hashOn);
    t.equal(await gets2(t, two, users.map(headerOf)), first, 'and in HTTP/2');
    const none = await gets(
      t,
      one,
      Array.from({ length: 8 }, () => ({})),
    );
    t.equal(new Set(none).size, 4, `those without take turns: ${none}`);
  }
});

t.test('requests go by source where nothing else is chosen, and a change counts at once', async (t) => {
  const bed = await web(t, 'http');
  const all = Array.from({ length: 8 }, (_, index) => ({ 'x-user': `user-${index}` }));
  t.equal(new Set(await gets(t, bed, all)).size, 1);
  const { instances } = bed.snapshots.value.services.get('db') ?? { instances: [] };
  bed.set(serviceOf(instances, { protocol: 'http', balance: 'hash', hashOn: 'header:x-user' }));
  t.ok(new Set(await gets(t, bed, all)).size > 1);
  bed.set(serviceOf(instances, { protocol: 'http', balance: 'hash', hashOn: 'moon' }));
  t.equal(new Set(await gets(t, bed, all)).size, 1, 'a setting of a newer version is the default');
  bed.set(serviceOf(instances, { protocol: 'http', balance: 'round-robin', hashOn: 'header:x-user' }));
  t.equal(new Set(await gets(t, bed, all)).size, 4);
});

t.test('connections go by source', async (t) => {
  const backends = await Promise.all(names.map((name) => startBackend(t, naming(name))));
  const instances = backends.map(({ port }, index) => instanceOf({ name: names[index] ?? '', port }));
  const bed = await startBed(t, { services: [serviceOf(instances, { balance: 'hash', hashOn: 'header:x' })] });
  const ask = async (from: string): Promise<string> => {
    await quiet(bed);
    const socket = connect({ port: bed.port, host: '127.0.0.1', localAddress: from, allowHalfOpen: true });
    const { data } = await outcome(socket);
    socket.destroy();
    return data.toString();
  };
  const sources = Array.from({ length: 13 }, (_, index) => `127.0.7.${index + 1}`);
  const first: string[] = [];
  for (const source of sources) first.push(await ask(source));
  t.ok(new Set(first).size >= 3, `they are spread: ${first.join('')}`);
  for (const [index, source] of sources.entries()) t.equal(await ask(source), first[index], source);
});
