import { randomBytes } from 'node:crypto';
import { isLegateError, systemCode } from '../../base/errors.ts';
import { damagedError, markFolder, type OpenedFolder, openError } from './folder.ts';
import type { Quarantine } from './quarantine.ts';
import {
  formatHead,
  formatHistory,
  type Head,
  headKey,
  historyKey,
  keyOf,
  leaseOf,
  parseHead,
  parseHistory,
  parseKey,
  parseLease,
  revisionOf,
  tables,
} from './records.ts';

/** A lease as the disk knows it. */
export interface StoredLease {
  readonly ttlMs: number;
  readonly keys: ReadonlySet<string>;
}

/** What is kept in memory of the store's content; the committer keeps it current. */
export interface StoreState {
  head: Head;
  /** History records on disk. */
  historyCount: number;
  /** Keys that exist. */
  keyCount: number;
}

export interface LoadedState {
  readonly state: StoreState;
  readonly leases: ReadonlyMap<string, StoredLease>;
  /** Whether it had been closed in good order, and nothing was lost. */
  readonly inOrder: boolean;
}

/**
 * Revisions are set aside in steps of this many. After a crash the numbering goes on behind those set aside, so that
 * even when the disk lost the end of its log no number is ever given out twice.
 */
export const reservedRevisions = 100_000;
/** When fewer than this are left, the next are set aside: more than the log of LevelDB can hold. */
export const reserveAhead = 50_000;
const pageSize = 512;

/**
 * Reads what the store must know before it can answer, makes a new store where there is none, and reads every record
 * once, so that damage is known now and not first in an emergency.
 */
export async function loadState(path: string, folder: OpenedFolder, quarantine: Quarantine): Promise<LoadedState> {
  try {
    const head = (await readHead(path, folder)) ?? (await createHead(folder));
    if (!folder.known) await markFolder(path, head.storeId);
    const history = await readHistory(folder, head);
    const leases = await readLeases(folder, quarantine);
    const keyCount = await readKeys(folder, leases, quarantine);
    const state: StoreState = { head, keyCount, historyCount: history.count };
    const inOrder = head.clean && folder.droppedBytes === 0;
    await beginNumbering(folder, state, history, inOrder);
    return { state, leases, inOrder };
  } catch (error) {
    throw isLegateError(error) || systemCode(error) === undefined ? error : openError(path, error);
  }
}

export function isCorruption(error: unknown): boolean {
  return systemCode(error) === 'LEVEL_CORRUPTION';
}

async function readHead(path: string, { level, known }: OpenedFolder): Promise<Head | undefined> {
  const record = await level.get(headKey);
  if (record !== undefined) {
    const head = parseHead(record);
    if (head === undefined) throw damagedError(path, 'its head record is damaged');
    return head;
  }
  if (known) throw damagedError(path, 'its head record is missing');
  const [first] = await level.keys({ limit: 1 }).all();
  if (first !== undefined) throw damagedError(path, 'the folder holds a LevelDB that is not a store of Legate');
  return undefined;
}

async function createHead({ level }: OpenedFolder): Promise<Head> {
  const storeId = randomBytes(8).toString('hex');
  const head: Head = { storeId, revision: 1, reserved: 1, compacted: 1, clean: true };
  await level.batch([{ type: 'put', key: headKey, value: formatHead(head) }], { sync: true });
  return head;
}

interface History {
  readonly count: number;
  /** The last revision before which one is missing or damaged: resuming from before it is impossible; 0 for none. */
  readonly brokenBefore: number;
}

async function readHistory({ level }: OpenedFolder, head: Head): Promise<History> {
  let count = 0;
  let brokenBefore = 0;
  let previous = head.compacted;
  for await (const page of pages(level.iterator(tables.history))) {
    for (const [dbKey, record] of page) {
      const revision = revisionOf(dbKey) ?? 0;
      const history = parseHistory(dbKey, record);
      const follows = revision === previous + 1 || (history !== undefined && 'gapAfter' in history);
      if (!follows || history === undefined) brokenBefore = revision;
      previous = revision;
      count += 1;
    }
  }
  if (previous !== head.revision) brokenBefore = head.revision;
  return { count, brokenBefore };
}

async function readLeases(
  { level }: OpenedFolder,
  quarantine: Quarantine,
): Promise<Map<string, StoredLease & { keys: Set<string> }>> {
  const leases = new Map<string, StoredLease & { keys: Set<string> }>();
  for await (const page of pages(level.iterator(tables.leases))) {
    for (const [dbKey, record] of page) {
      const ttlMs = parseLease(dbKey, record);
      if (ttlMs === undefined) quarantine.add(`lease ${leaseOf(dbKey)}`);
      else leases.set(leaseOf(dbKey), { ttlMs, keys: new Set() });
    }
  }
  return leases;
}

/** Ttl of a lease whose own record is gone or damaged while keys still hang on it: they must not stay for ever. */
const orphanTtlMs = 60_000;

async function readKeys(
  { level }: OpenedFolder,
  leases: Map<string, StoredLease & { keys: Set<string> }>,
  quarantine: Quarantine,
): Promise<number> {
  let count = 0;
  for await (const page of pages(level.iterator(tables.keys))) {
    for (const [dbKey, value] of page) {
      const record = parseKey(dbKey, value);
      if (record === undefined) quarantine.add(keyOf(dbKey));
      else {
        count += 1;
        if (record.lease !== undefined) {
          const lease = leases.get(record.lease) ?? { ttlMs: orphanTtlMs, keys: new Set<string>() };
          lease.keys.add(keyOf(dbKey));
          leases.set(record.lease, lease);
        }
      }
    }
  }
  return count;
}

/** Marks the store as open, and after a crash or a loss goes on behind every number that may have been given out. */
async function beginNumbering(
  { level }: OpenedFolder,
  state: StoreState,
  history: History,
  inOrder: boolean,
): Promise<void> {
  const { head } = state;
  const revision = inOrder ? head.revision : Math.max(head.reserved, head.revision) + 1;
  const compacted = Math.max(head.compacted, history.brokenBefore);
  state.head = { ...head, revision, compacted, reserved: revision + reservedRevisions, clean: false };
  const gapKey = historyKey(revision);
  await level.batch(
    [
      { type: 'put', key: headKey, value: formatHead(state.head) },
      ...(inOrder
        ? []
        : [{ type: 'put' as const, key: gapKey, value: formatHistory(gapKey, { gapAfter: head.revision }) }]),
    ],
    { sync: true },
  );
  if (!inOrder) state.historyCount += 1;
}

interface Pages<T> {
  nextv(size: number): Promise<T[]>;
  close(): Promise<void>;
}

/** Walks an iterator of LevelDB page by page and closes it in any case. */
export async function* pages<T>(iterator: Pages<T>, size = pageSize): AsyncGenerator<T[], void, undefined> {
  try {
    for (;;) {
      const page = await iterator.nextv(size);
      if (page.length === 0) return;
      yield page;
    }
  } finally {
    await iterator.close();
  }
}
