import { constants, type OutgoingHttpHeaders } from 'node:http2';
import { type GrpcStatus, grpcContentType, grpcMessage, grpcStatus } from './grpc.ts';

const { NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR } = constants;

/** Why a request has no answer of an instance, in the words of each protocol. */
interface FailureKind {
  readonly status: number;
  readonly grpc: GrpcStatus;
  /** For those who have the beginning of an answer. */
  readonly reset: number;
  readonly retryAfter?: number;
  readonly allow?: string;
}

const kinds = {
  unavailable: { status: 503, grpc: grpcStatus.unavailable, reset: NGHTTP2_INTERNAL_ERROR, retryAfter: 1 },
  exhausted: { status: 503, grpc: grpcStatus.resourceExhausted, reset: NGHTTP2_INTERNAL_ERROR, retryAfter: 1 },
  lost: { status: 502, grpc: grpcStatus.unavailable, reset: NGHTTP2_INTERNAL_ERROR },
  timeout: { status: 504, grpc: grpcStatus.deadlineExceeded, reset: NGHTTP2_CANCEL },
  'slow body': { status: 408, grpc: grpcStatus.deadlineExceeded, reset: NGHTTP2_CANCEL },
  denied: { status: 403, grpc: grpcStatus.permissionDenied, reset: NGHTTP2_CANCEL },
  'too large': { status: 413, grpc: grpcStatus.resourceExhausted, reset: NGHTTP2_CANCEL },
  'long target': { status: 414, grpc: grpcStatus.resourceExhausted, reset: NGHTTP2_CANCEL },
  'large head': { status: 431, grpc: grpcStatus.resourceExhausted, reset: NGHTTP2_CANCEL },
  unsupported: { status: 501, grpc: grpcStatus.unimplemented, reset: NGHTTP2_CANCEL },
  malformed: { status: 400, grpc: grpcStatus.internal, reset: NGHTTP2_INTERNAL_ERROR },
  loop: { status: 508, grpc: grpcStatus.internal, reset: NGHTTP2_INTERNAL_ERROR },
  'bad answer': { status: 502, grpc: grpcStatus.internal, reset: NGHTTP2_INTERNAL_ERROR },
  method: {
    status: 405,
    grpc: grpcStatus.unimplemented,
    reset: NGHTTP2_CANCEL,
    allow: 'GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH',
  },
} as const satisfies Readonly<Record<string, FailureKind>>;

export interface Failure {
  readonly kind: keyof typeof kinds;
  /** For people and programs: why. */
  readonly reason: string;
}

export function resetCodeOf({ kind }: Failure): number {
  return kinds[kind].reset;
}

export function grpcTrailers({ kind, reason }: Failure): OutgoingHttpHeaders {
  return { 'grpc-status': String(kinds[kind].grpc), 'grpc-message': grpcMessage(`legate: ${reason}`) };
}

/** An answer in an instance's stead; to gRPC it is one of trailers only, and hence without a body. */
export function ownAnswer(failure: Failure, grpc: boolean): { headers: OutgoingHttpHeaders; body: string } {
  if (grpc) {
    const headers = { ':status': 200, 'content-type': grpcContentType, ...grpcTrailers(failure) };
    return { headers, body: '' };
  }
  const { status, retryAfter, allow }: FailureKind = kinds[failure.kind];
  const body = `legate: ${failure.reason}\n`;
  return {
    headers: {
      ':status': status,
      'content-type': 'text/plain; charset=utf-8',
      'content-length': String(Buffer.byteLength(body)),
      'legate-reason': failure.reason.replaceAll(/[^\x20-\x7e]/g, '?'),
      ...(retryAfter !== undefined && { 'retry-after': String(retryAfter) }),
      ...(allow !== undefined && { allow }),
    },
    body,
  };
}
