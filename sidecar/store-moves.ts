import { rm } from 'node:fs/promises';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError } from '../src/base/errors.ts';
import { eachChange } from '../src/base/feed.ts';
import { readFileIfAny, writeFileAtomically } from '../src/base/files.ts';
import type { Log } from '../src/base/log.ts';
import type { Config, StoreConfig } from '../src/config/config.ts';
import { decodeMarker, describeTarget, encodeMarker, type MovedTo, readMarker } from '../src/registrar/store-marker.ts';
import type { Store } from '../src/store/store.ts';
import type { StoreSession } from './store-session.ts';
import { configLine, followedConfig, storeKeys, storeText } from './store-target.ts';

const movedId = 'store.moved';
const movingId = 'store.moving';
const maxFileBytes = 64 * 1024;

export interface StoreMovesOptions {
  /** As the file says. */
  readonly config: Config;
  readonly hostId: string;
  /** `moved.json` in the data directory. */
  readonly path: string;
  /** The configuration as it is in the file by now; undefined when it has faults. */
  readonly reread: () => Config | undefined;
  readonly session: () => Pick<StoreSession, 'use' | 'config' | 'endLingering'>;
  readonly log: Log;
  readonly conditions: Conditions;
}

/**
 * Which store this sidecar is to use: the one of its configuration file, or the one to which the mesh has moved from there.
 * It goes after the mesh by itself where that takes nothing but addresses: what a store says is never a reason to send a
 * password to somebody; else the file may have been prepared: it is read again then. Whether it goes or not, it says what to write into the file.
 */
export class StoreMoves {
  readonly #options: StoreMovesOptions;
  #file: Config;
  #holds = false;

  constructor(options: StoreMovesOptions) {
    this.#options = options;
    this.#file = options.config;
  }

  /** As the file says now. */
  get file(): Config {
    return this.#file;
  }

  /** The store to begin with. One of our own is asked first where the mesh is; others may be gone since it left them. */
  first(): StoreConfig {
    const { store } = this.#file;
    if (store.kind === 'embedded') return store;
    const to = this.#remembered();
    return (to && this.#decide(to)) ?? store;
  }

  /** What a store that is about to be used says of where to go instead. */
  async redirect(store: Store, config: StoreConfig, signal: AbortSignal): Promise<StoreConfig | undefined> {
    const marker = await readMarker(store, storeKeys(this.#file.mesh, config), { signal });
    if (marker?.state !== 'moved') return undefined;
    return this.#decide(marker.to, config);
  }

  /** Follows what the store in use says of moves. */
  async watch(store: Store, config: StoreConfig, signal: AbortSignal): Promise<void> {
    const { conditions } = this.#options;
    const { moved } = storeKeys(this.#file.mesh, config);
    try {
      await eachChange(store.watch(moved, { signal }), (change) => {
        const entries = change.kind === 'reset' ? change.items : change.puts;
        const entry = entries.find(({ key }) => key === moved);
        if (entry === undefined) {
          if (change.kind === 'reset' || change.deletes.includes(moved)) conditions.clear(movingId);
          return;
        }
        const { state, to } = decodeMarker(entry.value);
        if (state === 'moved') {
          conditions.clear(movingId);
          if (!this.#holds) this.#follow(to, config);
        } else {
          const message = `the mesh is being moved to ${describeTarget(to)}: keys and settings are not written meanwhile`;
          conditions.raise(movingId, 'note', message, 'it takes a moment; a move that died is forgotten by itself');
        }
      });
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      conditions.clear(movingId);
    }
  }

  /** While this sidecar itself copies the mesh it goes after it only when the copy has let go of the target. */
  hold(): void {
    this.#holds = true;
  }

  /** Ends `hold`; goes to where the copy ended, if it did, with the files that the copy was given. */
  release(copied?: { readonly to: MovedTo; readonly config: StoreConfig }): void {
    this.#holds = false;
    if (copied === undefined) return;
    this.#decide(copied.to);
    void this.#options.session().use(copied.config, { linger: true });
  }

  /** Another configuration was loaded: a changed store is gone to at once. */
  async fileSays(next: Config): Promise<void> {
    const before = this.#file;
    this.#file = next;
    if (isSame(before.store, next.store)) return;
    const { conditions, path, session } = this.#options;
    await rm(path, { force: true }).catch(() => undefined);
    conditions.clear(movedId);
    if (isSame(session().config, next.store)) {
      if (next.store.kind !== 'embedded') await session().endLingering();
      return;
    }
    await session().use(next.store);
    if (next.store.kind !== 'embedded' || next.store.listen === undefined) await session().endLingering();
  }

  #follow(to: MovedTo, from: StoreConfig | undefined): void {
    const target = this.#decide(to, from);
    if (target === undefined || isSame(target, from)) return;
    this.#options.log.info('the mesh has moved and is followed', { 'store.where': describeTarget(to) });
    void this.#options.session().use(target, { linger: true });
  }

  /** Where to go; undefined when this sidecar cannot by itself. Says in any case what the file should say. */
  #decide(to: MovedTo, from?: StoreConfig): StoreConfig | undefined {
    const { conditions, hostId } = this.#options;
    const target = followedConfig(to, this.#file, hostId) ?? this.#prepared(to);
    const line = `\`${configLine(to, hostId)}\``;
    const where = describeTarget(to);
    if (target === undefined) {
      const message = `the mesh has moved to ${where}, and this sidecar cannot follow by itself: it takes files that its configuration does not name`;
      conditions.raise(movedId, 'error', message, `write ${line} into the configuration file and send SIGHUP`);
      return undefined;
    }
    if (isSame(target, from)) return undefined;
    if (isSame(target, this.#file.store)) {
      conditions.clear(movedId);
      return target;
    }
    const message = `the mesh has moved to ${where}; the file still says ${storeText(this.#file.store)}`;
    conditions.raise(movedId, 'warning', message, `write ${line} into the configuration file (and SIGHUP)`);
    this.#remember(to);
    return target;
  }

  /** The store of the file, where that was changed to name the place to which the mesh has moved. */
  #prepared(to: MovedTo): StoreConfig | undefined {
    const next = this.#options.reread();
    if (next === undefined || next.store.kind === 'embedded' || next.store.kind !== to.kind) return undefined;
    const { endpoints, prefix } = next.store;
    if (prefix !== to.prefix || !endpoints.some(({ text }) => to.endpoints.includes(text))) return undefined;
    this.#file = next;
    return next.store;
  }

  #remember(to: MovedTo): void {
    const { path, log } = this.#options;
    const marker = Buffer.from(encodeMarker({ state: 'moved', atMs: 0, to })).toString();
    const text = JSON.stringify({ v: 1, from: textOf(this.#file.store), marker });
    writeFileAtomically(path, [`${text}\n`]).catch((error: unknown) =>
      log.warn('where the mesh has moved could not be remembered', { 'store.reason': describeError(error) }),
    );
  }

  /** Where the mesh had gone from the store that the file names. */
  #remembered(): MovedTo | undefined {
    try {
      const text = readFileIfAny(this.#options.path, maxFileBytes);
      const document =
        text === undefined ? undefined : (JSON.parse(text) as { from?: unknown; marker?: unknown } | null);
      if (document?.from !== textOf(this.#file.store) || typeof document.marker !== 'string') return undefined;
      const { state, to } = decodeMarker(Buffer.from(document.marker));
      return state === 'moved' ? to : undefined;
    } catch (error) {
      this.#options.log.warn('where the mesh has moved could not be read', { 'store.reason': describeError(error) });
      return undefined;
    }
  }
}

export function isSame(a: StoreConfig | undefined, b: StoreConfig | undefined): boolean {
  return a === b || (a !== undefined && b !== undefined && textOf(a) === textOf(b));
}

function textOf(store: StoreConfig): string {
  return JSON.stringify(store);
}
