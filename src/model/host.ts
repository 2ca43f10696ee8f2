/** A machine that runs a sidecar, as stored at `hosts/<id>`. */
export interface HostRecord {
  /** Durable, made once: 16 lower-case hexadecimal digits. */
  readonly id: string;
  readonly name: string;
  /** Where other hosts reach it. */
  readonly address: string;
  /** The version of Legate that wrote the record. */
  readonly version: string;
  /** Where the host stands; hosts of one zone are nearer to each other than to all others. Absent: it does not say. */
  readonly zone?: string;
  /** Where its tunnel listens, when that is not port 7711. */
  readonly tunnelPort?: number;
}

/** A host as the catalog shows it. */
export interface Host extends HostRecord {
  readonly alive: boolean;
  readonly revision: string;
}
