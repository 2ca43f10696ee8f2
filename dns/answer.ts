import type { Service } from '../src/catalog/snapshot.ts';
import { rcode } from './wire/constants.ts';
import type { Resource } from './wire/resource.ts';

/** An instance that exists and is not in the answer. */
export interface LeftOut {
  readonly id: string;
  readonly reason: string;
}

/** An answer of ours, before it is encoded. */
export interface Answer {
  readonly rcode: number;
  /** Whether we are the authority for the name (the AA bit). */
  readonly authoritative: boolean;
  readonly answers: readonly Resource[];
  readonly authority: readonly Resource[];
  readonly additional: readonly Resource[];
  /** The extended error for askers with EDNS (RFC 8914). */
  readonly extended: { readonly code: number; readonly text: string } | undefined;
  readonly leftOut: readonly LeftOut[];
  /** When set, the answer holds as long as the catalog has this very object. Else it is not to be kept. */
  readonly basis: Basis | undefined;
}

export interface Basis {
  readonly service: Service;
  /** Whether the address of this host's listener was asked for, and what it was. */
  readonly listener: { readonly address: string | undefined } | undefined;
  /** How often the encoded answer may be given: finite when it holds a choice of many instances. */
  readonly uses: number;
}

const nothing: Answer = {
  rcode: rcode.NOERROR,
  authoritative: true,
  answers: [],
  authority: [],
  additional: [],
  extended: undefined,
  leftOut: [],
  basis: undefined,
};

/** An answer of which only some parts are not empty. */
export function answerOf(parts: Partial<Answer>): Answer {
  return { ...nothing, ...parts };
}
