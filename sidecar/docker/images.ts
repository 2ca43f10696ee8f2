import type { Declarations } from './container.ts';

/**
 * What images declare, asked once an image: an image's id is the hash of its configuration, so that it never changes.
 * Failures are not kept.
 */
export class ImageCache {
  static readonly maxImages = 512;
  readonly #inspect: (id: string, signal: AbortSignal) => Promise<Declarations | undefined>;
  readonly #images = new Map<string, Promise<Declarations | undefined>>();

  constructor(inspect: (id: string, signal: AbortSignal) => Promise<Declarations | undefined>) {
    this.#inspect = inspect;
  }

  get size(): number {
    return this.#images.size;
  }

  /** Undefined when the engine no longer has the image. */
  async get(id: string, signal: AbortSignal): Promise<Declarations | undefined> {
    const known = this.#images.get(id);
    if (known !== undefined) {
      this.#images.delete(id);
      this.#images.set(id, known);
      return known;
    }
    const asked = this.#inspect(id, signal);
    this.#images.set(id, asked);
    const [oldest] = this.#images.keys();
    if (this.#images.size > ImageCache.maxImages && oldest !== undefined) this.#images.delete(oldest);
    try {
      const found = await asked;
      if (found === undefined) this.#images.delete(id);
      return found;
    } catch (error) {
      this.#images.delete(id);
      throw error;
    }
  }
}
