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
import { latinOf } from './key-range.ts';
import { leaseIdFor } from './lease-owner.ts';
import type { Permissions } from './permissions.ts';
import { type Identity, leaseId, leaseNumber, toNumber } from './wire.ts';

export interface LeaseApiOptions {
  readonly leases: Leases;
  readonly identity: Identity;
  readonly permissions: Permissions;
  /** Throws while the store cannot be used. */
  readonly revision: () => number;
}

/** The service Lease, on the leases of the store. A server that was restarted gives each its full TTL again. */
export function serveLeases(calls: Calls, { leases, identity, revision, permissions }: LeaseApiOptions): void {
  calls.answer(Lease.method.leaseGrant, async ({ TTL, ID }, { signal, caller }) => {
    if (toNumber(TTL) * 1000 > Leases.maxTtlMs) throw rpcError('leaseTtlTooLarge');
    const wanted = leaseId(ID);
    if (wanted !== undefined) permissions.checkLease(caller, wanted, 'choose the id of');
    const own = wanted ?? (caller.hostId === undefined ? undefined : leaseIdFor(caller.hostId));
    const { id, ttlMs } = await leases.grant(Math.max(1, toNumber(TTL) * 1000), signal, own);
    const granted = { ID: leaseNumber(id), TTL: BigInt(Math.ceil(ttlMs / 1000)) };
    return create(LeaseGrantResponseSchema, { header: identity.header(revision()), ...granted });
  });
  calls.answer(Lease.method.leaseRevoke, async ({ ID }, { caller }) => {
    permissions.checkLease(caller, leaseId(ID) ?? '', 'revoke');
    if (!(await leases.revoke(leaseId(ID) ?? ''))) throw rpcError('leaseNotFound');
    return create(LeaseRevokeResponseSchema, { header: identity.header(revision()) });
  });
  calls.answer(Lease.method.leaseTimeToLive, async ({ ID, keys }, { caller }) => {
    const header = identity.header(revision());
    const hidden = permissions.hiddenFrom(caller);
    const isHidden = (key: string): boolean => hidden !== undefined && latinOf(key).startsWith(hidden);
    const lease = leases.describe(leaseId(ID) ?? '');
    if (lease === undefined) return create(LeaseTimeToLiveResponseSchema, { header, ID, TTL: -1n });
    return create(LeaseTimeToLiveResponseSchema, {
      header,
      ID,
      TTL: BigInt(Math.floor(lease.remainingMs / 1000)),
      grantedTTL: BigInt(Math.ceil(lease.ttlMs / 1000)),
      keys: keys ? lease.keys.filter((key) => !isHidden(key)).map((key) => Buffer.from(key)) : [],
    });
  });
  calls.answer(Lease.method.leaseLeases, async () => {
    const all = leases.ids().map((id) => create(LeaseStatusSchema, { ID: leaseNumber(id) }));
    return create(LeaseLeasesResponseSchema, { header: identity.header(revision()), leases: all });
  });
  calls.stream(Lease.method.leaseKeepAlive, (stream, decode, caller) => {
    serveKeepAlives(stream, calls, (raw) => {
      const { ID } = decode(raw);
      const header = identity.header(revision());
      const id = leaseId(ID) ?? '';
      const isOwn = permissions.mayUseLease(caller, id);
      if (!isOwn) permissions.noteLease(caller, id, 'keep alive');
      // Another's is to this host as one that has lapsed: it then asks for its own.
      const ttlMs = (isOwn ? leases.keepAlive(id) : undefined) ?? 0;
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
