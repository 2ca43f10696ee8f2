import { create } from '@bufbuild/protobuf';
import type { ClientDuplexStream } from '@grpc/grpc-js';
import type { Clock } from '../../base/clock.ts';
import { LegateError } from '../../base/errors.ts';
import type { CounterCell, Metrics } from '../../base/metrics.ts';
import {
  LeaseGrantRequestSchema,
  type LeaseKeepAliveRequest,
  LeaseKeepAliveRequestSchema,
  type LeaseKeepAliveResponse,
  LeaseRevokeRequestSchema,
} from '../etcd-api/gen/etcd_pb.ts';
import type { Lease } from '../store.ts';
import type { Connection } from './connection.ts';
import { EtcdFailure } from './failure.ts';
import { api, leaseText, safeNumber } from './messages.ts';
import { closedError, type Session } from './session.ts';

export interface LeasesOptions {
  readonly session: Session;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

interface Held {
  readonly number: bigint;
  readonly id: string;
  readonly ttlMs: number;
  readonly keepAlive: boolean;
  readonly lost: AbortController;
  /** Of the next keep-alive, or of the end of one that nobody keeps alive. */
  cancelTimer: () => void;
  /** Of the wait for an answer; undefined while none is owed. */
  cancelWait: (() => void) | undefined;
}

interface Stream {
  readonly connection: Connection;
  readonly stream: ClientDuplexStream<LeaseKeepAliveRequest, LeaseKeepAliveResponse>;
}

/** An answer to a keep-alive may take a third of the TTL, but no less and no more than this. */
const answerLimitMs = { least: 1000, most: 5000 };

/**
 * The leases of this client. One keep-alive in each third of the TTL, all over one stream, and one as soon as there is
 * another connection.
 *
 * A lease that is kept alive is lost only when etcd says that it is gone. Time alone proves nothing: a cluster without a
 * leader lets no lease lapse, and its next leader gives every lease its full TTL again; and to begin a new lease, a
 * member has to be reached anyway, which then tells. One that nobody keeps alive counts as lost after its TTL.
 */
export class Leases {
  static readonly maxLeases = 10_000;
  static readonly maxTtlMs = 7 * 24 * 3_600_000;
  readonly #options: LeasesOptions;
  readonly #held = new Map<bigint, Held>();
  readonly #lapsed: CounterCell;
  #connection: Connection | undefined;
  #stream: Stream | undefined;

  constructor(options: LeasesOptions) {
    this.#options = options;
    const { metrics } = options;
    this.#lapsed = metrics.counter('legate_store_leases_lapsed_total', 'Leases that lapsed unrenewed.');
    metrics.gauge('legate_store_leases_count', 'Leases that live.', [], () => [[[], this.#held.size]]);
  }

  async grant(ttlMs: number, keepAlive: boolean, signal: AbortSignal | undefined): Promise<Lease> {
    if (!Number.isFinite(ttlMs) || ttlMs <= 0 || ttlMs > Leases.maxTtlMs) {
      throw new LegateError('E_INVALID', `a lease of ${ttlMs} ms: it must be above 0 and at most ${Leases.maxTtlMs}`);
    }
    if (this.#held.size >= Leases.maxLeases) {
      throw new LegateError('E_TOO_LARGE', `this host has ${Leases.maxLeases} leases already`);
    }
    const { session } = this.#options;
    const request = create(LeaseGrantRequestSchema, { TTL: BigInt(Math.ceil(ttlMs / 1000)) });
    const { answer } = await session.request(api.leaseGrant, request, { signal });
    const seconds = safeNumber(answer.TTL);
    if (answer.ID === 0n || seconds === 0) throw new EtcdFailure('refused', 'etcd granted no lease');
    if (session.closed) throw closedError();
    return this.#hold(answer.ID, seconds * 1000, keepAlive);
  }

  onConnected(connection: Connection): void {
    this.#connection = connection;
    for (const held of this.#held.values()) if (held.keepAlive) this.#keep(held);
  }

  /** Whoever holds one hears that nobody keeps it alive any more. */
  close(): void {
    const reason = new LegateError('E_CLOSED', 'the store was closed, so its leases lapse');
    for (const held of [...this.#held.values()]) this.#end(held, reason);
  }

  #hold(number: bigint, ttlMs: number, keepAlive: boolean): Lease {
    const id = leaseText(number);
    const lost = new AbortController();
    const held: Held = { number, id, ttlMs, keepAlive, lost, cancelTimer: () => undefined, cancelWait: undefined };
    this.#held.set(number, held);
    const { clock } = this.#options;
    held.cancelTimer = keepAlive
      ? clock.after(ttlMs / 3, () => this.#keep(held))
      : clock.after(ttlMs, () => this.#end(held, lapsedError(id)));
    return { id, ttlMs, lost: lost.signal, revoke: () => this.#revoke(held) };
  }

  async #revoke(held: Held): Promise<void> {
    // Should the request fail, it lapses by itself.
    this.#end(held, new LegateError('E_NOT_FOUND', `lease ${held.id} was revoked`));
    try {
      await this.#options.session.request(api.leaseRevoke, create(LeaseRevokeRequestSchema, { ID: held.number }));
    } catch (error) {
      if (!(error instanceof EtcdFailure) || error.kind !== 'no-lease') throw error;
    }
  }

  #keep(held: Held): void {
    const { clock, session } = this.#options;
    held.cancelTimer();
    held.cancelTimer = clock.after(held.ttlMs / 3, () => this.#keep(held));
    const stream = this.#open();
    if (stream === undefined) return;
    session.countRequest();
    stream.stream.write(create(LeaseKeepAliveRequestSchema, { ID: held.number }));
    const limitMs = Math.min(answerLimitMs.most, Math.max(answerLimitMs.least, held.ttlMs / 3));
    held.cancelWait ??= clock.after(limitMs, () => {
      held.cancelWait = undefined;
      stream.connection.end(new EtcdFailure('silent', 'a keep-alive was not answered in time'));
    });
  }

  /** The stream of the connection in use, made when it is first needed; undefined without a connection. */
  #open(): Stream | undefined {
    const connection = this.#connection;
    if (connection === undefined || connection.ended.aborted) return undefined;
    if (this.#stream?.connection === connection) return this.#stream;
    this.#stream = {
      connection,
      stream: connection.stream(api.leaseKeepAlive, (answer) => this.#onAnswer(connection, answer)),
    };
    connection.ended.addEventListener('abort', () => this.#onEnded(), { once: true });
    return this.#stream;
  }

  #onEnded(): void {
    for (const held of this.#held.values()) {
      held.cancelWait?.();
      held.cancelWait = undefined;
    }
  }

  #onAnswer(connection: Connection, { ID, TTL }: LeaseKeepAliveResponse): void {
    const held = this.#held.get(ID);
    if (held === undefined || connection.ended.aborted) return;
    held.cancelWait?.();
    held.cancelWait = undefined;
    if (TTL > 0n) return;
    this.#lapsed.value += 1;
    this.#end(held, lapsedError(held.id));
  }

  #end(held: Held, reason: LegateError): void {
    if (!this.#held.delete(held.number)) return;
    held.cancelTimer();
    held.cancelWait?.();
    held.cancelWait = undefined;
    held.lost.abort(reason);
  }
}

function lapsedError(id: string): LegateError {
  return new LegateError('E_NOT_FOUND', `lease ${id} has lapsed`, {
    hint: 'begin a new lease and write its keys again',
  });
}
