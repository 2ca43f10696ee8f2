import type { CommitRequest } from './committer.ts';
import type { Head, KeyRecord } from './records.ts';
import type { Commit } from './turn.ts';
import type { View } from './view.ts';

/** Hears of every revision once it is on disk, before its writer does. */
export interface StoreFollower {
  readonly onCommit: (commit: Commit) => void;
  /** The store was opened anew after a failure: revisions may have been skipped, history says what happened. */
  readonly onOpened: (revision: number) => void;
}

/**
 * What a server of the embedded store needs beyond the seam: whole records, transactions of its own, and the moment of
 * each commit. Methods throw E_STORE_AWAY and E_CLOSED; what reading throws passes through `readError`.
 */
export interface StoreAccess {
  readonly path: string;
  /** As of the last commit that was told. */
  head(): Head;
  keyCount(): number;
  /** The store as it is on disk now, which may be one batch ahead of `head`. It must be closed. */
  view(): View;
  record(key: string): Promise<KeyRecord | undefined>;
  submit<T>(request: CommitRequest<T>, signal?: AbortSignal): Promise<T>;
  /** Forgets history up to and including this revision. */
  compact(revision: number): Promise<void>;
  readError(error: unknown): unknown;
  follow(follower: StoreFollower): () => void;
}
