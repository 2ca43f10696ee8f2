import t from 'tap';
import type { RouteRule } from '../../../src/model/routes.ts';
import { Backend } from '../../balance/backend.ts';
import { HeadersView } from '../../http2/headers-view.ts';
import { instanceOf } from '../../link-plane.fixture.ts';
import { HttpFault } from '../fault.ts';
import { Head } from '../head.ts';
import { cookieText } from './cookies.ts';
import { HeadView } from './head-view.ts';
import { isBelow, locationOf, readPath, rewritten } from './paths.ts';
import type { RequestView } from './request-view.ts';
import { routesAdvice } from './route-advice.ts';
import { Rule, Rules } from './rules.ts';
import { type Choosable, Sides } from './sides.ts';

interface Asked {
  readonly method?: string;
  readonly host?: string;
  readonly target: string;
  readonly headers?: Readonly<Record<string, string>>;
}

function viewOfHead({ method = 'GET', host = 'shop', target, headers = {} }: Asked): RequestView {
  const lines = Object.entries(headers).map(([name, value]) => `${name.toUpperCase()}: ${value}\r\n`);
  const head = new Head();
  head.readRequest(Buffer.from(`${method} ${target} HTTP/1.1\r\nHost: ${host}\r\n${lines.join('')}\r\n`, 'latin1'), 0);
  return new HeadView(head).reset();
}

function viewOfHeaders({ method = 'GET', host = 'shop', target, headers = {} }: Asked): RequestView {
  return new HeadersView({ ':method': method, ':authority': host, ':path': target, ...headers });
}

/** Which of the rules is for it, by its place; `none`, or the fault. */
function found(matches: readonly RouteRule['match'][], view: RequestView): string {
  const rules = matches.map((match) => new Rule({ match }));
  try {
    const rule = new Rules(rules).find(view);
    return rule === undefined ? 'none' : String(rules.indexOf(rule));
  } catch (error) {
    if (error instanceof HttpFault) return 'fault';
    throw error;
  }
}

t.test('which rule a request is for', async (t) => {
  const api = { path: '/api' };
  const cases: readonly (readonly [RouteRule['match'], Asked, boolean | 'fault'])[] = [
    [{}, { target: '/any' }, true],
    [{}, { method: 'OPTIONS', target: '*' }, true],
    [api, { target: '/api' }, true],
    [api, { target: '/api/' }, true],
    [api, { target: '/api/x?y' }, true],
    [api, { target: '/api?x' }, true],
    [api, { target: '/apix' }, false],
    [api, { target: '/API' }, false],
    [api, { target: '/x?/api' }, false],
    [api, { method: 'OPTIONS', target: '*' }, false],
    [{ path: '/api/' }, { target: '/api' }, false],
    [{ path: '/api/' }, { target: '/api/x' }, true],
    [{ path: '/' }, { target: '/x' }, true],
    [{ exact: '/api' }, { target: '/api?x' }, true],
    [{ exact: '/api' }, { target: '/api/' }, false],
    // The same resource, written in other ways.
    [api, { target: '/%61pi/x' }, true],
    [api, { target: '//api' }, true],
    [{ path: '/a$b' }, { target: '/a%24b' }, true],
    [{ path: '/caf%c3%a9' }, { target: '/caf%C3%A9' }, true],
    // Where it leads would depend on who reads it.
    [api, { target: '/api/../x' }, 'fault'],
    [api, { target: '/x/%2e%2E/api' }, 'fault'],
    [api, { target: '/x/..;a=b/api' }, 'fault'],
    [api, { target: '/x%2f..%5capi' }, 'fault'],
    [api, { target: '/api/.' }, 'fault'],
    [api, { target: '/%2Fapi' }, 'fault'],
    [api, { target: '/api%2Fx' }, 'fault'],
    [api, { target: '/api;v=1/x' }, 'fault'],
    [api, { target: '/\\api' }, 'fault'],
    [api, { target: '/api/a%2Fb;c' }, true],
    [api, { target: '/x/a%2Fb;c' }, false],
    [api, { target: '/api/..x/.y' }, true],
    [{ host: 'shop' }, { target: '/../x' }, true],
    [{ host: 'shop' }, { target: '/', host: 'SHOP:8080' }, true],
    [{ host: 'shop' }, { target: '/', host: 'shop.' }, true],
    [{ host: 'shop' }, { target: '/', host: 'shop.example.com' }, false],
    [{ host: '*.example.com' }, { target: '/', host: 'a.b.Example.com:1' }, true],
    [{ host: '*.example.com' }, { target: '/', host: 'example.com' }, false],
    [{ host: '*.example.com' }, { target: '/', host: 'badexample.com' }, false],
    [{ host: 'shop' }, { target: '/', host: '[::1]:80' }, false],
    [{ method: ['POST', 'PUT'] }, { target: '/', method: 'PUT' }, true],
    [{ method: ['POST', 'PUT'] }, { target: '/' }, false],
    [{ header: { 'x-beta': '*' } }, { target: '/', headers: { 'x-beta': '' } }, true],
    [{ header: { 'x-beta': '*' } }, { target: '/' }, false],
    [{ header: { 'x-beta': '1' } }, { target: '/', headers: { 'x-beta': '0, 1' } }, true],
    [{ header: { 'x-beta': '1' } }, { target: '/', headers: { 'x-beta': '11' } }, false],
    [{ header: { 'x-beta': '1', 'x-gamma': '2' } }, { target: '/', headers: { 'x-beta': '1' } }, false],
    [{ header: { host: 'shop' } }, { target: '/' }, true],
  ];
  for (const [match, asked, expected] of cases) {
    const wanted = expected === 'fault' ? 'fault' : expected ? '0' : 'none';
    const name = `${JSON.stringify(match)} ${JSON.stringify(asked)}`;
    t.equal(found([match], viewOfHead(asked)), wanted, name);
    t.equal(found([match], viewOfHeaders(asked)), wanted, `${name} over HTTP/2`);
  }
  const absolute = viewOfHead({ target: 'http://SHOP/api?x', host: 'shop' });
  t.equal(found([{ host: 'shop', path: '/api' }], absolute), '0', 'a whole URI counts with its host');
  t.equal(found([{ path: '/' }], viewOfHead({ target: 'http://shop?x' })), '0', 'and may have no path');
  t.equal(
    found([{ path: '/a' }, { path: '/' }, { path: '/' }], viewOfHead({ target: '/x' })),
    '1',
    'the first decides',
  );
});

/** A repeatable sequence of whole numbers below `below`. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** As the specification of `RouteMatch` says it, for paths that are written plainly. */
function naive({ host, path, exact, method, header = {} }: RouteRule['match'], asked: Required<Asked>): boolean {
  const [given = ''] = asked.target.split('?');
  const segments = (text: string): string[] => text.split('/').slice(1);
  const of = asked.host.toLowerCase().replace(/:\d+$/, '');
  if (host?.startsWith('*.') ? !of.endsWith(host.slice(1)) || of === host.slice(1) : host !== undefined && of !== host)
    return false;
  if (exact !== undefined && given !== exact) return false;
  if (path !== undefined) {
    const wanted = segments(path);
    if (wanted.at(-1) === '') wanted.pop();
    const isUnder = wanted.every((segment, index) => segments(given)[index] === segment);
    const needsMore = path.endsWith('/') ? wanted.length : wanted.length - 1;
    if (!isUnder || segments(given).length <= needsMore) return false;
  }
  if (method !== undefined && !method.includes(asked.method)) return false;
  return Object.entries(header).every(([name, value]) => {
    const has = asked.headers[name];
    return has !== undefined && (value === '*' || has === value);
  });
}

t.test('the first of many rules is found as one would by hand', async (t) => {
  const number = numbers(11);
  const of = <T>(...items: readonly T[]): T => items[number(items.length)] as T;
  const path = (): string => `/${Array.from({ length: number(4) }, () => of('a', 'b', 'ab')).join('/')}${of('', '/')}`;
  const plain = (): string => path().replaceAll(/\/{2,}/g, '/');
  let decided = 0;
  for (let turn = 0; turn < 3000; turn += 1) {
    const matches = Array.from({ length: 1 + number(8) }, () => ({
      ...(number(3) === 0 && { host: of('shop', 'example.com', '*.example.com') }),
      ...(number(2) === 0 ? { path: plain() } : number(3) === 0 ? { exact: plain() } : {}),
      ...(number(4) === 0 && { method: [of('GET', 'POST')] }),
      ...(number(4) === 0 && { header: { 'x-a': of('*', '1', '2') } }),
    }));
    const asked = {
      method: of('GET', 'POST', 'PUT'),
      host: of('shop', 'Shop:80', 'example.com', 'a.example.com'),
      target: `${plain()}${of('', '?q', '?/a')}`,
      headers: number(2) === 0 ? { 'x-a': of('1', '2', '3') } : ({} as Record<string, string>),
    };
    const index = matches.findIndex((match) => naive(match, asked));
    const expected = index < 0 ? 'none' : String(index);
    if (index >= 0) decided += 1;
    const one = found(matches, viewOfHead(asked));
    const two = found(matches, viewOfHeaders(asked));
    if (one !== expected || two !== expected)
      t.same([one, two], [expected, expected], JSON.stringify({ matches, asked }));
  }
  t.ok(decided > 1000, `${decided} of 3000 requests had a rule`);
});

t.test('what is said of routes that have no effect', (t) => {
  const off = { service: 'x' };
  const unreached = (before: number, at = 1): string =>
    `[${at}] no request gets to it: routes[${before}] is for all that it is for`;
  const idle = (at: number): string => `[${at}] it does nothing: its requests go where they would go without it`;
  const loop = (to: string, at = 0): string =>
    `[${at}].redirect it leads back to itself: a request for ${to} is redirected again and again`;
  const to = (target: string) => ({ redirect: { to: target, status: 308 } });
  const cases: readonly (readonly [string, readonly RouteRule[], readonly string[]])[] = [
    ['none', [], []],
    [
      'all after one another',
      [
        { match: { path: '/a' }, ...off },
        { match: {}, ...off },
      ],
      [],
    ],
    [
      'behind one for everything',
      [
        { match: {}, ...off },
        { match: { host: 'a' }, ...off },
      ],
      [unreached(0)],
    ],
    [
      'behind the root',
      [
        { match: { path: '/' }, ...off },
        { match: {}, ...off },
      ],
      [unreached(0)],
    ],
    [
      'behind a wider path',
      [
        { match: { path: '/a' }, ...off },
        { match: { exact: '/a/b' }, ...off },
      ],
      [unreached(0)],
    ],
    [
      'behind one like it',
      [
        { match: { path: '/a' }, ...off },
        { match: { path: '/ab' }, ...off },
      ],
      [],
    ],
    [
      'behind a narrower path',
      [
        { match: { path: '/a/' }, ...off },
        { match: { path: '/a' }, ...off },
      ],
      [],
    ],
    [
      'behind all hosts below',
      [
        { match: { host: '*.a' }, ...off },
        { match: { host: 'b.a' }, ...off },
      ],
      [unreached(0)],
    ],
    [
      'the domain is none below it',
      [
        { match: { host: '*.a' }, ...off },
        { match: { host: 'a' }, ...off },
      ],
      [],
    ],
    [
      'behind its methods',
      [
        { match: { method: ['GET', 'PUT'] }, ...off },
        { match: { method: ['PUT'] }, ...off },
        { match: { method: ['PUT', 'POST'] }, ...off },
      ],
      [unreached(0)],
    ],
    [
      'behind its headers',
      [
        { match: { header: { a: '*' } }, ...off },
        { match: { header: { a: '1', b: '2' } }, ...off },
        { match: { header: { b: '2' } }, ...off },
      ],
      [unreached(0)],
    ],
    ['without an action', [{ match: { path: '/a' } }], [idle(0)]],
    ['kept from one behind it', [{ match: { path: '/a/b' } }, { match: { path: '/a' }, ...off }], []],
    ['from none behind it', [{ match: { path: '/a' } }, { match: { path: '/b' }, ...off }], [idle(0)]],
    ['to itself', [{ match: { path: '/loop' }, ...to('/loop/*') }], [loop('/loop/*')]],
    ['everything, to a path', [{ match: {}, ...to('/app/*') }], [loop('/app/*')]],
    ['from a path to the one below', [{ match: { exact: '/' }, ...to('/app') }], []],
    ['to below itself', [{ match: { path: '/a' }, ...to('/a/b') }], [loop('/a/b')]],
    [
      'kept from that by one before it',
      [
        { match: { path: '/app' }, ...off },
        { match: {}, ...to('/app/*') },
      ],
      [],
    ],
    [
      'to and fro',
      [
        { match: { path: '/a' }, ...to('/b/*') },
        { match: { path: '/b' }, ...to('/a/*') },
      ],
      [loop('/b/*'), loop('/a/*', 1)],
    ],
    ['to another scheme or host', [{ match: { host: 'a' }, ...to('https://a/*') }], []],
    ['with its own headers', [{ match: { host: '*.a', header: { x: '*' } }, ...to('/x') }], [loop('/x')]],
    ['a path that has two readings', [{ match: { path: '/a%2Fb' }, ...to('/c') }], []],
  ];
  for (const [name, rules, expected] of cases) {
    t.same(
      routesAdvice(rules).map(({ path, message }) => `${path} ${message}`),
      expected,
      name,
    );
  }
  t.end();
});

t.test('paths', async (t) => {
  t.equal(readPath('/a/b.c/...'), '/a/b.c/...');
  t.ok(isBelow('/a', '/a') && isBelow('/a/b', '/a') && isBelow('/a/b', '/a/') && !isBelow('/ab', '/a'));
  const rewrites: readonly (readonly [string, string | undefined, string | undefined, string])[] = [
    ['/api/x', '/api', undefined, '/x'],
    ['/api', '/api', undefined, '/'],
    ['/api/', '/api', undefined, '/'],
    ['/apix', '/api', undefined, '/apix'],
    ['/api/x', '/api/', undefined, '/x'],
    ['/api//x', '/api', undefined, '/x'],
    ['/api/\\x', '/api', undefined, '/x'],
    ['//%61pi/a%20b', '/api', undefined, '/a%20b'],
    ['/x', undefined, '/v2', '/v2/x'],
    ['/x', undefined, '/v2/', '/v2/x'],
    ['/', undefined, '/v2', '/v2/'],
    ['/api', '/api', '/v2', '/v2'],
    ['/api/x', '/api', '/v2', '/v2/x'],
    ['*', '/api', '/v2', '*'],
  ];
  for (const [path, strip, add, expected] of rewrites)
    t.equal(rewritten(path, strip, add), expected, `${path} -${strip} +${add}`);
  const locations: readonly (readonly [string, string, string, string | undefined, string])[] = [
    ['/new', '/old/x', '?q', '/old', '/new'],
    ['/new*', '/old/x', '?q', '/old', '/new/x?q'],
    ['/new/*', '/old/x', '', '/old', '/new/x'],
    ['/new/*', '/old', '', '/old', '/new/'],
    ['/*', '/old//evil.com/x', '', '/old', '/evil.com/x'],
    ['/*', '/old/\\evil.com', '', '/old', '/evil.com'],
    ['https://new.example.com/*', '/a/b', '?q=1', undefined, 'https://new.example.com/a/b?q=1'],
    ['https://new.example.com/*', '//evil.com', '', undefined, 'https://new.example.com/evil.com'],
    ['https://new.example.com/*', '/@evil.com', '', undefined, 'https://new.example.com/@evil.com'],
    ['/find?p=*', '/old/x', '?q', '/old', '/find?p=/x&q'],
    ['/new/*', '*', '', undefined, '/new/'],
  ];
  for (const [to, path, query, prefix, expected] of locations)
    t.equal(locationOf(to, path, query, prefix), expected, `${to} ${path}${query}`);
});

/** Instances with tags, as `name: tags`; which of them can be tried may be changed. */
function bed(weights: Readonly<Record<string, number>>, instances: Readonly<Record<string, string>>) {
  const backends = Object.entries(instances).map(([name, tags]) => {
    const instance = instanceOf({ name, tags: tags.split(' ').filter((tag) => tag !== '') });
    return new Backend(instance, { via: 'direct', endpoint: instance }, 0);
  });
  const down = new Set<string>();
  let arrangement = 0;
  const up = (): Backend[] => backends.filter(({ instance }) => !down.has(instance.name));
  let turn = 0;
  const balance = (from: readonly Backend[]): Backend | undefined => {
    turn += 1;
    return from[turn % from.length];
  };
  const from: Choosable = {
    get arrangement() {
      return arrangement;
    },
    bestOf: (takes) => up().filter(takes),
    nearest: (some) => some,
    balance,
    pick: (tried) => balance(up().filter((backend) => !tried.includes(backend))),
    hasOther: (tried) => up().some((backend) => !tried.includes(backend)),
  };
  const sides = new Sides(weights, from, () => 0.5);
  const set = (name: string, isUp: boolean): void => {
    if (isUp) down.delete(name);
    else down.add(name);
    arrangement += 1;
  };
  const turns = (count: number): Record<string, number> => {
    const counts: Record<string, number> = {};
    for (let index = 0; index < count; index += 1) {
      const tag = sides.next()?.tag ?? 'none';
      counts[tag] = (counts[tag] ?? 0) + 1;
    }
    return counts;
  };
  const tryAll = (side: ReturnType<Sides['next']>): string[] => {
    const tried: Backend[] = [];
    for (let next = sides.pick(side, tried); next !== undefined; next = sides.pick(side, tried)) tried.push(next);
    return tried.map(({ instance }) => instance.name);
  };
  return { sides, backends, from, set, turns, tryAll };
}

t.test('shares', async (t) => {
  const three = bed({ a: 5, b: 1, c: 2, off: 0 }, { a: 'a', b: 'b', c: 'c', off: 'off', plain: '' });
  t.same(three.turns(8), { a: 5, b: 1, c: 2 }, 'are exact for few requests');
  t.same(three.turns(8000), { a: 5000, b: 1000, c: 2000 });
  three.set('a', false);
  t.same(three.turns(300), { b: 100, c: 200 }, 'a side without instances yields its own to the others, in proportion');
  three.set('b', false);
  three.set('c', false);
  t.same(three.turns(3), { none: 3 }, 'nobody is left');
  t.same(three.tryAll(undefined).sort(), ['off', 'plain'], 'and all others serve, whatever they are called');
  three.set('c', true);
  t.same(three.tryAll(three.sides.next()), ['c'], 'but never while a side with a weight can');
  const random = numbers(5);
  let light = 0;
  for (let process = 0; process < 400; process += 1) {
    const { from } = bed({}, { a: 'a', b: 'b' });
    const sides = new Sides({ a: 99, b: 1 }, from, () => random(1000) / 1000);
    for (let turn = 0; turn < 20; turn += 1) if (sides.next()?.tag === 'b') light += 1;
  }
  t.ok(light > 40 && light < 130, `1 % of 8000 requests to 400 processes, and not none: ${light}`);
});

t.test('within and beyond a side', async (t) => {
  const { sides, tryAll, set, backends } = bed(
    { blue: 1, green: 1, off: 0 },
    { b1: 'blue', b2: 'blue', g: 'green', both: 'blue green', off: 'off', x: '' },
  );
  const side = [sides.next(), sides.next()].find((each) => each?.tag === 'blue');
  t.same([...tryAll(side).slice(0, 3)].sort(), ['b1', 'b2', 'both'], 'first its own');
  t.equal(tryAll(side)[3], 'g', 'then those of the other side');
  t.equal(tryAll(side).length, 4, 'and never those of weight 0, or of no side');
  const [b1, , g, both] = backends;
  t.equal(sides.answeredBy(g, side)?.tag, 'green', 'whoever answers has it counted');
  t.equal(sides.answeredBy(both, side)?.tag, 'blue');
  t.equal(sides.answeredBy(undefined, side)?.tag, 'blue');
  t.ok(sides.hasOther([b1 as Backend]));
  for (const name of ['b1', 'b2', 'both', 'g']) set(name, false);
  t.same(tryAll(side).sort(), ['off', 'x'], 'a side that has lost all it had meanwhile');
});

t.test('clients that stay', async (t) => {
  const keys = Array.from({ length: 2000 }, (_, index) => `client-${index}`);
  const placed = (weights: Readonly<Record<string, number>>): string[] => {
    const { sides } = bed(weights, { a: 'a', b: 'b', c: 'c' });
    return keys.map((key) => sides.of(key)?.tag ?? 'none');
  };
  const share = (places: readonly string[], tag: string): number =>
    places.filter((each) => each === tag).length / places.length;
  const before = placed({ a: 90, b: 10 });
  const after = placed({ a: 60, b: 40 });
  t.ok(Math.abs(share(before, 'b') - 0.1) < 0.03, `${share(before, 'b')} of them on the smaller side`);
  t.ok(Math.abs(share(after, 'b') - 0.4) < 0.04, `${share(after, 'b')} of them later`);
  t.notOk(
    before.some((tag, index) => tag === 'b' && after[index] !== 'b'),
    'nobody leaves a side that grows',
  );
  const third = placed({ a: 90, b: 10, c: 50 });
  t.notOk(
    before.some((tag, index) => third[index] !== tag && third[index] !== 'c'),
    'and those who move go to what is new',
  );
  const { sides, set } = bed({ a: 1, 'b;x': 1, off: 0 }, { a: 'a', b: 'b;x', off: 'off' });
  const said = (cookies: string): string | undefined => sides.ofCookie(cookies, 'side')?.tag;
  t.equal(said('x=y; side=a; z'), 'a');
  t.equal(said(`side=${cookieText('b;x')}`), 'b;x', 'a tag may have any characters');
  t.match(cookieText('b;x"\r\n'), /^[\w.%-]+$/);
  for (const hostile of [
    '',
    'side',
    'side=',
    'side=off',
    'side=none',
    'Side=a',
    'xside=a',
    'side="a"',
    'side=a,b',
    '=a',
  ])
    t.equal(said(hostile), undefined, JSON.stringify(hostile));
  t.equal(said('side=zzz; side=a'), 'a', 'the first one that says something');
  t.equal(said(`${'side=x;'.repeat(4000)}`), undefined);
  set('a', false);
  t.equal(said('side=a'), undefined, 'a side that has nobody is chosen anew');
});
