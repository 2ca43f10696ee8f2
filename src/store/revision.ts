import type { Revision } from '../base/feed.ts';

/**
 * The text form of revisions that are numbers within one store: `<first 8 hex digits of the store id>.<number>`. The
 * store's part makes a revision of another or a replaced store recognisable, so that it is never taken for one of ours.
 */
export function formatRevision(storeId: string, number: number): Revision {
  return `${storeTag(storeId)}.${number}`;
}

/** The number of a revision of this store; undefined for text of another store or of another form. */
export function revisionNumber(storeId: string, revision: Revision): number | undefined {
  const parsed = parse(revision);
  return parsed !== undefined && parsed.tag === storeTag(storeId) ? parsed.number : undefined;
}

/** Orders revisions of one store. Those of different stores, and text of another form, get an order without meaning. */
export function compareNumberedRevisions(a: Revision, b: Revision): number {
  const left = parse(a);
  const right = parse(b);
  if (left === undefined || right === undefined || left.tag !== right.tag) return a < b ? -1 : a > b ? 1 : 0;
  return left.number - right.number;
}

function storeTag(storeId: string): string {
  return storeId.slice(0, 8);
}

function parse(revision: Revision): { readonly tag: string; readonly number: number } | undefined {
  const [, tag, digits] = /^([0-9a-f]{8})\.(0|[1-9]\d{0,15})$/.exec(revision) ?? [];
  if (tag === undefined) return undefined;
  const number = Number(digits);
  return Number.isSafeInteger(number) ? { tag, number } : undefined;
}
