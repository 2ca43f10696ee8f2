import { status } from '@grpc/grpc-js';
import { describeError, isLegateError } from '../../../base/errors.ts';
import type { Log } from '../../../base/log.ts';
import type { CounterCell, Metrics } from '../../../base/metrics.ts';
import { Watch } from '../../etcd-api/gen/etcd_pb.ts';
import type { StoreAccess } from '../access.ts';
import type { Commit } from '../turn.ts';
import type { ByteStream, Calls } from './calls.ts';
import { CatchUp } from './catch-up.ts';
import { RpcError, rpcError, toRpcError } from './errors.ts';
import type { Gate, Outstanding } from './gate.ts';
import { firstWatchable } from './kv.ts';
import { limits, times } from './limits.ts';
import type { Permissions } from './permissions.ts';
import { SendWindow } from './send-window.ts';
import { eventsOf, type Interest } from './watch-events.ts';
import { GroupIndex, type WatchGroup } from './watch-groups.ts';
import { type StoreWatch, type WatchHubSide, WatchStream } from './watch-stream.ts';
import type { Identity } from './wire.ts';

export interface WatchHubOptions {
  readonly access: StoreAccess;
  readonly identity: Identity;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly outstanding: Outstanding;
  readonly gate: Gate;
  readonly permissions: Permissions;
  readonly drop: (peer: string, reason: string) => void;
}

const path = '/etcdserverpb.Watch/Watch';
const tickMs = 1000;

/**
 * All watches of all clients. A change goes to the groups that it concerns, is encoded once a group, and leaves at once
 * when it was quiet; further changes within a short window leave together, and the window grows with what sending costs.
 * A watch whose client does not take what it is sent falls behind: nothing is kept for it but how far it is, and it
 * reads on from the events kept in memory, or from history, when the client takes again.
 */
export class WatchHub implements WatchHubSide {
  readonly #options: WatchHubOptions;
  readonly #catchUp: CatchUp;
  readonly #index = new GroupIndex();
  readonly #streams = new Set<WatchStream>();
  /** Groups with events that wait to be sent. */
  readonly #waiting = new Set<WatchGroup>();
  readonly #sent: CounterCell;
  readonly #messages: CounterCell;
  readonly #lags: CounterCell;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #window = new SendWindow(() => this.#flush());
  readonly #unfollow: () => void;
  #head: number;
  #watches = 0;
  #recentBytes = 0;
  #closed = false;

  constructor(options: WatchHubOptions) {
    this.#options = options;
    const { access, gate, metrics } = options;
    const headerField = (revision: number): Buffer => this.headerField(revision);
    this.#catchUp = new CatchUp({ access, gate, headerField });
    this.#head = access.head().revision;
    this.#sent = metrics.counter('legate_store_server_events_total', 'Events sent to watches of other processes.');
    this.#messages = metrics.counter('legate_store_server_messages_total', 'Messages in which events were sent.');
    this.#lags = metrics.counter(
      'legate_store_server_watch_lags_total',
      'Times a watch of another process fell behind.',
    );
    metrics.gauge('legate_store_server_watches_count', 'Watches of other processes.', [], () => [[[], this.#watches]]);
    metrics.gauge('legate_store_server_recent_bytes', 'Events kept for watches that are behind.', [], () => [
      [[], this.#recentBytes],
    ]);
    this.#unfollow = access.follow({
      onCommit: (commit) => this.#publish(commit),
      onOpened: (revision) => this.#onOpened(revision),
    });
    this.#every(tickMs, () => this.#tick());
    this.#every(times.progressMs, () => this.#tellProgress());
  }

  get head(): number {
    return this.#head;
  }

  serve(calls: Calls): void {
    calls.stream(Watch.method.watch, (stream, decode, caller) => {
      const { outstanding, permissions } = this.#options;
      if (this.#closed || this.#streams.size >= limits.watchStreams) throw rpcError('tooManyRequests');
      const watches = new WatchStream(stream, this, { outstanding, permissions, caller });
      this.#streams.add(watches);
      stream.once('close', () => {
        this.#streams.delete(watches);
        calls.count(path, status.OK);
      });
      stream.on('data', (raw: Buffer) => takeRequest(stream, () => watches.handle(decode(raw))));
      stream.once('end', () => watches.end());
    });
  }

  close(): void {
    this.#closed = true;
    this.#window.close();
    this.#unfollow();
    for (const timer of this.#timers) clearInterval(timer);
    const error = new RpcError(status.UNAVAILABLE, 'etcdserver: server stopped');
    for (const stream of this.#streams) stream.end(error);
  }

  headerField(revision: number): Buffer {
    return this.#options.identity.headerField(revision);
  }

  checkRoom(): void {
    if (this.#watches >= limits.watches) throw rpcError('tooManyRequests', `${limits.watches} watches in all`);
  }

  add(
    stream: WatchStream,
    id: bigint,
    interest: Interest,
    wanted: number,
    progressNotify: boolean,
  ): StoreWatch | undefined {
    const group = this.#index.get(interest, this.#head);
    if (group === undefined) return undefined;
    const live = wanted === this.#head && !group.waiting;
    const flags = { reading: false, gone: false, active: false, live };
    const watch: StoreWatch = { id, group, stream, progressNotify, position: wanted, ...flags };
    group.members.add(watch);
    this.#watches += 1;
    if (!live) this.#setApart(watch, wanted);
    return watch;
  }

  remove(watch: StoreWatch): void {
    if (watch.gone) return;
    watch.gone = true;
    this.#watches -= 1;
    const { group, stream } = watch;
    if (!watch.live) {
      group.apart -= 1;
      stream.apart.delete(watch);
    }
    stream.watches.delete(watch.id);
    group.members.delete(watch);
    if (group.members.size > 0) return;
    this.#recentBytes -= group.bytes;
    group.reset(this.#head);
    this.#waiting.delete(group);
    this.#index.remove(group);
  }

  toldUpTo({ live, group, position }: StoreWatch): number {
    return live ? group.settled(this.#head) : Math.min(position, this.#head);
  }

  afterFlush(run: () => void): void {
    this.#window.afterwards(run);
  }

  pump(stream: WatchStream): void {
    for (const watch of [...stream.apart]) {
      if (stream.blocked) return;
      if (!watch.reading && !watch.gone) this.#pumpOne(watch);
    }
  }

  #publish(commit: Commit): void {
    this.#head = commit.revision;
    for (const event of eventsOf(commit)) {
      for (const group of this.#index.of(event.latinKey)) {
        const before = group.bytes;
        group.add(event);
        if (group.bytes === before) continue;
        this.#recentBytes += group.bytes - before;
        this.#waiting.add(group);
      }
    }
    if (this.#waiting.size > 0) this.#window.open();
  }

  /** Sends what waits, a slice at a time. Returns the milliseconds that it took. */
  async #flush(): Promise<number> {
    const groups = [...this.#waiting];
    this.#waiting.clear();
    const upTo = this.#head;
    let busyMs = 0;
    for (const group of groups) busyMs += await this.#tell(group, upTo);
    for (const stream of this.#streams) if (stream.apart.size > 0) this.pump(stream);
    if (this.#waiting.size > 0) setImmediate(() => this.#window.open());
    return busyMs;
  }

  /** Tells the members that are not apart what waits in their group. Returns the milliseconds that it took. */
  async #tell(group: WatchGroup, upTo: number): Promise<number> {
    const end = group.events.length;
    const position = group.settled(upTo);
    const messages = [...group.messages(position, end, (revision) => this.headerField(revision))];
    let startedMs = performance.now();
    let busyMs = 0;
    let sends = 0;
    for (const watch of group.members) {
      if (!watch.live) continue;
      let told = position;
      for (const message of messages) {
        if (watch.stream.blocked) break;
        this.#send(watch, message);
        told = message.revision;
        sends += 1;
      }
      if (told < (messages.at(-1)?.revision ?? 0)) this.#fallBehind(watch, told);
      if (sends < sliceSends) continue;
      busyMs += performance.now() - startedMs;
      sends = 0;
      await new Promise((resolve) => setImmediate(resolve));
      startedMs = performance.now();
    }
    // After a reopening meanwhile its events are gone, and everybody is apart.
    if (group.events.length >= end) group.told = end;
    this.#recentBytes -= group.trim(this.#recentBytes > limits.recentBytes);
    return busyMs + performance.now() - startedMs;
  }

  #send(watch: StoreWatch, message: { frame(id: bigint): Buffer; readonly count: number }): void {
    watch.active = true;
    this.#sent.value += message.count;
    this.#messages.value += 1;
    watch.stream.send(message.frame(watch.id));
  }

  #fallBehind(watch: StoreWatch, position: number): void {
    this.#lags.value += 1;
    this.#setApart(watch, position);
  }

  #setApart(watch: StoreWatch, position: number): void {
    watch.live = false;
    watch.position = position;
    watch.group.apart += 1;
    watch.stream.apart.add(watch);
  }

  /** Goes on with a watch that is apart, from memory if that reaches far enough, else from history. */
  #pumpOne(watch: StoreWatch): void {
    const { group, stream } = watch;
    if (watch.position < group.floor) {
      void this.#readOn(watch);
      return;
    }
    for (const message of group.messages(watch.position, group.told, (revision) => this.headerField(revision))) {
      if (stream.blocked) return;
      this.#send(watch, message);
      watch.position = message.revision;
    }
    // One that is ahead waits until the others have come so far.
    if (watch.position > group.settled(this.#head)) return;
    watch.live = true;
    group.apart -= 1;
    stream.apart.delete(watch);
    if (group.apart === 0 && !group.waiting) this.#recentBytes -= group.trim(false);
  }

  async #readOn(watch: StoreWatch): Promise<void> {
    watch.reading = true;
    const { stream, group } = watch;
    try {
      const round = await this.#catchUp.round(watch.position, group);
      if (watch.gone) return;
      if (round.changed === undefined || watch.position + 1 < firstWatchable(round.compacted)) {
        this.#cancelCompacted(
          watch,
          round.changed === undefined ? round.revision + 1 : firstWatchable(round.compacted),
        );
        return;
      }
      for await (const message of this.#catchUp.messages(round, watch.position, group.interest)) {
        await stream.ready();
        if (watch.gone) return;
        this.#send(watch, message);
        watch.position = message.revision;
      }
      watch.position = Math.max(watch.position, round.revision);
    } catch (error) {
      // While the store is away this waits for the next tick.
      if (!isLegateError(error)) throw error;
      this.#options.log.debug('watch could not read on, tries again', { error: describeError(error) });
      return;
    } finally {
      watch.reading = false;
    }
    if (!watch.gone) this.pump(stream);
  }

  #cancelCompacted(watch: StoreWatch, compactRevision: number): void {
    this.remove(watch);
    const cancelReason = rpcError('compacted').details;
    watch.stream.notify(this.#head, { watchId: watch.id, canceled: true, compactRevision, cancelReason });
  }

  /** Everybody reads on from history: what was written last may have been lost or may have happened. */
  #onOpened(revision: number): void {
    for (const group of this.#index.all) {
      const position = group.settled(this.#head);
      for (const watch of group.members) if (watch.live) this.#setApart(watch, position);
      group.reset(revision);
    }
    this.#recentBytes = 0;
    this.#waiting.clear();
    this.#head = revision;
    for (const stream of this.#streams) this.pump(stream);
  }

  #tick(): void {
    const nowMs = performance.now();
    for (const stream of this.#streams) {
      const sinceMs = stream.stalledSinceMs();
      if (sinceMs !== undefined && nowMs - sinceMs > times.stalledMs) this.#options.drop(stream.peer, 'stalled');
      else stream.wake();
    }
  }

  #tellProgress(): void {
    for (const stream of this.#streams) {
      for (const watch of stream.watches.values()) {
        if (watch.progressNotify && watch.live && !watch.active && !stream.blocked) {
          stream.notify(watch.group.settled(this.#head), { watchId: watch.id });
        }
        watch.active = false;
      }
    }
  }

  #every(ms: number, run: () => void): void {
    const timer = setInterval(run, ms);
    timer.unref();
    this.#timers.push(timer);
  }
}

/** After so many messages other work has its turn. */
const sliceSends = 128;

function takeRequest(stream: ByteStream, run: () => void): void {
  try {
    run();
  } catch (error) {
    stream.emit('error', toRpcError(error));
  }
}
