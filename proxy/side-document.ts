/** What one side of a service's splits has carried in one process; see `SplitSide`. The figures only grow. */
export interface SideDocument {
  readonly service: string;
  readonly tag: string;
  readonly requests: number;
  readonly errors: number;
  readonly seconds: number;
}

/** All sides of one data-plane process; `from` is another one for each, also for those that take the place of others. */
export interface SidesOfProcess {
  readonly from: string;
  readonly sides: readonly SideDocument[];
}
