import { maxReplayBytes } from '../tcp/relay-bounds.ts';

/**
 * What was read of a request's body, as long as it is little: another instance can have it when the first one fails before it
 * has answered. While nobody takes it all of it is kept.
 */
export class KeptBody {
  #pieces: Buffer[] | undefined;
  #bytes = 0;
  #isForgotten = false;

  /** How much has come, kept or not. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Whether all that has come is still there. */
  get isWhole(): boolean {
    return !this.#isForgotten;
  }

  /** Undefined where nothing has come, or it is not there any more. */
  get pieces(): readonly Buffer[] | undefined {
    return this.#pieces;
  }

  /** `isTaken`: somebody takes it, and what is too much need not be kept. False: no more, until somebody does. */
  add(piece: Buffer, isTaken: boolean): boolean {
    this.#bytes += piece.length;
    if (this.#isForgotten) return true;
    this.#pieces ??= [];
    this.#pieces.push(piece);
    if (this.#bytes <= maxReplayBytes) return true;
    if (isTaken) this.forget();
    return isTaken;
  }

  /** Somebody has it: what is too much need not be kept any more. */
  taken(): void {
    if (this.#bytes > maxReplayBytes) this.forget();
  }

  /** Nobody is asked again, whatever else comes of it. */
  forget(): void {
    this.#pieces = undefined;
    this.#isForgotten = true;
  }

  /** For another request. */
  reset(): void {
    this.#pieces = undefined;
    this.#bytes = 0;
    this.#isForgotten = false;
  }
}
