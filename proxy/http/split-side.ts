/**
 * What one side of a split has carried on this host since its first request; plain numbers that requests add to. Errors are
 * answers with 5xx, and requests that ended without a whole answer though the client stayed.
 */
export class SplitSide {
  readonly tag: string;
  requests = 0;
  errors = 0;
  /** Sum of the time from a request's head to the end of its answer. */
  seconds = 0;

  constructor(tag: string) {
    this.tag = tag;
  }
}
