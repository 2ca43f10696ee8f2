import type { Figure } from './bench.ts';
import { median } from './tools.ts';
import type { PeerName } from './tunnel-peers.ts';

/** What can be asked for by `--only`. */
export const parts = ['requests', 'connections', 'bulk', 'beside', 'memory', 'rtt', 'complete'] as const;
export type TunnelPart = (typeof parts)[number];

/** One round's result of a plan with one pair; NaN where it does not apply. */
export interface Sample {
  readonly perSecond: number;
  /** CPU of both proxies: microseconds a request, or seconds for 10^9 bytes. */
  readonly cpu: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** By plan (`requests 64`), then by pair: a sample a round. */
export class Samples {
  readonly #kept = new Map<string, Sample[]>();

  add(plan: string, peer: PeerName, sample: Sample): void {
    const key = `${plan}|${peer}`;
    this.#kept.set(key, [...(this.#kept.get(key) ?? []), sample]);
  }

  /** Undefined where nothing was measured. */
  median(plan: string, peer: PeerName, field: keyof Sample): number | undefined {
    const samples = this.#kept.get(`${plan}|${peer}`);
    if (samples === undefined) return undefined;
    const value = median(samples.map((sample) => sample[field]));
    return Number.isNaN(value) ? undefined : value;
  }
}

interface Row {
  readonly plan: string;
  readonly what: string;
  readonly unit: string;
  readonly field: keyof Sample;
  /** Against whom, and the ratio that is aimed at. */
  readonly peers: readonly (readonly [PeerName, aim?: number])[];
}

const shownNames: Readonly<Record<PeerName, string>> = {
  legate: 'legate',
  haproxy: 'haproxy mTLS',
  envoy: 'envoy CONNECT',
  direct: 'direct, no TLS',
};

const perSecond = { field: 'perSecond', unit: '1/s' } as const;
const p50 = { field: 'p50Ms', unit: 'ms' } as const;
const p99 = { field: 'p99Ms', unit: 'ms' } as const;
const cpuEach = { field: 'cpu', unit: 'us' } as const;

const rows: readonly Row[] = [
  {
    plan: 'requests 1',
    what: 'requests/s, 1 connection',
    ...perSecond,
    peers: [['haproxy', 0.85], ['envoy'], ['direct']],
  },
  { plan: 'requests 1', what: 'p50, 1 connection', ...p50, peers: [['haproxy'], ['envoy']] },
  { plan: 'requests 1', what: 'p99, 1 connection', ...p99, peers: [['haproxy'], ['envoy']] },
  { plan: 'requests 1', what: 'CPU a request, 1 connection', ...cpuEach, peers: [['haproxy'], ['envoy']] },
  {
    plan: 'requests 64',
    what: 'requests/s, 64 connections',
    ...perSecond,
    peers: [['haproxy', 1.4], ['envoy', 1], ['direct']],
  },
  { plan: 'requests 64', what: 'p50, 64 connections', ...p50, peers: [['haproxy'], ['envoy']] },
  { plan: 'requests 64', what: 'p99, 64 connections', ...p99, peers: [['haproxy'], ['envoy']] },
  { plan: 'requests 64', what: 'CPU a request, 64 connections', ...cpuEach, peers: [['haproxy', 1 / 1.5], ['envoy']] },
  {
    plan: 'requests 512',
    what: 'requests/s, 512 connections',
    ...perSecond,
    peers: [['haproxy', 1.8], ['envoy', 1], ['direct']],
  },
  { plan: 'requests 512', what: 'p50, 512 connections', ...p50, peers: [['haproxy'], ['envoy']] },
  { plan: 'requests 512', what: 'p99, 512 connections', ...p99, peers: [['haproxy'], ['envoy']] },
  {
    plan: 'requests 512',
    what: 'CPU a request, 512 connections',
    ...cpuEach,
    peers: [['haproxy', 1 / 2.3], ['envoy']],
  },
  { plan: 'connections', what: 'new connections/s', ...perSecond, peers: [['haproxy', 5], ['envoy'], ['direct']] },
  { plan: 'connections', what: 'CPU a new connection', ...cpuEach, peers: [['haproxy'], ['envoy']] },
  {
    plan: 'bulk 1',
    what: 'bulk, one stream',
    unit: 'B/s',
    field: 'perSecond',
    peers: [['haproxy', 1], ['envoy'], ['direct']],
  },
  { plan: 'bulk 1', what: 'CPU a GB, one stream', unit: 's', field: 'cpu', peers: [['haproxy'], ['envoy']] },
  {
    plan: 'bulk 4',
    what: 'bulk, four streams',
    unit: 'B/s',
    field: 'perSecond',
    peers: [['haproxy', 1], ['envoy'], ['direct']],
  },
  { plan: 'bulk 4', what: 'CPU a GB, four streams', unit: 's', field: 'cpu', peers: [['haproxy'], ['envoy']] },
  { plan: 'beside', what: 'p99 of 16 connections beside bulk', ...p99, peers: [['haproxy', 1], ['envoy']] },
  { plan: 'beside', what: 'requests/s of these', ...perSecond, peers: [['haproxy'], ['envoy']] },
  { plan: 'beside bulk', what: 'bulk beside these', unit: 'B/s', field: 'perSecond', peers: [['haproxy'], ['envoy']] },
  {
    plan: 'rtt requests',
    what: '20 ms: requests/s, 64 connections',
    ...perSecond,
    peers: [['haproxy'], ['envoy'], ['direct']],
  },
  { plan: 'rtt requests', what: '20 ms: p50, 64 connections', ...p50, peers: [['haproxy'], ['envoy'], ['direct']] },
  {
    plan: 'rtt connections',
    what: '20 ms: new connections/s',
    ...perSecond,
    peers: [
      ['haproxy', 3],
      ['envoy', 1],
      ['direct', 1],
    ],
  },
  {
    plan: 'rtt connections',
    what: '20 ms: p50 of a new connection',
    ...p50,
    peers: [['haproxy'], ['envoy'], ['direct']],
  },
  {
    plan: 'memory',
    what: 'memory an idle connection, both',
    unit: 'KB',
    field: 'perSecond',
    peers: [['haproxy'], ['envoy']],
  },
];
const mostIdleKilobytes = 15;

/** The medians as comparisons, in the order of the rows. Rows of what was not measured are left out. */
export function figuresOf(samples: Samples, completed: ReadonlyMap<PeerName, number>, of: number): Figure[] {
  const figures: Figure[] = [];
  for (const row of rows) {
    const ours = samples.median(row.plan, 'legate', row.field);
    if (ours === undefined) continue;
    const better = row.field === 'perSecond' && row.plan !== 'memory' ? 'higher' : 'lower';
    const base = { what: row.what, unit: row.unit, ours, better } as const;
    if (row.plan === 'memory') figures.push({ ...base, aim: mostIdleKilobytes });
    for (const [name, aim] of row.peers) {
      const value = samples.median(row.plan, name, row.field);
      if (value === undefined) continue;
      figures.push({ ...base, peer: { name: shownNames[name], value }, ...(aim !== undefined && { aim }) });
    }
  }
  return [...figures, ...completeFigures(completed, of)];
}

function completeFigures(completed: ReadonlyMap<PeerName, number>, of: number): Figure[] {
  const ours = completed.get('legate');
  if (ours === undefined) return [];
  const base = { what: 'whole, origin closes at once', unit: `of ${of}`, ours, better: 'higher' } as const;
  const peers = [...completed].filter(([name]) => name !== 'legate');
  return [
    { ...base, aim: of },
    ...peers.map(([name, value]): Figure => ({ ...base, peer: { name: shownNames[name], value } })),
  ];
}
