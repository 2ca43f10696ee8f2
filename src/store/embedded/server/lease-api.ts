import { create, toBinary } from '@bufbuild/protobuf';
import { status } from '@grpc/grpc-js';
import {
  Lease,
  LeaseGrantResponseSchema,
  LeaseKeepAliveResponseSchema,
  LeaseLeasesResponseSchema,
  LeaseRevokeResponseSchema,
  LeaseStatusSchema,
  LeaseTimeToLiveResponseSchema,
} from '../../etcd-api/gen/etcd_pb.ts';
import { Leases } from '../leases.ts';
import type { ByteStream, Calls } from './calls.ts';
import { rpcError, toRpcError } from './errors.ts';
import { type Identity, leaseId, leaseNumber, toNumber } from './wire.ts';

export interface LeaseApiOptions {
  readonly leases: Leases;
  readonly identity: Identity;
  /** Throws while the store cannot be used. */
  readonly revision: () => number;
}

/** The service Lease, on the leases of the store. A server that was restarted gives each its full TTL again. */
export function serveLeases(calls: Calls, { leases, identity, revision }: LeaseApiOptions): void {
  calls.answer(Lease.method.leaseGrant, async ({ TTL, ID }, _raw, signal) => {
    if (toNumber(TTL) * 1000 > Leases.maxTtlMs) throw rpcError('leaseTtlTooLarge');
    const { id, ttlMs } = await leases.grant(Math.max(1, toNumber(TTL) * 1000), signal, leaseId(ID));
    const granted = { ID: leaseNumber(id), TTL: BigInt(Math.ceil(ttlMs / 1000)) };
    return create(LeaseGrantResponseSchema, { header: identity.header(revision()), ...granted });
  });
  calls.answer(Lease.method.leaseRevoke, async ({ ID }) => {
    if (!(await leases.revoke(leaseId(ID) ?? ''))) throw rpcError('leaseNotFound');
    return create(LeaseRevokeResponseSchema, { header: identity.header(revision()) });
  });
  calls.answer(Lease.method.leaseTimeToLive, async ({ ID, keys }) => {
    const header = identity.header(revision());
    const lease = leases.describe(leaseId(ID) ?? '');
    if (lease === undefined) return create(LeaseTimeToLiveResponseSchema, { header, ID, TTL: -1n });
    return create(LeaseTimeToLiveResponseSchema, {
      header,
      ID,
      TTL: BigInt(Math.floor(lease.remainingMs / 1000)),
      grantedTTL: BigInt(Math.ceil(lease.ttlMs / 1000)),
      keys: keys ? lease.keys.map((key) => Buffer.from(key)) : [],
    });
  });
  calls.answer(Lease.method.leaseLeases, async () => {
    const all = leases.ids().map((id) => create(LeaseStatusSchema, { ID: leaseNumber(id) }));
    return create(LeaseLeasesResponseSchema, { header: identity.header(revision()), leases: all });
  });
  calls.stream(Lease.method.leaseKeepAlive, (stream, decode) => {
    serveKeepAlives(stream, calls, (raw) => {
      const { ID } = decode(raw);
      const header = identity.header(revision());
      const ttlMs = leases.keepAlive(leaseId(ID) ?? '') ?? 0;
      const answer = create(LeaseKeepAliveResponseSchema, { header, ID, TTL: BigInt(Math.ceil(ttlMs / 1000)) });
      return toBinary(LeaseKeepAliveResponseSchema, answer);
    });
  });
}

/** One answer for each request, in order. A client that takes none is read no further. */
function serveKeepAlives(stream: ByteStream, calls: Calls, answer: (raw: Buffer) => Uint8Array): void {
  const path = '/etcdserverpb.Lease/LeaseKeepAlive';
  stream.on('data', (raw: Buffer) => {
    try {
      const bytes = answer(raw);
      calls.count(path, status.OK);
      if (!stream.write(bytes)) {
        stream.pause();
        stream.once('drain', () => stream.resume());
      }
    } catch (error) {
      const failure = toRpcError(error);
      calls.count(path, failure.code);
      stream.emit('error', failure);
    }
  });
  stream.once('end', () => stream.end());
}
