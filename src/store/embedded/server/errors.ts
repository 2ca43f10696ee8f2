import { status } from '@grpc/grpc-js';
import { describeError, isLegateError } from '../../../base/errors.ts';
import { printable, truncate } from '../../../base/text.ts';

/** What a call ends with: a code of gRPC and a text. */
export class RpcError extends Error {
  readonly code: status;
  readonly details: string;

  constructor(code: status, details: string) {
    super(details);
    this.name = 'RpcError';
    this.code = code;
    this.details = details;
  }
}

/** Codes and texts are etcd's where its clients compare them (etcd, api/v3rpc/rpctypes/error.go). */
const known = {
  emptyKey: [status.INVALID_ARGUMENT, 'etcdserver: key is not provided'],
  keyNotFound: [status.INVALID_ARGUMENT, 'etcdserver: key not found'],
  valueProvided: [status.INVALID_ARGUMENT, 'etcdserver: value is provided'],
  leaseProvided: [status.INVALID_ARGUMENT, 'etcdserver: lease is provided'],
  tooManyOps: [status.INVALID_ARGUMENT, 'etcdserver: too many operations in txn request'],
  duplicateKey: [status.INVALID_ARGUMENT, 'etcdserver: duplicate key given in txn request'],
  invalidSort: [status.INVALID_ARGUMENT, 'etcdserver: invalid sort option'],
  tooLarge: [status.INVALID_ARGUMENT, 'etcdserver: request is too large'],
  compacted: [status.OUT_OF_RANGE, 'etcdserver: mvcc: required revision has been compacted'],
  futureRevision: [status.OUT_OF_RANGE, 'etcdserver: mvcc: required revision is a future revision'],
  leaseNotFound: [status.NOT_FOUND, 'etcdserver: requested lease not found'],
  leaseExists: [status.FAILED_PRECONDITION, 'etcdserver: lease already exists'],
  leaseTtlTooLarge: [status.OUT_OF_RANGE, 'etcdserver: too large lease TTL'],
  tooManyRequests: [status.RESOURCE_EXHAUSTED, 'etcdserver: too many requests'],
  authNotEnabled: [status.FAILED_PRECONDITION, 'etcdserver: authentication is not enabled'],
} as const;

export function rpcError(name: keyof typeof known, more = ''): RpcError {
  const [code, text] = known[name];
  return new RpcError(code, more === '' ? text : `${text}: ${more}`);
}

export function invalid(what: string): RpcError {
  return new RpcError(status.INVALID_ARGUMENT, what);
}

/** What the client is told of an error of the store. */
export function toRpcError(error: unknown): RpcError {
  if (error instanceof RpcError) return error;
  if (!isLegateError(error)) return new RpcError(status.INTERNAL, 'internal error of the sidecar that has the store');
  const text = truncate(
    printable(error.hint === undefined ? describeError(error) : `${error.message}; ${error.hint}`),
    500,
  );
  switch (error.code) {
    case 'E_STORE_AWAY':
    case 'E_CLOSED':
      return new RpcError(status.UNAVAILABLE, text);
    case 'E_STORE_DAMAGED':
      return new RpcError(status.DATA_LOSS, text);
    case 'E_TOO_LARGE':
      return new RpcError(status.RESOURCE_EXHAUSTED, text);
    case 'E_NOT_FOUND':
      return rpcError('leaseNotFound');
    case 'E_CONFLICT':
      return rpcError('leaseExists');
    default:
      return new RpcError(status.INVALID_ARGUMENT, text);
  }
}
