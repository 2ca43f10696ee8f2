import { Counter, collectDefaultMetrics, Gauge, Histogram, type Metric, Registry } from 'prom-client';

/** Values for the declared label names of a metric, in order. */
type LabelValues = readonly string[];

/** A number that only grows. Its `value` may be added to directly on a hot path; it is read when scraped. */
export interface CounterCell {
  value: number;
}

/** What a gauge shows: values by label values, in the order of the label names. */
type GaugeSample = () => Iterable<readonly [labels: LabelValues, value: number]>;

/** A metric with its values, as it travels between the processes of a sidecar. */
export interface Figure {
  readonly name: string;
  readonly help: string;
  readonly type: string;
  readonly values: readonly FigureValue[];
}

export interface FigureValue {
  /** That of the metric, or with `_bucket`, `_sum` or `_count` behind it for those of a histogram. */
  readonly metricName: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
}

export type Figures = readonly Figure[];

/** The buckets of a histogram, one count more than there are bounds; plain numbers for hot paths. */
export interface HistogramCell {
  readonly counts: Float64Array;
  sum: number;
}

/** Adds one observation to a cell of these bounds, ascending. */
export function observe(cell: HistogramCell, bounds: readonly number[], value: number): void {
  let bucket = 0;
  while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket += 1;
  cell.counts[bucket] = (cell.counts[bucket] as number) + 1;
  cell.sum += value;
}

interface HistogramFamily {
  readonly cells: Map<string, { labels: LabelValues; cell: HistogramCell }>;
}

interface Family {
  readonly cells: Map<string, { labels: LabelValues; cell: CounterCell }>;
}

const namePattern = /^legate_[a-z0-9]+(_[a-z0-9]+)+$/;

/**
 * The process's metrics, named `legate_<part>_<what>_<unit>`. Counters on hot paths are plain numbers (`CounterCell`),
 * collected when somebody scrapes, so that counting costs an addition. The number of label combinations a family may
 * have is bounded; beyond it all further ones count as `other`.
 */
export class Metrics {
  static readonly maxSeriesPerFamily = 2000;
  readonly #registry = new Registry();
  readonly #families = new Map<string, Family>();
  readonly #histogramFamilies = new Map<string, HistogramFamily>();
  readonly #gauges = new Map<string, { sample: GaugeSample }>();
  readonly #histograms = new Map<string, Histogram>();
  /** Where the figures of other processes come from. */
  readonly #others: (() => Promise<Figures>)[] = [];

  /** Adds the runtime's own metrics (`legate_process_…`, `legate_nodejs_…`), for the one instance that a daemon has. */
  withRuntimeMetrics(): this {
    collectDefaultMetrics({ register: this.#registry, prefix: 'legate_' });
    return this;
  }

  /** A counter cell; the same name and labels give the same cell. Names end in `_total`. */
  counter(name: string, help: string, labels: Readonly<Record<string, string>> = {}): CounterCell {
    const family = this.#families.get(name) ?? this.#addFamily(name, help, Object.keys(labels));
    const { values, key } = seriesOf(family.cells, labels);
    let entry = family.cells.get(key);
    if (entry === undefined) {
      entry = { labels: values, cell: { value: 0 } };
      family.cells.set(key, entry);
    }
    return entry.cell;
  }

  /**
   * A gauge whose samples are asked for at each scrape. The same name again replaces who is asked: a component that is
   * made anew after a failure takes the place of the one before.
   */
  gauge(name: string, help: string, labelNames: readonly string[], sample: GaugeSample): void {
    const known = this.#gauges.get(name);
    if (known !== undefined) {
      known.sample = sample;
      return;
    }
    checkName(name);
    const source = { sample };
    this.#gauges.set(name, source);
    new Gauge({
      name,
      help,
      labelNames: [...labelNames],
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const [labels, value] of source.sample()) {
          this.set(Object.fromEntries(labelNames.map((label, index) => [label, labels[index] ?? ''])), value);
        }
      },
    });
  }

  /** A histogram, one for a name; `observe` takes the metric's unit. Not for per-byte or per-packet paths. */
  histogram(name: string, help: string, buckets: readonly number[]): { observe(value: number): void } {
    const known = this.#histograms.get(name);
    if (known !== undefined) return known;
    checkName(name);
    const histogram = new Histogram({ name, help, buckets: [...buckets], registers: [this.#registry] });
    this.#histograms.set(name, histogram);
    return histogram;
  }

  /** A cell of a histogram with labels; the same name and labels give the same cell. `observe` adds to it. */
  histogramCell(
    name: string,
    help: string,
    bounds: readonly number[],
    labels: Readonly<Record<string, string>>,
  ): HistogramCell {
    const family =
      this.#histogramFamilies.get(name) ?? this.#addHistogramFamily(name, help, bounds, Object.keys(labels));
    const { values, key } = seriesOf(family.cells, labels);
    let entry = family.cells.get(key);
    if (entry === undefined) {
      entry = { labels: values, cell: { counts: new Float64Array(bounds.length + 1), sum: 0 } };
      family.cells.set(key, entry);
    }
    return entry.cell;
  }

  /** Shows what `figures` gives together with this process's own: what has the same name and labels is added up. */
  addOthers(figures: () => Promise<Figures>): void {
    this.#others.push(figures);
  }

  /** This process's own metrics as they are now. */
  async figures(): Promise<Figures> {
    const metrics = await this.#registry.getMetricsAsJSON();
    return metrics.map(({ name, help, type, values }) => ({
      name,
      help,
      type: String(type),
      values: values.map((each) => ({
        metricName: 'metricName' in each && typeof each.metricName === 'string' ? each.metricName : name,
        labels: Object.fromEntries(Object.entries(each.labels).map(([label, text]) => [label, text ?? ''])),
        value: each.value,
      })),
    }));
  }

  /** The text exposition format that Prometheus scrapes. */
  async exposition(): Promise<string> {
    if (this.#others.length === 0) return this.#registry.metrics();
    const all = await Promise.all([this.figures(), ...this.#others.map((figures) => figures())]);
    const registry = new Registry();
    for (const figure of addFigures(all)) {
      registry.registerMetric({ name: figure.name, get: async () => figure } as unknown as Metric);
    }
    return registry.metrics();
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  #addHistogramFamily(name: string, help: string, bounds: readonly number[], labelNames: string[]): HistogramFamily {
    checkName(name);
    const family: HistogramFamily = { cells: new Map() };
    this.#histogramFamilies.set(name, family);
    const get = async (): Promise<object> => ({
      name,
      help,
      type: 'histogram',
      aggregator: 'sum',
      values: [...family.cells.values()].flatMap(({ labels, cell }) =>
        histogramValues(
          name,
          Object.fromEntries(labelNames.map((label, at) => [label, labels[at] ?? ''])),
          bounds,
          cell,
        ),
      ),
    });
    this.#registry.registerMetric({ name, get } as unknown as Metric);
    return family;
  }

  #addFamily(name: string, help: string, labelNames: string[]): Family {
    checkName(name);
    const family: Family = { cells: new Map() };
    this.#families.set(name, family);
    new Counter({
      name,
      help,
      labelNames,
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const { labels, cell } of family.cells.values()) {
          this.inc(Object.fromEntries(labelNames.map((label, index) => [label, labels[index] ?? ''])), cell.value);
        }
      },
    });
    return family;
  }
}

/** The series of these labels, or that of all others once a family has too many. */
function seriesOf(
  cells: ReadonlyMap<string, unknown>,
  labels: Readonly<Record<string, string>>,
): { readonly values: LabelValues; readonly key: string } {
  const values = Object.values(labels);
  const key = values.join('\u0000');
  if (cells.has(key) || cells.size < Metrics.maxSeriesPerFamily) return { values, key };
  const others = values.map(() => 'other');
  return { values: others, key: others.join('\u0000') };
}

/** Prometheus counts in each bucket also what is in those below. */
function histogramValues(
  name: string,
  labels: Readonly<Record<string, string>>,
  bounds: readonly number[],
  { counts, sum }: HistogramCell,
): FigureValue[] {
  const values: FigureValue[] = [];
  let count = 0;
  counts.forEach((each, bucket) => {
    count += each;
    values.push({ metricName: `${name}_bucket`, labels: { le: bounds[bucket] ?? '+Inf', ...labels }, value: count });
  });
  values.push({ metricName: `${name}_sum`, labels, value: sum }, { metricName: `${name}_count`, labels, value: count });
  return values;
}

/** Adds up what has the same name and labels. */
export function addFigures(all: readonly Figures[]): Figures {
  const sums = new Map<string, { figure: Figure; values: Map<string, FigureValue> }>();
  for (const figure of all.flat()) {
    const sum = sums.get(figure.name) ?? { figure, values: new Map<string, FigureValue>() };
    sums.set(figure.name, sum);
    for (const each of figure.values) {
      const key = `${each.metricName} ${JSON.stringify(each.labels)}`;
      sum.values.set(key, { ...each, value: (sum.values.get(key)?.value ?? 0) + each.value });
    }
  }
  return [...sums.values()].map(({ figure, values }) => ({ ...figure, values: [...values.values()] }));
}

/** What of these figures only grows, and is not to shrink when the process that they are of has ended. */
export function lastingFigures(figures: Figures): Figures {
  return figures.filter(({ type }) => type !== 'gauge');
}

function checkName(name: string): void {
  if (!namePattern.test(name)) throw new Error(`metric name ${name} is not legate_<part>_<what>_<unit>`);
}
