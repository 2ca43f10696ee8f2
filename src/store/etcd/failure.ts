import { status as grpcStatus } from '@grpc/grpc-js';
import { LegateError } from '../../base/errors.ts';
import { printable, truncate } from '../../base/text.ts';

/** What kind of failure it was, as far as it decides what happens next and what a reader can do. */
export type FailureKind =
  /** No connection, or it broke. */
  | 'unreachable'
  /** Connected, but no answer in time. */
  | 'silent'
  /** The member has no leader, or could not get the others to agree. */
  | 'no-leader'
  | 'tls'
  /** What answers is not etcd, or answers what etcd would not. */
  | 'not-etcd'
  /** A member of another cluster than the one in use. */
  | 'foreign'
  /** The token has expired or is of another time. */
  | 'token'
  | 'credentials'
  | 'denied'
  /** The rules of a sidecar's store, which says why in words of its own. */
  | 'rules'
  | 'no-space'
  | 'corrupt'
  | 'busy'
  | 'no-lease'
  | 'compacted'
  | 'future'
  | 'request-too-large'
  | 'response-too-large'
  | 'refused';

/** A request that etcd did not answer, or answered with an error. Its text is fit for people and holds no secret. */
export class EtcdFailure extends Error {
  readonly kind: FailureKind;
  readonly hint: string;

  constructor(kind: FailureKind, message: string, hint: string = hints[kind]) {
    super(truncate(printable(message), 300));
    this.name = 'EtcdFailure';
    this.kind = kind;
    this.hint = hint;
  }
}

const hints: Readonly<Record<FailureKind, string>> = {
  unreachable: 'check store.endpoints, that etcd runs there, and that no firewall is in between',
  silent: 'look at the log, the load and the disk of that member, and at the network in between',
  'no-leader': 'start the missing members: etcd needs more than half of them (etcdctl endpoint status --cluster)',
  tls: 'check store.tls.ca, cert and key against the certificates of the members',
  'not-etcd': 'check store.endpoints: each must be the client URL of a member of etcd, version 3.4 or later',
  foreign: 'name members of one cluster only in store.endpoints (etcdctl endpoint status shows the cluster of each)',
  token: 'nothing: a new token is fetched',
  credentials: 'check store.credentials_file and the user in etcd (etcdctl user get NAME, etcdctl user passwd NAME)',
  denied: 'give the role of this user readwrite permission on store.prefix (etcdctl role grant-permission)',
  rules: 'it is for the host of the authority',
  'no-space':
    'free space in etcd: etcdctl compact and defrag, or a larger --quota-backend-bytes; then etcdctl alarm disarm (etcdctl alarm list shows it)',
  corrupt: 'a member has damaged data: see etcdctl alarm list and restore that member',
  busy: 'etcd has more requests than it can take; it is tried again',
  'no-lease': 'begin a new lease and write its keys again',
  compacted: 'read again from now',
  future: 'read again',
  'request-too-large': 'etcd is set to take less than by default: raise its --max-request-bytes or --max-txn-ops',
  'response-too-large': 'check who writes such large values under store.prefix',
  refused: 'see the log of etcd',
};

/** Whether the member is to be left for another one. */
export function leaves(kind: FailureKind): boolean {
  return (
    kind === 'unreachable' || kind === 'silent' || kind === 'no-leader' || kind === 'not-etcd' || kind === 'foreign'
  );
}

/** What etcd says, by the beginning of its text or a part of it. Its gRPC codes alone are too coarse. */
const said: readonly (readonly [text: string, kind: FailureKind])[] = [
  ['no leader', 'no-leader'],
  ['request timed out', 'no-leader'],
  ['server stopped', 'unreachable'],
  ['leader changed', 'busy'],
  ['too many requests', 'busy'],
  ['request ignored', 'busy'],
  ['database space exceeded', 'no-space'],
  ['corrupt cluster', 'corrupt'],
  ['invalid auth token', 'token'],
  ['revision of auth store is old', 'token'],
  ['revision in header is old', 'token'],
  ['user name is empty', 'credentials'],
  ['authentication failed', 'credentials'],
  ['user name not found', 'credentials'],
  ['permission denied', 'denied'],
  ['requested lease not found', 'no-lease'],
  ['has been compacted', 'compacted'],
  ['future revision', 'future'],
  ['request is too large', 'request-too-large'],
  ['too many operations', 'request-too-large'],
];

const byCode: Readonly<Record<number, FailureKind>> = {
  [grpcStatus.UNAVAILABLE]: 'unreachable',
  [grpcStatus.DEADLINE_EXCEEDED]: 'silent',
  [grpcStatus.CANCELLED]: 'unreachable',
  [grpcStatus.UNAUTHENTICATED]: 'token',
  [grpcStatus.PERMISSION_DENIED]: 'denied',
  [grpcStatus.UNIMPLEMENTED]: 'not-etcd',
  [grpcStatus.UNKNOWN]: 'not-etcd',
  [grpcStatus.INTERNAL]: 'not-etcd',
  [grpcStatus.RESOURCE_EXHAUSTED]: 'busy',
};

/** Reads an error of gRPC, or the reason that etcd gives for the end of a watch (without `code`). */
export function failureOf(error: { readonly code?: number; readonly details?: string }): EtcdFailure {
  const details = error.details ?? '';
  const { code } = error;
  const [, refusal, why] = /^legate: (.+?)(?:; (.+))?$/s.exec(details) ?? [];
  if (refusal !== undefined) return new EtcdFailure('rules', refusal, why && truncate(printable(why), 300));
  for (const [text, kind] of said) if (details.includes(text)) return new EtcdFailure(kind, plain(details));
  if (/^(Received|Attempted to receive) message larger/i.test(details)) {
    return new EtcdFailure('response-too-large', 'an answer is larger than this client takes');
  }
  if (code === grpcStatus.DEADLINE_EXCEEDED) return new EtcdFailure('silent', 'no answer in time');
  const kind = code === undefined ? 'refused' : (byCode[code] ?? 'refused');
  if (kind === 'unreachable' && /certificate|self.signed|\bssl\b|\btls\b|alert|altname|wrong version/i.test(details)) {
    return new EtcdFailure('tls', plain(details));
  }
  if (kind === 'unreachable' && /http2|protocol error|parse error|frame/i.test(details)) {
    return new EtcdFailure('not-etcd', 'what answers does not speak HTTP/2');
  }
  return new EtcdFailure(kind, plain(details) || `gRPC status ${code ?? 'unknown'}`);
}

/** What is said of a member that takes a connection and ends it without a word. */
export const closedAtOnce = 'it closes the connection at once';

/** What gRPC and OpenSSL wrap around the reason is of no use to a reader. */
function plain(details: string): string {
  const text = details
    .replace(/^No connection established\. Last error: /, '')
    .replace(/^(Error: )+/, '')
    .replace(/\.? *Resolution note:.*$/s, '')
    .replace(/ ?\(\d{4}-\d\d-\d\dT[^)]*\)/g, '')
    .trim();
  const [, reason] = /:SSL routines:[^:]*:([^:]+)/.exec(text) ?? [];
  if (reason !== undefined) return `TLS: ${reason}`;
  if (text === 'Failed to connect') return closedAtOnce;
  return text.replace(/^Name resolution failed for target .*/s, 'its name cannot be resolved');
}

/** The failure as the callers of the store get it. */
export function storeError(failure: EtcdFailure): LegateError {
  const { kind, hint } = failure;
  const message = `etcd: ${failure.message}`;
  switch (kind) {
    case 'denied':
      return new LegateError('E_UNAUTHORIZED', message, { hint });
    case 'rules':
      return new LegateError('E_DENIED', failure.message, { hint });
    case 'no-lease':
      return new LegateError('E_NOT_FOUND', 'there is no such lease: it has lapsed or was revoked', { hint });
    case 'request-too-large':
      return new LegateError('E_TOO_LARGE', message, { hint });
    default:
      return new LegateError('E_STORE_AWAY', message, { hint });
  }
}
