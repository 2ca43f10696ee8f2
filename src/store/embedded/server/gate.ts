/** Lets so many pieces of work run at a time; the others wait in order. Who waits is bounded by who may call. */
export class Gate {
  readonly #most: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(most: number) {
    this.#most = most;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#most) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else {
      this.#running += 1;
      // Never within the call itself: whoever calls can first note what it waits for.
      await Promise.resolve();
    }
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running -= 1;
      else next();
    }
  }
}

/**
 * Reads that many ask for alike: whoever asks for what somebody waits for already shares that read. It begins later
 * than all of them asked, so each sees at least what was written before.
 */
export class SharedReads<T> {
  readonly #gate: Gate;
  readonly #waiting = new Map<string, Promise<T>>();

  constructor(gate: Gate) {
    this.#gate = gate;
  }

  read(name: string, work: () => Promise<T>): Promise<T> {
    const known = this.#waiting.get(name);
    if (known !== undefined) return known;
    const mine = this.#gate.run(() => {
      this.#waiting.delete(name);
      return work();
    });
    this.#waiting.set(name, mine);
    return mine;
  }
}

/** Bytes that were given to the network and not taken yet, held to a bound. */
export class Outstanding {
  readonly #most: number;
  readonly #waiting: { readonly bytes: number; readonly go: () => void }[] = [];
  #bytes = 0;

  constructor(most: number) {
    this.#most = most;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get full(): boolean {
    return this.#bytes >= this.#most;
  }

  /** Resolves when there is room; one that is larger than all there is goes alone. */
  async take(bytes: number): Promise<void> {
    if (this.#waiting.length > 0 || !this.#fits(bytes)) {
      await new Promise<void>((go) => this.#waiting.push({ bytes, go }));
    } else this.#bytes += bytes;
  }

  /** For what is small and cannot wait. */
  add(bytes: number): void {
    this.#bytes += bytes;
  }

  release(bytes: number): void {
    this.#bytes -= bytes;
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#bytes += next.bytes;
      next.go();
    }
  }

  #fits(bytes: number): boolean {
    return this.#bytes === 0 || this.#bytes + bytes <= this.#most;
  }
}
