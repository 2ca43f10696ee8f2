import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { decode, queryPacket } from '../../dns/test-support.ts';
import type { Endpoint } from '../../src/model/address.ts';

/** How often a probe asks. A gap is known to this. */
const everyMs = 5;
/** An attempt without an answer by then has failed. */
const timeoutMs = 1000;

/** Tries something again and again, and keeps the longest time between two tries that went well. */
export interface Probe {
  /** When the last try that went well began; undefined before the first. */
  readonly lastGoodMs: number | undefined;
  /** From the begin of the last good try before the worst gap to that of the first one after it. */
  readonly gapMs: number;
  /** Begins to look for gaps anew. */
  reset(): void;
  stop(): void;
}

class GapKeeper {
  lastGoodMs: number | undefined;
  gapMs = 0;
  readonly #timer: NodeJS.Timeout;

  constructor(attempt: () => void) {
    this.#timer = setInterval(attempt, everyMs);
  }

  /** A try that began at `beganMs` went well; answers may overtake each other. */
  good(beganMs: number): void {
    const last = this.lastGoodMs ?? beganMs;
    if (beganMs < last) return;
    this.gapMs = Math.max(this.gapMs, beganMs - last);
    this.lastGoodMs = beganMs;
  }

  reset(): void {
    this.gapMs = 0;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

/** Asks for `name`; good is an answer with at least so many records. */
export function probeName(server: Endpoint, name: string, type: 'A' | 'SRV' = 'A', least = 1): Probe {
  const socket = createSocket('udp4');
  // A port that nobody listens on is told as an error of the socket; the next attempt is made all the same.
  socket.on('error', () => undefined);
  const began = new Map<number, number>();
  let id = 0;
  const keeper = new GapKeeper(() => {
    id = (id + 1) & 0xffff;
    began.set(id, performance.now());
    began.delete((id - timeoutMs / everyMs) & 0xffff);
    socket.send(queryPacket(name, type, { id, edns: 1232 }), server.port, server.address, () => undefined);
  });
  socket.on('message', (packet) => {
    const answer = decode(packet);
    const beganMs = began.get(answer.id ?? 0);
    if (beganMs !== undefined && (answer.answers ?? []).length >= least) keeper.good(beganMs);
  });
  return stopsWith(keeper, () => socket.close());
}

/** Connects and waits for the backend's greeting, which is good. */
export function probeConnect(endpoint: Endpoint): Probe {
  const keeper = new GapKeeper(() => {
    const beganMs = performance.now();
    const socket = connect(endpoint.port, endpoint.address);
    socket.setTimeout(timeoutMs, () => socket.destroy());
    socket.on('error', () => undefined);
    socket.once('data', () => {
      keeper.good(beganMs);
      socket.destroy();
    });
  });
  return stopsWith(keeper, () => undefined);
}

function stopsWith(keeper: GapKeeper, close: () => void): Probe {
  return {
    get lastGoodMs() {
      return keeper.lastGoodMs;
    },
    get gapMs() {
      return keeper.gapMs;
    },
    reset: () => keeper.reset(),
    stop() {
      keeper.stop();
      close();
    },
  };
}
