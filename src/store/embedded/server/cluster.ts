import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { create } from '@bufbuild/protobuf';
import { type Endpoint, formatEndpoint } from '../../../model/address.ts';
import {
  AlarmRequest_AlarmAction as AlarmAction,
  AlarmResponseSchema,
  Auth,
  Cluster,
  Maintenance,
  MemberListResponseSchema,
  MemberSchema,
  StatusResponseSchema,
} from '../../etcd-api/gen/etcd_pb.ts';
import type { StoreAccess } from '../access.ts';
import type { Calls } from './calls.ts';
import { invalid, rpcError } from './errors.ts';
import { type Identity, raftTerm } from './wire.ts';

/** The version of the API, and that this is not etcd itself. */
const version = '3.4.0-legate';

export interface ClusterOptions {
  readonly access: StoreAccess;
  readonly identity: Identity;
  readonly endpoint: () => Endpoint;
  /** Whether it is reached over TLS. */
  readonly secure: () => boolean;
  /** Throws while the store cannot be used. */
  readonly revision: () => number;
}

/** What is asked of a cluster, answered for one member that is always its leader. */
export function serveCluster(calls: Calls, { access, identity, endpoint, secure, revision }: ClusterOptions): void {
  calls.answer(Maintenance.method.status, async () => {
    const header = identity.header(revision());
    const dbSize = BigInt(await sizeOf(access.path));
    const raft = { raftIndex: header.revision, raftTerm, raftAppliedIndex: header.revision };
    const sizes = { dbSize, dbSizeInUse: dbSize };
    return create(StatusResponseSchema, { header, version, leader: identity.memberId, ...sizes, ...raft });
  });
  calls.answer(Maintenance.method.alarm, async ({ action }) => {
    if (action !== AlarmAction.GET) throw invalid('this store raises no alarms: see legate status on its host');
    revision();
    return create(AlarmResponseSchema);
  });
  calls.answer(Cluster.method.memberList, async () => {
    const url = `${secure() ? 'https' : 'http'}://${formatEndpoint(endpoint())}`;
    const member = create(MemberSchema, { ID: identity.memberId, name: 'legate', clientURLs: [url] });
    return create(MemberListResponseSchema, { header: identity.header(revision()), members: [member] });
  });
  calls.answer(Auth.method.authenticate, async () => {
    throw rpcError('authNotEnabled');
  });
  for (const [hint, paths] of Object.entries(refused)) for (const path of paths) calls.refuse(path, hint);
}

/** What clients of etcd may ask for beyond the API that this store has. */
const refused = {
  'it has no users and roles; use etcd itself for that (store.kind: etcd)': [
    ...['AuthEnable', 'AuthDisable', 'AuthStatus', 'UserAdd', 'UserGet', 'UserList', 'UserDelete'],
    ...['UserChangePassword', 'UserGrantRole', 'UserRevokeRole', 'RoleAdd', 'RoleGet', 'RoleList', 'RoleDelete'],
    ...['RoleGrantPermission', 'RoleRevokePermission'],
  ].map((method) => `/etcdserverpb.Auth/${method}`),
  'it has one member only; use etcd itself for more (store.kind: etcd)': [
    ...['MemberAdd', 'MemberRemove', 'MemberUpdate', 'MemberPromote'].map(
      (method) => `/etcdserverpb.Cluster/${method}`,
    ),
    '/etcdserverpb.Maintenance/MoveLeader',
  ],
  'take a backup with legate store backup': ['/etcdserverpb.Maintenance/Snapshot'],
  'its own host looks after its files': [
    ...['Defragment', 'Hash', 'HashKV'].map((method) => `/etcdserverpb.Maintenance/${method}`),
  ],
  'make locks and elections with transactions and leases': [
    ...['Lock', 'Unlock'].map((method) => `/v3lockpb.Lock/${method}`),
    ...['Campaign', 'Proclaim', 'Leader', 'Observe', 'Resign'].map((method) => `/v3electionpb.Election/${method}`),
  ],
} as const;

/** The bytes of the store's files; 0 where they cannot be seen. */
async function sizeOf(path: string): Promise<number> {
  const names = await readdir(path).catch(() => []);
  const sizes = await Promise.all(
    names.map((name) =>
      stat(join(path, name)).then(
        ({ size }) => size,
        () => 0,
      ),
    ),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}
