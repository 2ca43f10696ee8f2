import t from 'tap';
import type { Policy } from '../../../model/policy.ts';
import { keysOf } from '../../keys.ts';
import { leaseIdFor } from './lease-owner.ts';
import { firstRefused, type KeyChange, keysLookedAt, type Written } from './write-rules.ts';

const keys = keysOf('m');
const [authority, self, other] = ['a'.repeat(16), 'b'.repeat(16), 'c'.repeat(16)];
const ownLease = leaseIdFor(self);
const othersLease = leaseIdFor(other);
const vip = '240.77.1.1';

/** `db` is granted to this host, `paid` to another one only; of `free` no grant speaks. */
const policy: Policy = {
  mesh: 'm',
  meshId: 'f'.repeat(32),
  version: 1,
  authority,
  roots: [],
  default: 'allow',
  mode: 'enforce',
  fromLinks: true,
  intents: [],
  grants: [{ hostId: other, service: 'paid', setAtMs: 1 }],
  external: [],
  revoked: [],
};

type Value = object | string;
type Puts = Readonly<Record<string, Value | undefined | readonly [Value, string]>>;

function written(value: Puts[string]): Written | undefined {
  if (value === undefined) return undefined;
  const [content, lease] = Array.isArray(value) ? (value as [Value, string]) : [value as Value, undefined];
  return { value: Buffer.from(typeof content === 'string' ? content : JSON.stringify(content)), lease };
}

function judge(before: Puts, after: Puts, host = self, at: Policy | null = policy): string {
  const changes = new Map<string, KeyChange>();
  for (const [key, value] of Object.entries(after)) {
    const full = key.startsWith('/') ? key : keys.root + key;
    changes.set(full, { before: written(before[key]), after: written(value) });
  }
  const current = (key: string): Written | undefined => written(before[key.slice(keys.root.length)]);
  const refused = firstRefused({ hostId: host, keys, policy: at ?? undefined, versionOf }, changes, current);
  return refused === undefined ? 'allowed' : `${refused.kind}: ${refused.why}`;
}

/** As if the policy key had signed what is called so, and what is older than 3 was not to be taken. */
function versionOf(sealed: Uint8Array): number | undefined {
  const version = Number(/^signed (\d+)$/.exec(Buffer.from(sealed).toString())?.[1] ?? 0);
  return version < 3 ? undefined : version;
}

const db = { v: 1, name: 'db', port: 5432, protocol: 'tcp', balance: 'round-robin', derived: ['port', 'protocol'] };
const paid = { ...db, name: 'paid' };
const claim = (service: string, more = {}): object => ({ v: 1, service, claimedAtMs: 1, ...more });
const released = { releasedAtMs: 2 };
const awaited = (name: string, by: string): object => ({ ...db, name, awaitedBy: by });

const cases: readonly (readonly [name: string, before: Puts, after: Puts, verdict: string])[] = [
  ['its own record', {}, { [`hosts/${self}`]: {} }, 'allowed'],
  ["another's record", {}, { [`hosts/${other}`]: {} }, 'hosts: not its own'],
  ["another's record, deleted", { [`hosts/${other}`]: {} }, { [`hosts/${other}`]: undefined }, 'hosts: not its own'],
  ['a record below its own', {}, { [`hosts/${self}/x`]: {} }, 'hosts: not its own'],
  ['its own instances', {}, { [`instances/${self}/a`]: {}, [`instances/${self}/b`]: undefined }, 'allowed'],
  ["another's instances", {}, { [`instances/${other}/a`]: {} }, 'instances: not its own'],
  ['instances of a host whose id begins alike', {}, { [`instances/${self}0/a`]: {} }, 'instances: not its own'],
  ['its sign of life', {}, { [`alive/${self}`]: [{}, ownLease] }, 'allowed'],
  ['its sign of life for ever', {}, { [`alive/${self}`]: {} }, 'alive: lease'],
  ["its sign of life on another's lease", {}, { [`alive/${self}`]: [{}, othersLease] }, 'leases: lease'],
  ["another's sign of life", {}, { [`alive/${other}`]: [{}, ownLease] }, 'leases: lease'],
  ["another's sign of life, deleted", {}, { [`alive/${other}`]: undefined }, 'alive: not its own'],
  ['what it learned', {}, { [`learned/${self}`]: {} }, 'allowed'],
  ['what another learned', {}, { [`learned/${other}`]: {} }, 'learned: not its own'],
  [
    "users' keys",
    {},
    { 'kv/a': 'x', 'kv/b': undefined, 'leased/a': ['1', ownLease], 'kv/c': ['x', ownLease] },
    'allowed',
  ],
  ["users' keys on another's lease", {}, { 'kv/a': ['x', othersLease] }, 'leases: lease'],
  ["users' keys that keep another's lease", { 'kv/a': ['x', othersLease] }, { 'kv/a': ['y', othersLease] }, 'allowed'],
  ['a service that vanishes by itself', {}, { 'services/db': [db, ownLease] }, 'leases: lease'],

  ['a new service', {}, { 'services/db': db }, 'allowed'],
  ['a new service with its claim', {}, { 'services/db': { ...db, vip }, [`vips/${vip}`]: claim('db') }, 'allowed'],
  [
    'a new service at a claim of before',
    { [`vips/${vip}`]: claim('db') },
    { 'services/db': { ...db, vip } },
    'allowed',
  ],
  ['a new service at nobody’s address', {}, { 'services/db': { ...db, vip } }, 'services: form'],
  [
    "a new service at another's address",
    { [`vips/${vip}`]: claim('web') },
    { 'services/db': { ...db, vip } },
    'services: form',
  ],
  ['a new service under another name', {}, { 'services/db': paid }, 'services: form'],
  ['a new service without a port', {}, { 'services/db': { ...db, port: 0 } }, 'services: form'],
  ['a service that is not granted', {}, { 'services/paid': paid }, 'services: not granted'],
  ['one that its containers wait for', {}, { 'services/paid': awaited('paid', self) }, 'allowed'],
  ["one that another's containers wait for", {}, { 'services/paid': awaited('paid', other) }, 'services: not granted'],
  ['a damaged service', { 'services/db': 'x' }, { 'services/db': db }, 'allowed'],
  ['the same again', { 'services/paid': paid }, { 'services/paid': paid }, 'allowed'],
  [
    'a chosen port',
    { 'services/db': { ...db, derived: [] } },
    { 'services/db': { ...db, derived: [], port: 1 } },
    'services: settings',
  ],
  ['a derived port', { 'services/db': db }, { 'services/db': { ...db, port: 1, protocol: 'udp' } }, 'allowed'],
  [
    'a derived port of one not granted',
    { 'services/paid': paid },
    { 'services/paid': { ...paid, port: 1 } },
    'services: settings',
  ],
  ['a balance', { 'services/db': db }, { 'services/db': { ...db, balance: 'random' } }, 'services: settings'],
  [
    'a derived port that becomes chosen',
    { 'services/db': db },
    { 'services/db': { ...db, derived: ['protocol'] } },
    'services: settings',
  ],
  ['deleting a service', { 'services/db': db }, { 'services/db': undefined }, 'services: settings'],
  [
    'deleting one that it waits for no more',
    { 'services/x': awaited('x', self) },
    { 'services/x': undefined },
    'allowed',
  ],
  [
    'deleting one that another waits for',
    { 'services/x': awaited('x', other) },
    { 'services/x': undefined },
    'services: settings',
  ],
  ['an instance has come', { 'services/db': awaited('db', other) }, { 'services/db': db }, 'allowed'],
  [
    'an instance of one not granted has come',
    { 'services/paid': awaited('paid', other) },
    { 'services/paid': paid },
    'services: settings',
  ],
  ['what it waited for has come', { 'services/paid': awaited('paid', self) }, { 'services/paid': paid }, 'allowed'],
  [
    'a first address for any service',
    { 'services/paid': paid },
    { 'services/paid': { ...paid, vip }, [`vips/${vip}`]: claim('paid') },
    'allowed',
  ],
  [
    'another address',
    { 'services/db': { ...db, vip }, [`vips/${vip}`]: claim('db') },
    { 'services/db': { ...db, vip: '240.77.1.2' }, 'vips/240.77.1.2': claim('db') },
    'services: settings',
  ],
  [
    'datagrams give the address up',
    { 'services/db': { ...db, vip }, [`vips/${vip}`]: claim('db') },
    { 'services/db': { ...db, protocol: 'udp' }, [`vips/${vip}`]: claim('db', released) },
    'allowed',
  ],
  [
    'giving up the address of a service of streams',
    { 'services/db': { ...db, vip }, [`vips/${vip}`]: claim('db') },
    { 'services/db': db, [`vips/${vip}`]: claim('db', released) },
    'services: settings',
  ],

  ...takings(),

  ['a claim alone, when granted', {}, { [`vips/${vip}`]: claim('db') }, 'allowed'],
  ['a claim alone, not granted', {}, { [`vips/${vip}`]: claim('paid') }, 'vips: not granted'],
  ['a claim of something', {}, { [`vips/${vip}`]: {} }, 'vips: form'],
  ['a claim of no address', {}, { 'vips/x': claim('db') }, 'vips: form'],
  ["another's claim", { [`vips/${vip}`]: claim('web') }, { [`vips/${vip}`]: claim('db') }, 'vips: authority only'],
  ['a claim given back', { [`vips/${vip}`]: claim('web', released) }, { [`vips/${vip}`]: claim('db') }, 'allowed'],
  [
    'its claim again',
    { [`vips/${vip}`]: claim('db') },
    { [`vips/${vip}`]: claim('db', { claimedAtMs: 3 }) },
    'allowed',
  ],
  ['a damaged claim', { [`vips/${vip}`]: 'x' }, { [`vips/${vip}`]: claim('db') }, 'vips: authority only'],
  ['deleting a claim', { [`vips/${vip}`]: claim('db') }, { [`vips/${vip}`]: undefined }, 'vips: authority only'],
  [
    'giving a claim back',
    { [`vips/${vip}`]: claim('db') },
    { [`vips/${vip}`]: claim('db', released) },
    'vips: authority only',
  ],
  [
    'giving a claim back with what it waited for',
    { 'services/x': { ...awaited('x', self), vip }, [`vips/${vip}`]: claim('x') },
    { 'services/x': undefined, [`vips/${vip}`]: claim('x', released) },
    'allowed',
  ],

  ['the policy', {}, { policy: 'x' }, 'policy: authority only'],
  ['a signed policy', {}, { policy: 'signed 3' }, 'allowed'],
  ['a signed policy in the place of another', { policy: 'signed 3' }, { policy: 'signed 4' }, 'allowed'],
  ['a signed policy in the place of what is none', { policy: 'x' }, { policy: 'signed 3' }, 'allowed'],
  ['an older policy', {}, { policy: 'signed 2' }, 'policy: authority only'],
  ['an older policy than the one there', { policy: 'signed 5' }, { policy: 'signed 4' }, 'policy: authority only'],
  ['the same policy again', { policy: 'signed 4' }, { policy: 'signed 4' }, 'policy: authority only'],
  ['a policy that vanishes', {}, { policy: ['signed 4', ownLease] }, 'leases: lease'],
  ['no policy', { policy: 'signed 3' }, { policy: undefined }, 'policy: authority only'],
  ['a token', {}, { 'tokens/x': 'x' }, 'tokens: authority only'],
  ['meta', {}, { meta: 'x' }, 'mesh: authority only'],
  ['the mark of a move', {}, { moved: 'x' }, 'mesh: authority only'],
  ['a subnet', {}, { 'subnets/x': 'x' }, 'other: authority only'],
  ['another mesh', {}, { '/legate/n/kv/a': 'x' }, 'other: authority only'],
  ['one that is allowed and one that is not', {}, { 'kv/a': 'x', policy: 'x' }, 'policy: authority only'],
];

/** What a rollout guard may do, whatever its host is granted, and what looks like it. */
function takings(): typeof cases {
  const split = { blue: 10, canary: 5, stable: 95 };
  const was = { ...paid, split, splitGuard: 3, formerSplit: { stable: 100 } };
  const seen = { requests: 50, errors: 20, against: 'stable', againstRequests: 900, againstErrors: 1 };
  const takenBack = { tag: 'canary', weight: 5, hostId: self, atMs: 1, ...seen };
  const is = { ...was, split: { ...split, canary: 0 }, formerSplit: split, takenBack };
  const equal = { canary: 50, stable: 50 };
  const refused: [string, object, object][] = [
    ['without a guard', { ...was, splitGuard: 0 }, { ...is, splitGuard: 0 }],
    ['with a guard of its own', { ...was, splitGuard: undefined }, is],
    ['in the name of another host', was, { ...is, takenBack: { ...takenBack, hostId: other } }],
    ['and another one as well', was, { ...is, split: { ...split, canary: 0, blue: 0 } }],
    ['and gives it to a side of its choice', was, { ...is, split: { ...split, canary: 0, stable: 100 } }],
    ['not wholly', was, { ...is, split: { ...split, canary: 1 } }],
    ['that is none', was, { ...is, split: { ...split, x: 0 }, takenBack: { ...takenBack, tag: 'x', weight: 0 } }],
    [
      'that is the heaviest',
      was,
      { ...is, split: { ...split, stable: 0 }, takenBack: { ...takenBack, tag: 'stable', weight: 95 } },
    ],
    ['and forgets what was before', was, { ...is, formerSplit: { canary: 100 } }],
    ['and removes the guard', was, { ...is, splitGuard: 0 }],
    ['and sets more', was, { ...is, balance: 'random' }],
    ['a second time', is, { ...is, takenBack: { ...takenBack, atMs: 2 } }],
    ['and gives it back', is, { ...is, split, formerSplit: is.split, takenBack: undefined }],
    ['without a word', was, { ...is, takenBack: undefined }],
    ['of a split that is none', { ...was, split: 'x' }, is],
  ];
  return [
    ['a side is taken back', { 'services/paid': was }, { 'services/paid': is }, 'allowed'],
    [
      'one of two equal sides is taken back',
      { 'services/paid': { ...was, split: equal } },
      {
        'services/paid': {
          ...is,
          split: { ...equal, canary: 0 },
          formerSplit: equal,
          takenBack: { ...takenBack, weight: 50 },
        },
      },
      'allowed',
    ],
    ...refused.map(([name, before, after]): (typeof cases)[number] => {
      return [
        `a side is taken back ${name}`,
        { 'services/paid': before },
        { 'services/paid': after },
        'services: settings',
      ];
    }),
  ];
}

for (const [name, before, after, verdict] of cases) {
  t.equal(judge(before, after), verdict, name);
  t.equal(judge(before, after, authority), 'allowed', `${name}: the host of the authority`);
}
t.equal(judge({}, { 'services/paid': paid }, self, null), 'allowed', 'without a policy everything is granted');
t.equal(judge({}, { meta: 'x' }, authority, null), 'mesh: authority only', 'and nobody is the authority');

t.same(
  keysLookedAt(keys, [
    [keys.service('db'), Buffer.from(JSON.stringify({ ...db, vip }))],
    [keys.service('x'), Buffer.from('{"vip":"x"}')],
    [keys.userKey('x'), Buffer.from(JSON.stringify({ vip }))],
  ]),
  [keys.vip(vip)],
);
