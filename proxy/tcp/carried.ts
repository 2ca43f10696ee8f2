/** A connection that this process carries, whichever way. */
export interface Carried {
  /** Begins to connect. */
  start(): void;
  /** Resets both sides. */
  cut(): void;
  /** Lets the kernel look now and then whether the ends on this host still exist. */
  keepAlive(): void;
  /** The id of the instance that it goes to now. */
  readonly backendId: string | undefined;
}

/** What a connection is counted under. */
export interface Account {
  /** The service's name. */
  readonly service: string;
  begin(): void;
  end(): void;
}

/** Who a connection stands for. */
export interface Consumer {
  readonly name: string;
  /** Whether it declares a link to the service. */
  readonly declared: boolean;
}
