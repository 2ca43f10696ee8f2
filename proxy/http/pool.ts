import type { Backend } from '../balance/backend.ts';
import type { HttpUpstream } from './upstream.ts';

/**
 * Idle connections to instances. Shorter than most servers wait themselves (Node.js 5 s), so that a request seldom meets
 * one that is just being closed.
 */
export const maxIdleMs = 4000;
/**
 * Idle connections to one instance, and to all together. Only as many are ever kept as were busy at once within
 * `maxIdleMs`; with a low bound many clients would have connections closed and opened anew all the time.
 */
export const maxIdlePerInstance = 1024;
export const maxIdle = 2048;

/** The idle connections of this process, to be used again: the one that was used last first, so that the rest can go. */
export class HttpPool {
  readonly #idle = new Map<Backend, HttpUpstream[]>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  /** One that this owner may use, idle since `usedSinceMs` (monotonic) at most; undefined when there is none. It is the caller's until given back. */
  take(backend: Backend, owner: string, usedSinceMs: number): HttpUpstream | undefined {
    const idle = this.#idle.get(backend);
    if (idle === undefined) return undefined;
    for (let index = idle.length - 1; index >= 0; index -= 1) {
      const upstream = idle[index];
      if (upstream === undefined || upstream.idleSinceMs < usedSinceMs) return undefined;
      if (upstream.owner !== owner) continue;
      this.#remove(idle, index);
      if (!upstream.destroyed) return upstream;
    }
    return undefined;
  }

  /** Keeps a connection that nobody uses any more, or closes it when there are enough. */
  give(upstream: HttpUpstream, nowMs: number): void {
    upstream.use(undefined);
    upstream.idleSinceMs = nowMs;
    const { backend } = upstream;
    let idle = this.#idle.get(backend);
    if (this.#size >= maxIdle || (idle !== undefined && idle.length >= maxIdlePerInstance)) {
      upstream.destroy();
      return;
    }
    if (idle === undefined) {
      idle = [];
      this.#idle.set(backend, idle);
    }
    idle.push(upstream);
    this.#size += 1;
  }

  /** It is gone. */
  lost(upstream: HttpUpstream): void {
    const idle = this.#idle.get(upstream.backend);
    const index = idle?.indexOf(upstream) ?? -1;
    if (idle !== undefined && index >= 0) this.#remove(idle, index);
  }

  /** Closes what has been idle for too long. To be called now and then. */
  sweep(nowMs: number): void {
    for (const [backend, idle] of this.#idle) {
      let old = 0;
      while (old < idle.length && nowMs - (idle[old]?.idleSinceMs ?? 0) >= maxIdleMs) old += 1;
      for (const upstream of idle.splice(0, old)) upstream.destroy();
      this.#size -= old;
      if (idle.length === 0) this.#idle.delete(backend);
    }
  }

  close(): void {
    for (const idle of this.#idle.values()) for (const upstream of idle) upstream.destroy();
    this.#idle.clear();
    this.#size = 0;
  }

  #remove(idle: HttpUpstream[], index: number): void {
    if (index === idle.length - 1) idle.pop();
    else idle.splice(index, 1);
    this.#size -= 1;
  }
}
