import { LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { printable, truncate } from '../base/text.ts';
import type { Keys } from '../store/keys.ts';
import type { Guard, OperationOptions, Store } from '../store/store.ts';

/** Stored texts of a marker are addresses and a prefix of keys; there are at most as many as the configuration takes. */
const maxEndpoints = 16;
const maxTextLength = 320;
const maxMarkerBytes = 16 * 1024;
const markerVersion = 1;

/** Where a mesh has moved to, without anything secret. */
export interface MovedTo {
  readonly kind: 'etcd' | 'consul' | 'embedded';
  /** `http://host:port`; of an embedded store where it is offered to others, if it is. */
  readonly endpoints: readonly string[];
  /** In front of all keys. */
  readonly prefix: string;
  /** The host in whose sidecar an embedded store lives. */
  readonly hostId?: string;
  /** Whether it takes files of their own to reach it: an authority or certificate, a password or token. */
  readonly tls: boolean;
  readonly credentials: boolean;
}

/** The value of `moved`: `moving` while the last differences are copied, then `moved`. */
export interface MoveMarker {
  readonly state: 'moving' | 'moved';
  readonly atMs: number;
  readonly to: MovedTo;
}

/**
 * Holds as long as the mesh lives in this store. Every write of users and of settings carries it, so that none of them is
 * acknowledged here after the last differences have been copied to another store.
 */
export function notMoving(keys: Keys): Guard {
  return { kind: 'absent', key: keys.moved };
}

/** To be asked when a guarded transaction did not hold: E_STORE_AWAY when the reason is that the mesh moves. */
export async function checkNotMoving(store: Store, keys: Keys, options: OperationOptions = {}): Promise<void> {
  const marker = await readMarker(store, keys, options);
  if (marker === undefined) return;
  if (marker.state === 'moving') {
    throw new LegateError('E_STORE_AWAY', 'the mesh is being moved to another store, nothing is written meanwhile', {
      hint: 'try again in a moment',
    });
  }
  throw new LegateError('E_STORE_AWAY', `the mesh has moved to ${describeTarget(marker.to)}`, {
    hint: 'legate status says what to write into the configuration file',
  });
}

/** The marker in the store; one that cannot be read counts as a move whose end is not known. */
export async function readMarker(
  store: Store,
  keys: Keys,
  options: OperationOptions = {},
): Promise<MoveMarker | undefined> {
  const entry = await store.get(keys.moved, options);
  return entry === undefined ? undefined : decodeMarker(entry.value);
}

export function encodeMarker({ state, atMs, to }: MoveMarker): Uint8Array {
  return new TextEncoder().encode(JSON.stringify({ v: markerVersion, state, atMs, to }));
}

/** Never throws: bytes that are no marker are one of state `moving`, which stops writes and moves nobody. */
export function decodeMarker(value: Uint8Array): MoveMarker {
  try {
    if (value.byteLength > maxMarkerBytes) throw new FieldFault('it is too large');
    const fields = new Fields(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(value)) as unknown);
    fields.integer('v', 1, markerVersion);
    const to = fields.fields('to');
    const kind = to.oneOf('kind', ['etcd', 'consul', 'embedded'] as const);
    const hostId = to.has('hostId') ? to.text('hostId', 16) : undefined;
    return {
      state: fields.oneOf('state', ['moving', 'moved'] as const),
      atMs: fields.integer('atMs', 0, 8.64e15),
      to: {
        kind,
        endpoints: to.texts('endpoints', maxEndpoints, maxTextLength),
        prefix: to.text('prefix', maxTextLength, 1),
        ...(hostId !== undefined && { hostId }),
        tls: to.flag('tls'),
        credentials: to.flag('credentials'),
      },
    };
  } catch {
    return { state: 'moving', atMs: 0, to: unknownTarget };
  }
}

const unknownTarget: MovedTo = { kind: 'etcd', endpoints: [], prefix: '', tls: false, credentials: false };

/** `etcd at http://10.77.0.1:2379`, for people. */
export function describeTarget({ kind, endpoints, hostId }: MovedTo): string {
  const at = truncate(printable(endpoints.join(', ')), 200);
  if (kind !== 'embedded') return at === '' ? kind : `${kind} at ${at}`;
  const where = at === '' ? '' : `, offered at ${at}`;
  return `the embedded store of host ${printable(hostId ?? '?')}${where}`;
}
