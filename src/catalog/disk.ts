import type { Clock } from '../base/clock.ts';
import type { Conditions } from '../base/conditions.ts';
import { describeError, systemCode } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { readBounded, writeFileAtomically } from '../base/files.ts';
import type { Log } from '../base/log.ts';
import type { CounterCell, Metrics } from '../base/metrics.ts';
import { nameFault } from '../model/names.ts';
import { Bell } from './bell.ts';
import type { SavedBrake } from './brake.ts';
import type { Catalog } from './catalog.ts';
import {
  aliveDocument,
  type Decoded,
  hostDocument,
  hostIdFault,
  instanceDocument,
  readAlive,
  readHost,
  readInstance,
  readService,
  readVipClaim,
  serviceDocument,
  vipClaimDocument,
} from './codec.ts';
import type { SavedState, Stamped } from './saved-state.ts';

const fileVersion = 1;
/** At 10,000 instances the file has about 5 MB. */
const maxFileBytes = 256 * 1024 * 1024;
const maxEntries = 1_000_000;
const maxTimeMs = 8.64e15;
/** A change waits this long for others to be written with it. */
const debounceMs = 500;
/** The whole is written each time, so that under constant change a write is followed by a pause of this many times it. */
const restFactor = 10;
const maxRestMs = 10_000;
const retryMs = 5000;
/** While hosts are lost, for how long is written this often though nothing changes; a crash forgets no more than that. */
const recountMs = 600_000;
/** Characters that are written at a time. */
const partLength = 256 * 1024;

const loadId = 'catalog.disk.load';
const writeId = 'catalog.disk.write';

export interface SnapshotFileOptions {
  /** `snapshot.json` in the data directory. */
  readonly path: string;
  /** The mesh that the file must be of, where that is known before the store is reached. */
  readonly meshId?: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/** The last picture of the mesh on disk, with which a sidecar starts when the store or Docker is not there yet. */
export class SnapshotFile {
  readonly #options: SnapshotFileOptions;
  readonly #written: CounterCell;
  readonly #failed: CounterCell;

  constructor(options: SnapshotFileOptions) {
    this.#options = options;
    this.#written = options.metrics.counter('legate_catalog_disk_writes_total', 'Snapshots written to disk.');
    this.#failed = options.metrics.counter(
      'legate_catalog_disk_failures_total',
      'Snapshots that could not be written.',
    );
  }

  /** What the last run left. Undefined when there is nothing usable; a condition then says why, unless it is the first run. */
  async load(): Promise<SavedState | undefined> {
    const { path, conditions, log } = this.#options;
    try {
      const text = await readBounded(path, maxFileBytes);
      if (text === undefined) return undefined;
      if (typeof text !== 'string')
        throw new FieldFault(`it has ${text.tooLargeBytes} bytes, more than ${maxFileBytes}`);
      const { saved, skipped } = parseSaved(text, this.#options.meshId);
      if (skipped.length > 0) this.#complain(`${skipped.length} entries of ${path} cannot be read: ${skipped[0]}`);
      else conditions.clear(loadId);
      log.info('the last snapshot was read', {
        'catalog.instances': saved.instances.size,
        'catalog.services': saved.services.size,
      });
      return saved;
    } catch (error) {
      this.#complain(`the last snapshot ${path} is not used: ${describeError(error)}`);
      return undefined;
    }
  }

  /**
   * Writes the catalog's state after each change and once more when aborted; resolves after that. A failing disk is
   * reported and tried again; nothing else depends on it.
   */
  async keep(catalog: Catalog, signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    const changed = new Bell();
    changed.ring();
    const unsubscribe = catalog.snapshots.subscribe(() => changed.ring());
    let cancelRecount = (): void => undefined;
    const recount = (): void => {
      cancelRecount = clock.after(recountMs, () => {
        if (catalog.countsLost) changed.ring();
        recount();
      });
    };
    recount();
    try {
      while (!signal.aborted) {
        await changed.wait(signal);
        await clock.sleep(debounceMs, signal).catch(() => undefined);
        if (signal.aborted) break;
        // Real time, whatever clock the rest follows: so is the disk's.
        const beganMs = performance.now();
        const written = await this.write(catalog);
        if (!written) changed.ring();
        const restMs = Math.min(restFactor * (performance.now() - beganMs), maxRestMs);
        await clock.sleep(written ? restMs : retryMs, signal).catch(() => undefined);
      }
    } finally {
      unsubscribe();
      cancelRecount();
    }
    await this.write(catalog);
  }

  /** Writes the present state; false when the disk refused, which has then been reported. */
  async write(catalog: Catalog): Promise<boolean> {
    const saved = catalog.saved();
    if (saved === undefined) return true;
    const { path, conditions } = this.#options;
    try {
      await writeFileAtomically(path, this.#parts(saved));
      this.#written.value += 1;
      conditions.clear(writeId);
      return true;
    } catch (error) {
      this.#failed.value += 1;
      const full = systemCode(error) === 'ENOSPC' || systemCode(error) === 'EDQUOT';
      const hint = full ? 'free some space on the disk of data_dir' : 'check data_dir and its permissions';
      const message = `the snapshot cannot be written to ${path}: ${describeError(error)}`;
      conditions.raise(writeId, 'warning', message, `${hint}; after a restart the last written state is used`);
      return false;
    }
  }

  #complain(message: string): void {
    const hint = 'it is written anew as soon as the store has been read; until then nothing or less is known';
    this.#options.conditions.raise(loadId, 'warning', message, hint);
  }

  /** The file's text in parts, so that writing a large one lets the event loop turn in between. */
  *#parts(saved: SavedState): Generator<string> {
    const { meshId, storeId, revision, confirmedAtMs } = saved;
    const head = JSON.stringify({ v: fileVersion, meshId, storeId: storeId ?? null, revision, confirmedAtMs });
    let part = head.slice(0, -1);
    for (const [table, rows, document] of [
      ['hosts', saved.hosts, hostDocument],
      ['alive', saved.alive, aliveDocument],
      ['services', saved.services, serviceDocument],
      ['vips', saved.vips, vipClaimDocument],
      ['instances', saved.instances, instanceDocument],
    ] as [string, ReadonlyMap<string, Stamped<object>>, (record: object) => object][]) {
      part += `,\n"${table}":[`;
      let separator = '\n';
      for (const [key, { record, revision: stamp }] of rows) {
        part += `${separator}[${JSON.stringify(key)},${JSON.stringify(stamp)},${JSON.stringify(document(record))}]`;
        separator = ',\n';
        if (part.length >= partLength) {
          yield part;
          part = '';
        }
      }
      part += ']';
    }
    part += `,\n"brakes":${JSON.stringify([...saved.brakes])}`;
    part += `,\n"lost":${JSON.stringify([...saved.lost])}`;
    yield `${part}}\n`;
  }
}

/** Exported for its tests. Throws FieldFault or SyntaxError when the file as a whole is not usable. */
export function parseSaved(text: string, expectedMeshId?: string): { saved: SavedState; skipped: string[] } {
  const fields = new Fields(JSON.parse(text));
  const version = fields.integer('v', 1, Number.MAX_SAFE_INTEGER);
  if (version > fileVersion) throw new FieldFault(`it is of a newer version (${version})`);
  const meshId = fields.text('meshId', 64, 1);
  if (expectedMeshId !== undefined && meshId !== expectedMeshId) throw new FieldFault('it is of another mesh');
  const skipped: string[] = [];
  const rows = <T>(table: string, read: (document: unknown, key: string) => Decoded<T>): Map<string, Stamped<T>> => {
    const found = new Map<string, Stamped<T>>();
    for (const row of fields.list(table, maxEntries)) {
      const [key, revision, document] = Array.isArray(row) ? (row as unknown[]) : [];
      const usable =
        typeof key === 'string' && key.length <= 1024 && typeof revision === 'string' && revision.length <= 200;
      const result = usable ? read(document, key) : ({ ok: false, reason: `a row of ${table} is not one` } as const);
      if (!usable || !result.ok) skipped.push(result.ok ? table : `${table}: ${result.reason}`);
      else found.set(key, { record: result.value, revision });
    }
    return found;
  };
  const saved: SavedState = {
    meshId,
    storeId: fields.raw('storeId') === null ? undefined : fields.text('storeId', 200),
    revision: fields.text('revision', 200),
    confirmedAtMs: fields.integer('confirmedAtMs', 0, Number.MAX_SAFE_INTEGER),
    hosts: rows('hosts', readHost),
    alive: rows('alive', readAlive),
    services: rows('services', readService),
    vips: rows('vips', readVipClaim),
    instances: rows('instances', (document, key) => {
      const slash = key.indexOf('/');
      const fault = hostIdFault(key.slice(0, Math.max(0, slash)));
      return fault === undefined
        ? readInstance(document, key.slice(slash + 1))
        : { ok: false, reason: `its host ${fault}` };
    }),
    brakes: readBrakes(fields, skipped),
    lost: readLost(fields, skipped),
  };
  return { saved, skipped };
}

/** By host; a damaged one is left out and told, and begins anew. A file of an earlier version has none. */
function readLost(fields: Fields, skipped: string[]): Map<string, number> {
  const lost = new Map<string, number>();
  for (const row of fields.has('lost') ? fields.list('lost', maxEntries) : []) {
    const [hostId, ms] = Array.isArray(row) ? (row as unknown[]) : [];
    const usable = typeof hostId === 'string' && hostIdFault(hostId) === undefined && Number.isSafeInteger(ms);
    if (usable && (ms as number) >= 0) lost.set(hostId, ms as number);
    else skipped.push('lost: a row is not one');
  }
  return lost;
}

/** By service; a damaged one is left out and told. A file of an earlier version has none. */
function readBrakes(fields: Fields, skipped: string[]): Map<string, SavedBrake> {
  const brakes = new Map<string, SavedBrake>();
  for (const row of fields.has('brakes') ? fields.list('brakes', maxEntries) : []) {
    try {
      brakes.set(...readBrake(row));
    } catch (error) {
      if (!(error instanceof FieldFault)) throw error;
      skipped.push(`brakes: ${error.message}`);
    }
  }
  return brakes;
}

function readBrake(row: unknown): [string, SavedBrake] {
  const [service, document] = Array.isArray(row) ? (row as unknown[]) : [];
  if (typeof service !== 'string' || nameFault(service) !== undefined) throw new FieldFault('a brake is of no service');
  const fields = new Fields(document, `brakes.${service}`);
  const turned = fields.list('turned', maxEntries).map((item, index) => {
    const turn = new Fields(item, `brakes.${service}.turned[${index}]`);
    const byLoss = turn.has('byLoss') && turn.flag('byLoss');
    const atMs = turn.integer('atMs', 0, maxTimeMs);
    return { key: turn.text('key', 1024, 1), atMs, passed: turn.flag('passed'), ...(byLoss && { byLoss }) };
  });
  if (!fields.has('episode')) return [service, { turned, episode: undefined }];
  const episode = fields.fields('episode');
  const beganMs = episode.has('beganMs') ? episode.integer('beganMs', 0, maxTimeMs) : undefined;
  const sinceMs = episode.integer('sinceMs', 0, maxTimeMs);
  const untilMs = episode.integer('untilMs', 0, maxTimeMs);
  const keepsLost = episode.has('keepsLost') && episode.flag('keepsLost');
  return [service, { turned, episode: { sinceMs, untilMs, beganMs, ...(keepsLost && { keepsLost }) } }];
}
