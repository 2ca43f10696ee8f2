/**
 * Lets bursts of new connections in quickly. The event loop accepts one connection per listener and turn; while hundreds
 * wait, each turn also serves all connections that were accepted before, so that the last ones wait for hundreds of such
 * turns. Once connections have been accepted in a few turns in a row, the gate therefore holds everything else for some
 * milliseconds: new connections are only queued, and a running one is served once and then not read. Turns are then so
 * short that five hundred connections are in within about twenty milliseconds; with no burst the gate costs a flag.
 */
export class AcceptGate {
  /** A burst: so many turns in a row in each of which a connection was accepted. */
  static readonly burstTurns = 3;
  /** The longest that running connections are held after their last turn; they then have at least one again. */
  static readonly maxHoldMs = 20;
  /** Connections queued in one hold at most. */
  static readonly maxQueued = 1024;
  readonly #nowMs: () => number;
  #holding = false;
  #heldSinceMs: number | undefined;
  #watching = false;
  #acceptedThisTurn = false;
  #busyTurns = 0;
  #starts: (() => void)[] = [];
  #resumes: (() => void)[] = [];

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  /** Whether running connections should stop reading, and leave word with `hold`. */
  get holding(): boolean {
    return this.#holding;
  }

  /** A connection was accepted; `start` is called at once, or when the burst is in. */
  accepted(start: () => void): void {
    this.#acceptedThisTurn = true;
    if (!this.#watching) {
      this.#watching = true;
      setImmediate(this.#turn);
    }
    if (this.#holding) this.#starts.push(start);
    else start();
  }

  /** To be called while it holds: `resume` is called when it does not any more. */
  hold(resume: () => void): void {
    this.#resumes.push(resume);
  }

  /** Runs at the end of each turn while there are connections to accept in every one. */
  readonly #turn = (): void => {
    const accepted = this.#acceptedThisTurn;
    this.#acceptedThisTurn = false;
    if (!accepted) {
      this.#watching = false;
      this.#busyTurns = 0;
      if (this.#holding) this.#release();
      return;
    }
    setImmediate(this.#turn);
    if (this.#holding) {
      // The first turn still serves whatever was ready, which may take long: the time counts from its end.
      this.#heldSinceMs ??= this.#nowMs();
      const heldMs = this.#nowMs() - this.#heldSinceMs;
      if (heldMs < AcceptGate.maxHoldMs && this.#starts.length < AcceptGate.maxQueued) return;
      this.#release();
      // More are waiting: one turn for those that run, then the next hold.
      this.#busyTurns = AcceptGate.burstTurns - 1;
      return;
    }
    this.#busyTurns += 1;
    if (this.#busyTurns < AcceptGate.burstTurns) return;
    this.#holding = true;
    this.#heldSinceMs = undefined;
  };

  #release(): void {
    this.#holding = false;
    const starts = this.#starts;
    const resumes = this.#resumes;
    this.#starts = [];
    this.#resumes = [];
    for (const resume of resumes) resume();
    for (const start of starts) start();
  }
}
