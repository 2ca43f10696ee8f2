import { randomFillSync } from 'node:crypto';

const digits = Uint8Array.from(Buffer.from('0123456789abcdef', 'latin1'));

/**
 * Makes ids of requests and connections: 32 lower-case hexadecimal digits (the trace-id of W3C Trace Context). They have to
 * be different, and nothing is kept safe by them: so they are the numbers of a generator (xoshiro128**) that begins at
 * random, which takes a hundredth of what the system's random bytes do.
 */
export class TraceIds {
  static readonly length = 32;
  readonly #state = randomFillSync(new Uint32Array(4));
  readonly #text = Buffer.alloc(TraceIds.length);

  next(): string {
    this.put(this.#text, 0);
    return this.#text.toString('latin1');
  }

  /** Writes one into `out`. */
  put(out: Uint8Array, at: number): void {
    for (let word = 0; word < 4; word += 1) {
      let bits = this.#number();
      for (let digit = 0; digit < 8; digit += 1) {
        out[at + 8 * word + digit] = digits[bits & 15] as number;
        bits >>>= 4;
      }
    }
  }

  #number(): number {
    const state = this.#state;
    const zero = state[0] as number;
    const one = state[1] as number;
    const two = state[2] as number;
    const three = state[3] as number;
    const scaled = Math.imul(one, 5);
    const result = Math.imul((scaled << 7) | (scaled >>> 25), 9);
    const next = three ^ one;
    state[2] = two ^ zero ^ (one << 9);
    state[1] = one ^ two ^ zero;
    state[0] = zero ^ next;
    state[3] = (next << 11) | (next >>> 21);
    return result;
  }
}
