import { Slabs } from './slabs.ts';
import type {
  AcceptStream,
  ResetReason,
  StreamEvents,
  StreamHead,
  TunnelState,
  TunnelStream,
  Tunnels,
} from './tunnels.ts';

/** Bytes that one direction of a stream may have on the way. */
const credit = 262_144;

/** Things that happen in order, each in a turn of its own. */
class Line {
  #waiting: (() => void)[] = [];

  send(event: () => void): void {
    this.#waiting.push(event);
    if (this.#waiting.length === 1) setImmediate(this.#deliver);
  }

  readonly #deliver = (): void => {
    const [event] = this.#waiting;
    try {
      event?.();
    } finally {
      this.#waiting.shift();
      if (this.#waiting.length > 0) setImmediate(this.#deliver);
    }
  };
}

class End implements TunnelStream {
  readonly hostId: string;
  readonly slabs = new Slabs();
  readonly #line: Line;
  readonly #onGone: () => void;
  other: End | undefined;
  events: StreamEvents | undefined;
  /** The most bytes that were ever written and not yet taken by the other side. */
  mostHeld = 0;
  #queue: Buffer[] = [];
  queuedBytes = 0;
  #onTheWay = 0;
  #wasFull = false;
  #ends = false;
  #sentEnd = false;
  #gotEnd = false;
  #dead = false;

  constructor(hostId: string, line: Line, onGone: () => void) {
    this.hostId = hostId;
    this.#line = line;
    this.#onGone = onGone;
  }

  write(chunk: Buffer): boolean {
    if (this.#ends) throw new Error('a stream was written to after its end');
    if (this.#dead) return true;
    this.#queue.push(chunk);
    this.queuedBytes += chunk.length;
    this.#flush();
    this.mostHeld = Math.max(this.mostHeld, this.queuedBytes + this.#onTheWay);
    this.#wasFull = this.queuedBytes > 0;
    return !this.#wasFull;
  }

  end(): void {
    if (this.#dead || this.#ends) return;
    this.#ends = true;
    this.#flush();
  }

  accept(): void {
    if (!this.#dead) this.#line.send(() => this.other?.hear((events) => events.opened()));
  }

  reset(reason: ResetReason, detail = ''): void {
    if (this.#dead) return;
    this.#die();
    this.#line.send(() => this.other?.close(reason, detail));
  }

  consumed(bytes: number): void {
    const { other } = this;
    if (!this.#dead && other !== undefined) this.#line.send(() => other.#credited(bytes));
  }

  /** The other side hears of it when it has not gone. */
  hear(tell: (events: StreamEvents) => void): void {
    if (!this.#dead && this.events !== undefined) tell(this.events);
  }

  close(reason: ResetReason | undefined, detail: string): void {
    if (this.#dead) return;
    this.#die();
    this.events?.closed(reason, detail);
  }

  #die(): void {
    this.#dead = true;
    this.#queue = [];
    this.queuedBytes = 0;
    this.#onGone();
  }

  #credited(bytes: number): void {
    this.#onTheWay -= bytes;
    if (this.#onTheWay < 0) throw new Error('more was consumed than was sent');
    this.#flush();
    if (!this.#wasFull || this.queuedBytes > 0) return;
    this.#wasFull = false;
    this.hear((events) => events.drained());
  }

  #flush(): void {
    while (!this.#dead && this.#onTheWay < credit) {
      const chunk = this.#queue.shift();
      if (chunk === undefined) break;
      this.queuedBytes -= chunk.length;
      this.#onTheWay += chunk.length;
      this.#line.send(() => this.other?.hear((events) => events.data(chunk)));
    }
    if (!this.#ends || this.#sentEnd || this.#dead || this.#queue.length > 0) return;
    this.#sentEnd = true;
    this.#line.send(() => this.other?.hearEnd());
    if (this.#gotEnd) this.#line.send(() => this.close(undefined, ''));
  }

  hearEnd(): void {
    this.#gotEnd = true;
    this.hear((events) => events.ended());
    if (this.#sentEnd) this.close(undefined, '');
  }
}

/** Tunnels in memory: what one host's links see, and the hosts that are at the other ends. */
export class FakeTunnels implements Tunnels {
  version = 0;
  readonly wanted = new Set<string>();
  readonly heads: StreamHead[] = [];
  /** All ends ever, both of each stream: the opening one first. */
  readonly ends: End[] = [];
  readonly #selfId: string;
  readonly #states = new Map<string, TunnelState>();
  readonly #peers = new Map<string, AcceptStream>();
  readonly #open = new Map<string, Set<End>>();
  readonly #listeners = new Set<(hostId: string) => void>();

  constructor(selfId: string) {
    this.#selfId = selfId;
  }

  /** What stands at the other end; its tunnel is ready. */
  join(hostId: string, accept: AcceptStream): void {
    this.#peers.set(hostId, accept);
    this.set(hostId, 'ready');
  }

  set(hostId: string, state: TunnelState['state'], problem: string | null = null): void {
    this.#states.set(hostId, { state, problem });
    this.version += 1;
    for (const listener of this.#listeners) listener(hostId);
  }

  /** The tunnel breaks with all its streams. */
  lose(hostId: string): void {
    this.set(hostId, 'connecting', 'the connection was reset');
    for (const end of [...(this.#open.get(hostId) ?? [])]) end.close('lost', 'the tunnel was lost');
  }

  get active(): number {
    return [...this.#open.values()].reduce((sum, ends) => sum + ends.size, 0);
  }

  open(hostId: string, head: StreamHead, events: StreamEvents): TunnelStream | string {
    const accept = this.#peers.get(hostId);
    const { state, problem } = this.state(hostId);
    if (accept === undefined || (state !== 'ready' && state !== 'suspect')) return problem ?? 'no tunnel';
    this.heads.push(head);
    const line = new Line();
    const open = this.#open.get(hostId) ?? new Set();
    this.#open.set(hostId, open);
    const near: End = new End(hostId, line, () => open.delete(near));
    const far: End = new End(this.#selfId, line, () => open.delete(far));
    near.other = far;
    far.other = near;
    near.events = events;
    for (const end of [near, far]) open.add(end);
    this.ends.push(near, far);
    line.send(() => {
      const answer = accept(head, this.#selfId, far);
      if ('refused' in answer) far.reset(answer.refused, answer.detail);
      else far.events = answer;
    });
    return near;
  }

  state(hostId: string): TunnelState {
    return this.#states.get(hostId) ?? { state: 'idle', problem: null };
  }

  want(hostId: string, wanted: boolean): void {
    if (wanted) this.wanted.add(hostId);
    else this.wanted.delete(hostId);
  }

  onChange(listener: (hostId: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
