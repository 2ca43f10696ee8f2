/** `ok`; `note`: worth knowing, and not in the way; `unknown`: cannot be told from here; `bad`: this is in the way. */
export type Verdict = 'ok' | 'note' | 'unknown' | 'bad';

export interface WhyDetailDocument {
  readonly text: string;
  readonly since: string | null;
}

/** One step of the way from a consumer to an instance. Times are RFC 3339. */
export interface WhyStepDocument {
  readonly name:
    | 'consumer'
    | 'store'
    | 'name'
    | 'alias'
    | 'resolver'
    | 'address'
    | 'door'
    | 'policy'
    | 'choice'
    | 'tunnel'
    | 'host'
    | 'instance'
    | 'bypass';
  readonly verdict: Verdict;
  readonly text: string;
  /** Since when it is so, where that is known. */
  readonly since: string | null;
  readonly details: readonly WhyDetailDocument[];
}

/** Answer of `GET /api/why?name=&consumer=`: the way of a connection, a verdict at each step. */
export interface WhyDocument {
  /** As asked. */
  readonly name: string;
  /** As asked; null: this host. */
  readonly consumer: string | null;
  /** The service that the name means; null where it means none. */
  readonly service: string | null;
  /** Whether no step is bad. */
  readonly fine: boolean;
  readonly steps: readonly WhyStepDocument[];
  /** The one thing to do: about the first step that is bad, else about the first that is not as it should be. */
  readonly fix: string | null;
  /** How this host's links to the service fared; null without one. */
  readonly traffic: {
    readonly active: number;
    readonly total: number;
    readonly failed: number;
    /** Refused or cut by policy. */
    readonly denied: number;
    readonly lastError: { readonly at: string; readonly message: string } | null;
  } | null;
  /** The last changes on the way, newest first. */
  readonly changes: readonly { readonly at: string; readonly text: string }[];
}
