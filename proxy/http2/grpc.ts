/** gRPC's own statuses: grpc/doc/statuscodes.md of the project. */
export const grpcStatus = {
  ok: 0,
  unknown: 2,
  deadlineExceeded: 4,
  permissionDenied: 7,
  resourceExhausted: 8,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
} as const;
export type GrpcStatus = (typeof grpcStatus)[keyof typeof grpcStatus];

export const grpcContentType = 'application/grpc';
const timeoutPattern = /^([0-9]{1,8})([HMSmun])$/;
const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 };

/** Whether a body of this type is gRPC's (`application/grpc`, `application/grpc+proto`; not gRPC-Web, which is HTTP's). */
export function isGrpc(contentType: string | undefined): boolean {
  return contentType !== undefined && /^application\/grpc(?:$|[+;])/i.test(contentType);
}

/** What `grpc-timeout` allows, in milliseconds; undefined where it says nothing that can be read. */
export function grpcTimeoutMs(value: string | undefined): number | undefined {
  const [, digits, unit] = (value === undefined ? undefined : timeoutPattern.exec(value)) ?? [];
  return digits === undefined || unit === undefined ? undefined : Number(digits) * (unitMs[unit] ?? 0);
}

/** Whether an instance says that it, and not the request, is the trouble. */
export function isGrpcFault(status: string | undefined): boolean {
  if (status === undefined) return false;
  const code = Number(status);
  return code === grpcStatus.unavailable || code === grpcStatus.internal || code === grpcStatus.unknown;
}

/** As `grpc-message` wants it: printable ASCII, the rest and `%` as the percent-encoded bytes of UTF-8. */
export function grpcMessage(text: string): string {
  return text.replaceAll(/[^\x20-\x24\x26-\x7e]+/gu, (piece) =>
    [...Buffer.from(piece, 'utf8')].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''),
  );
}
