import type { Figure } from './bench.ts';
import { type ProxyName, proxyNames } from './http-peers.ts';
import { median } from './tools.ts';

/** What can be asked for by `--only`. */
export const parts = ['requests', 'large', 'connections', 'latency', 'memory', 'http2'] as const;
export type HttpPart = (typeof parts)[number];

/** One load on one proxy; what it does not tell is left out. */
export interface Sample {
  readonly perSecond?: number;
  readonly perCpuSecond?: number;
  readonly p50Ms?: number;
  readonly p99Ms?: number;
  readonly kilobytes?: number;
}

/** By plan (`64 clients`), then by proxy: a sample a round. */
export class HttpSamples {
  readonly #kept = new Map<string, Sample[]>();

  add(plan: string, name: ProxyName, sample: Sample): void {
    const key = `${plan}|${name}`;
    this.#kept.set(key, [...(this.#kept.get(key) ?? []), sample]);
  }

  /** Undefined where nothing was measured. */
  median(plan: string, name: ProxyName, value: Value): number | undefined {
    const values = (this.#kept.get(`${plan}|${name}`) ?? []).map(value).filter((each) => each !== undefined);
    return values.length === 0 ? undefined : median(values);
  }
}

type Value = (sample: Sample) => number | undefined;

const perCpuSecond: Value = (sample) => sample.perCpuSecond;
const perSecond: Value = (sample) => sample.perSecond;
const p50: Value = (sample) => sample.p50Ms;
const p99: Value = (sample) => sample.p99Ms;
const kilobytes: Value = (sample) => sample.kilobytes;
const cpuMicroseconds: Value = (sample) => (sample.perCpuSecond === undefined ? undefined : 1e6 / sample.perCpuSecond);

interface Row {
  readonly plan: string;
  readonly what: string;
  readonly unit: string;
  readonly value: Value;
  readonly better: Figure['better'];
  /** The ratios to peers that are aimed at. */
  readonly aims?: { readonly [peer in ProxyName]?: number };
  /** The value itself that is aimed at. */
  readonly aim?: number;
  /** Measured anew with each peer. */
  readonly pairwise?: true;
}

const rate = { unit: '1/s', better: 'higher' } as const;
const time = { unit: 'ms', better: 'lower' } as const;
const requestAims = { haproxy: 0.7, envoy: 1.5, 'http-proxy': 2.5 } as const;

const rows: readonly Row[] = [
  {
    plan: '64 clients',
    what: 'requests per CPU second, 64 clients',
    value: perCpuSecond,
    ...rate,
    aims: requestAims,
  },
  { plan: '64 clients', what: 'requests per second, 64 clients', value: perSecond, ...rate },
  { plan: '64 clients', what: 'CPU a request, 64 clients', unit: 'us', value: cpuMicroseconds, better: 'lower' },
  {
    plan: '512 clients',
    what: 'requests per CPU second, 512 clients',
    value: perCpuSecond,
    ...rate,
    aims: requestAims,
  },
  { plan: '512 clients', what: 'requests per second, 512 clients', value: perSecond, ...rate },
  { plan: '512 clients', what: 'p99, 512 clients and their connecting', value: p99, ...time },
  { plan: '512 settled', what: 'p99, 512 clients', value: p99, ...time, aims: { haproxy: 2 } },
  { plan: '64 KiB', what: '64 KiB answers per CPU second', value: perCpuSecond, ...rate, aims: { haproxy: 0.7 } },
  { plan: '64 KiB', what: '64 KiB answers per second', value: perSecond, ...rate },
  { plan: 'new connections', what: 'new connections per second', value: perSecond, ...rate },
  { plan: 'new connections', what: 'new connections per CPU second', value: perCpuSecond, ...rate },
  { plan: '70 %', what: 'p99, both at 70 % of the slower', value: p99, ...time, pairwise: true },
  { plan: '70 %', what: 'p50, both at 70 % of the slower', value: p50, ...time, pairwise: true },
  { plan: 'memory', what: 'memory of an idle client', unit: 'KB', value: kilobytes, better: 'lower', aim: 15 },
  { plan: 'http2', what: 'HTTP/2 requests per CPU second, 10 x 32', value: perCpuSecond, ...rate },
  { plan: 'http2', what: 'HTTP/2 requests per second, 10 x 32', value: perSecond, ...rate },
];

/** The medians as comparisons, in the order of the rows. Rows of what was not measured are left out. */
export function figuresOf(samples: HttpSamples): Figure[] {
  return rows.flatMap((row) => figuresOfRow(row, samples));
}

function figuresOfRow({ plan, what, unit, value, better, aims, aim, pairwise }: Row, samples: HttpSamples): Figure[] {
  const figures: Figure[] = [];
  const alone = samples.median(plan, 'legate', value);
  if (aim !== undefined && alone !== undefined) figures.push({ what, unit, ours: alone, better, aim });
  for (const name of proxyNames) {
    if (name === 'legate') continue;
    const its = pairwise === true ? `${plan} ${name}` : plan;
    const ours = samples.median(its, 'legate', value);
    const peer = samples.median(its, name, value);
    if (ours === undefined || peer === undefined) continue;
    const ratio = aims?.[name];
    figures.push({ what, unit, ours, peer: { name, value: peer }, better, ...(ratio !== undefined && { aim: ratio }) });
  }
  return figures;
}
