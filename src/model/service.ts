import type { Protocol } from './instance.ts';

export const balances = ['round-robin', 'least-connections', 'p2c-latency', 'random', 'hash'] as const;
export type Balance = (typeof balances)[number];

/** The balances that this version can do; the others are a fault that says so. */
export const supportedBalances: readonly Balance[] = ['round-robin', 'least-connections', 'random'];

export const defaultBalance: Balance = 'round-robin';

/** What users set for a service, for the whole mesh. */
export interface ServiceSettings {
  readonly port?: number;
  readonly protocol?: Protocol;
  readonly balance?: Balance;
}

/** The settings of a service by name. */
export const serviceFields = ['port', 'protocol', 'balance'] as const;
export type ServiceField = (typeof serviceFields)[number];

/** What is stored at `services/<name>`: port and protocol are those configured, else of the first instance. */
export interface ServiceRecord {
  readonly name: string;
  readonly port: number;
  readonly protocol: Protocol;
  readonly balance: Balance;
  /** The virtual address claimed for it, if any. */
  readonly vip?: string;
  /** The settings that nobody chose: taken from an instance, or the default. Where it is absent all were chosen. */
  readonly derived?: readonly ServiceField[];
  /**
   * The id of the host that made it for a declared link (`legate.links=cache=redis@6379`), while no instance has come. That
   * host takes it back when nobody there declares the link any more.
   */
  readonly awaitedBy?: string;
}
