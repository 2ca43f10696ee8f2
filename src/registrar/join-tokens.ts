import type { Clock } from '../base/clock.ts';
import { LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import type { TokenBook, TokenState } from '../pki/authority-desk.ts';
import type { Keys } from '../store/keys.ts';
import type { Entry, OperationOptions, Store, Write } from '../store/store.ts';

/** A token that has ended is remembered so long, so that whoever comes with it is told why it is refused. */
const rememberedMs = 24 * 3_600_000;
/** Tokens in the store at once. */
const maxTokens = 1000;
/** How often another's change of the same token is given way to. */
const maxTries = 20;

/** What a token is given out with. */
export interface TokenTerms {
  readonly ttlMs: number;
  readonly uses: number;
}

interface TokenRecord {
  readonly expiresAtMs: number;
  readonly uses: number;
}

/** The join tokens in the store, each under the hash of its secret. Errors are the store's. */
export class JoinTokens implements TokenBook {
  readonly #store: () => { readonly store: Store; readonly keys: Keys };
  readonly #clock: Clock;

  /** `store` throws E_STORE_AWAY while there is none. */
  constructor(options: {
    readonly store: () => { readonly store: Store; readonly keys: Keys };
    readonly clock: Clock;
  }) {
    this.#store = options.store;
    this.#clock = options.clock;
  }

  /** Stores a token, and removes those that ended long ago. E_CONFLICT when 1,000 are out. */
  async add(
    hash: string,
    terms: TokenTerms,
    options: OperationOptions = {},
  ): Promise<{ readonly expiresAtMs: number }> {
    const { store, keys } = this.#store();
    const left = await this.sweep(options);
    if (left >= maxTokens) {
      throw new LegateError('E_CONFLICT', `${maxTokens} tokens are out already`, {
        hint: 'wait until some have expired',
      });
    }
    const write = tokenWrite(keys, hash, terms, this.#clock.nowMs());
    await store.txn([{ kind: 'absent', key: write.key }], [write], options);
    return { expiresAtMs: this.#clock.nowMs() + terms.ttlMs };
  }

  async look(hash: string): Promise<TokenState> {
    const { store, keys } = this.#store();
    return this.#stateOf(await store.get(keys.tokens + hash)).state;
  }

  async spend(hash: string): Promise<TokenState> {
    const { store, keys } = this.#store();
    const key = keys.tokens + hash;
    for (let tries = 0; tries < maxTries; tries += 1) {
      const entry = await store.get(key);
      const { state, record } = this.#stateOf(entry);
      if (state !== 'valid' || entry === undefined || record === undefined) return state;
      const value = encode({ ...record, uses: record.uses - 1 });
      const { ok } = await store.txn(
        [{ kind: 'revision', key, revision: entry.revision }],
        [{ kind: 'put', key, value }],
      );
      if (ok) return 'valid';
    }
    throw new LegateError('E_CONFLICT', 'too many hosts join with this token at once', { hint: 'try again' });
  }

  /** Removes what ended long ago; how many there are left. */
  async sweep(options: OperationOptions = {}): Promise<number> {
    const { store, keys } = this.#store();
    const { entries } = await store.range(keys.tokens, options);
    let left = 0;
    for (const { key, value, revision } of entries) {
      const record = decode(value);
      if (record !== undefined && record.expiresAtMs + rememberedMs > this.#clock.nowMs()) left += 1;
      else await store.txn([{ kind: 'revision', key, revision }], [{ kind: 'delete', key }], options);
    }
    return left;
  }

  #stateOf(entry: Entry | undefined): { readonly state: TokenState; readonly record?: TokenRecord } {
    const record = entry === undefined ? undefined : decode(entry.value);
    if (record === undefined) return { state: 'unknown' };
    if (record.expiresAtMs <= this.#clock.nowMs()) return { state: 'expired', record };
    return { state: record.uses > 0 ? 'valid' : 'spent', record };
  }
}

/** What stores a token, for those who write more with it. */
export function tokenWrite(
  keys: Keys,
  hash: string,
  { ttlMs, uses }: TokenTerms,
  nowMs: number,
): Write & { kind: 'put' } {
  return { kind: 'put', key: keys.tokens + hash, value: encode({ expiresAtMs: Math.trunc(nowMs + ttlMs), uses }) };
}

function encode(record: TokenRecord): Uint8Array {
  return new TextEncoder().encode(JSON.stringify({ v: 1, ...record }));
}

function decode(value: Uint8Array): TokenRecord | undefined {
  try {
    const fields = new Fields(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(value)));
    fields.integer('v', 1, 1);
    return { expiresAtMs: fields.integer('expiresAtMs', 0, 8.64e15), uses: fields.integer('uses', 0, 1_000_000) };
  } catch (error) {
    if (error instanceof FieldFault || error instanceof SyntaxError || error instanceof TypeError) return undefined;
    throw error;
  }
}
