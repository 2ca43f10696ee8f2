import type { Endpoint } from '../../src/model/address.ts';
import type { Slabs } from './slabs.ts';

/** What a stream is about, told as it is opened. The receiving side checks all of it against what it knows itself. */
export interface StreamHead {
  /** The identity behind the connection, as the sending host knows it: a service, `host` or `anonymous`. */
  readonly consumer: string;
  /** Whether the consumer declares a link to the service (`legate.links`). */
  readonly declared: boolean;
  readonly service: string;
  /** The instance's name on the receiving host. */
  readonly instance: string;
  /** The client's address and port, as the sending host sees them. */
  readonly client: Endpoint;
  /** For the access logs of both sides: 32 lower-case hexadecimal digits (a W3C trace-id). */
  readonly traceId: string;
}

/** Why a stream was refused or reset. Numbers are those on the wire; unknown ones are taken for `reset`. */
export const resetReasons = {
  /** The client or the application reset its connection. */
  reset: 0,
  /** The instance cannot be connected to: try another one. */
  unreachable: 1,
  /** No such instance here (any more), or it drains: try another one. */
  gone: 2,
  /** Policy or grants forbid it: another instance would say the same. */
  denied: 3,
  /** This host takes no new streams: it is over a limit, or it leaves. Try another host. */
  busy: 4,
  /** The other side broke the protocol. */
  protocol: 5,
  /** The tunnel is gone, and the stream with it. Never on the wire. */
  lost: 6,
} as const;
export type ResetReason = keyof typeof resetReasons;

/**
 * One side's hands on a stream. All calls may be made at any time; after `closed` was called back they do nothing.
 * Written bytes are taken over as they are: the caller does not change them any more.
 */
export interface TunnelStream {
  /** The host at the other end. */
  readonly hostId: string;
  /** Large buffers that may be read into and written: they leave without being copied. */
  readonly slabs: Slabs;
  /** False: wait for `drained` before writing more. What was written is sent in any case. */
  write(chunk: Buffer): boolean;
  /** Bytes that were written and have not left: a reset throws them away. */
  readonly queuedBytes: number;
  /** No more bytes from this side. */
  end(): void;
  /** The receiving side: the instance is connected. The sending side hears it as `opened`. */
  accept(): void;
  /** Ends both directions at once. `detail`: one line for people, at most 200 bytes. */
  reset(reason: ResetReason, detail?: string): void;
  /** So many bytes that `data` handed over have left this process: the other side may send as many more. */
  consumed(bytes: number): void;
}

/** What one side hears of a stream. Called within one turn of the event loop in the order in which it came. */
export interface StreamEvents {
  /** The sending side only: the other side has connected its instance. Bytes may be written before. */
  opened(): void;
  /** Bytes, which belong to the receiver until it calls `consumed` for them: then others may come to the same place. */
  data(chunk: Buffer): void;
  /** No more bytes will come. */
  ended(): void;
  /** After `write` was false: there is room again. */
  drained(): void;
  /**
   * The last call: both directions have ended (`reason` undefined), or the stream was reset by the other side or lost
   * with its tunnel. Not called for a reset of one's own.
   */
  closed(reason: ResetReason | undefined, detail: string): void;
}

/** How well another host is reached now. */
export interface TunnelState {
  /**
   * `ready`: streams may be opened; `suspect`: connected, and silent for too long, so that new streams should go elsewhere;
   * `connecting`: not connected now; `idle`: nobody has asked for it.
   */
  readonly state: 'ready' | 'suspect' | 'connecting' | 'idle';
  /** Why it is not ready, one line. */
  readonly problem: string | null;
}

/** The tunnels to other hosts, as links use them. */
export interface Tunnels {
  /**
   * Opens a stream without waiting: OPEN and what is written next leave together. Gives why not, for people, where no
   * tunnel to the host is ready. A suspect one is used when it is asked for.
   */
  open(hostId: string, head: StreamHead, events: StreamEvents): TunnelStream | string;
  state(hostId: string): TunnelState;
  /** Counts the changes of states, for those who keep lists by them. */
  readonly version: number;
  /** Links want this host's tunnel warm from now on, or not any more. */
  want(hostId: string, wanted: boolean): void;
  /** Calls back when the state of a host has changed. Returns how to stop. */
  onChange(listener: (hostId: string) => void): () => void;
}

/**
 * The receiving side: called for each stream that another host opens, gives what hears its events, or why it is refused
 * at once. `hostId` is authenticated.
 */
export type AcceptStream = (
  head: StreamHead,
  hostId: string,
  stream: TunnelStream,
) => StreamEvents | { readonly refused: ResetReason; readonly detail: string };
