/**
 * The consumer of the fault table: asks an HTTP server behind a link again and again, one connection a request, at a fixed
 * pace whatever becomes of the ones before. Tells what happened over a unix socket: GET /report; GET /reset begins anew.
 *
 *   node traffic.child.js SOCKET PORT PERIOD_MS
 */
import { createServer } from 'node:http';
import { connect } from 'node:net';
import { monotonicMs } from '../support/monotonic.ts';

/** What happened since the last reset. Times are milliseconds of the machine's monotonic clock. */
export interface TrafficReport {
  readonly asked: number;
  /** Still under way. */
  readonly waiting: number;
  readonly failed: readonly { readonly beganMs: number; readonly endedMs: number; readonly problem: string }[];
  /** How often each backend answered. */
  readonly answers: Readonly<Record<string, number>>;
  /** The longest time that a request took to its answer. */
  readonly slowestMs: number;
  /** The longest time without any answer. */
  readonly longestGapMs: number;
}

const answerLimitMs = 15_000;
/** Beyond this a hanging backend would eat all descriptors. */
const maxWaiting = 2000;

class Traffic {
  readonly #port: number;
  #asked = 0;
  #waiting = 0;
  #failed: { beganMs: number; endedMs: number; problem: string }[] = [];
  #answers: Record<string, number> = {};
  #slowestMs = 0;
  #longestGapMs = 0;
  #answeredMs = monotonicMs();

  constructor(port: number) {
    this.#port = port;
  }

  reset(): void {
    this.#asked = 0;
    this.#failed = [];
    this.#answers = {};
    this.#slowestMs = 0;
    this.#longestGapMs = 0;
    this.#answeredMs = monotonicMs();
  }

  report(): TrafficReport {
    const longestGapMs = Math.max(this.#longestGapMs, monotonicMs() - this.#answeredMs);
    return {
      asked: this.#asked,
      waiting: this.#waiting,
      failed: this.#failed,
      answers: this.#answers,
      slowestMs: this.#slowestMs,
      longestGapMs,
    };
  }

  ask(): void {
    if (this.#waiting >= maxWaiting) return;
    this.#asked += 1;
    this.#waiting += 1;
    const beganMs = monotonicMs();
    let text = '';
    let problem = '';
    const socket = connect({ host: '127.0.0.1', port: this.#port }, () => {
      socket.write('GET /index.html HTTP/1.0\r\n\r\n');
    });
    socket.setTimeout(answerLimitMs, () => socket.destroy(new Error('no answer')));
    socket.on('data', (chunk) => {
      text += chunk;
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      problem = error.code ?? error.message;
    });
    socket.on('close', () => {
      const endedMs = monotonicMs();
      this.#waiting -= 1;
      const answer = /\r\n\r\n(host-\d+)\s*$/.exec(text)?.[1];
      if (answer === undefined) {
        this.#failed.push({ beganMs, endedMs, problem: problem || `closed after ${text.length} bytes` });
        return;
      }
      this.#answers[answer] = (this.#answers[answer] ?? 0) + 1;
      this.#slowestMs = Math.max(this.#slowestMs, endedMs - beganMs);
      this.#longestGapMs = Math.max(this.#longestGapMs, endedMs - this.#answeredMs);
      this.#answeredMs = endedMs;
    });
  }
}

const [socket = '', port = '0', periodMs = '20'] = process.argv.slice(2);
const traffic = new Traffic(Number(port));
createServer((request, response) => {
  if (request.url === '/reset') traffic.reset();
  response.end(JSON.stringify(traffic.report()));
}).listen(socket);
setInterval(() => traffic.ask(), Number(periodMs));
