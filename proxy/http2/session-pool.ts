import type { Backend } from '../balance/backend.ts';
import { idleSessionMs, maxSessionsPerInstance } from './bounds.ts';
import type { InstanceSession } from './instance-session.ts';

/** The connections to instances over which this process asks, for all its clients together. */
export class SessionPool {
  readonly #sessions = new Map<Backend, InstanceSession[]>();
  readonly #limits = new WeakMap<Backend, number>();
  #size = 0;

  /** Those that take further streams. */
  get size(): number {
    return this.#size;
  }

  /** The streams that go over them. */
  get streams(): number {
    let streams = 0;
    for (const sessions of this.#sessions.values()) for (const session of sessions) streams += session.users;
    return streams;
  }

  /** One that has room for another stream of this owner, with the fewest; `full`: none has, and there may be no more. */
  take(backend: Backend, owner: string): InstanceSession | 'full' | undefined {
    const { place } = backend;
    let best: InstanceSession | undefined;
    let count = 0;
    for (const session of this.#sessions.get(backend) ?? []) {
      if (session.owner !== owner || session.place !== place) continue;
      count += 1;
      if (session.hasRoom && (best === undefined || session.users < best.users)) best = session;
    }
    if (best === undefined && count >= maxSessionsPerInstance) return 'full';
    return best;
  }

  /** How many streams the instance last took over one connection; undefined while it has not said. */
  limitOf(backend: Backend): number | undefined {
    return this.#limits.get(backend);
  }

  limited(backend: Backend, limit: number): void {
    this.#limits.set(backend, limit);
  }

  add(session: InstanceSession): void {
    const sessions = this.#sessions.get(session.backend);
    if (sessions === undefined) this.#sessions.set(session.backend, [session]);
    else sessions.push(session);
    this.#size += 1;
  }

  /** It takes no further streams. */
  remove(session: InstanceSession): void {
    const sessions = this.#sessions.get(session.backend);
    const index = sessions?.indexOf(session) ?? -1;
    if (sessions === undefined || index < 0) return;
    sessions.splice(index, 1);
    this.#size -= 1;
    if (sessions.length === 0) this.#sessions.delete(session.backend);
  }

  /** Closes what nobody has used for long or what leads elsewhere by now. To be called now and then. */
  sweep(nowMs: number): void {
    for (const session of this.#all()) {
      session.tick(nowMs);
      const isOld = session.place !== session.backend.place;
      if (isOld || (session.users === 0 && nowMs - session.idleSinceMs >= idleSessionMs)) session.close();
    }
  }

  /** Nobody else may use what was opened for this owner. */
  closeOf(owner: string): void {
    for (const session of this.#all()) if (session.owner === owner) session.close();
  }

  close(): void {
    for (const session of this.#all()) session.destroy();
  }

  #all(): InstanceSession[] {
    return [...this.#sessions.values()].flat();
  }
}
