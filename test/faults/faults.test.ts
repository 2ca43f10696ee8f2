import t from 'tap';
import { unless } from '../support/needs.ts';
import { testbedNeeds } from '../testbed/testbed.ts';
import { FaultMesh } from './fault-mesh.ts';
import { faultsOf, runFaults, wronglyFailed } from './fault-table.ts';

const storeDownMs = 12_000;

/**
 * What a consumer notices of each fault on real hosts. How long things take is told, not tested: that is what the command
 * `npm run testbed -- faults` is for.
 */
t.test(
  'faults under traffic, the store on etcd',
  {
    skip: unless(...testbedNeeds, 'command:etcd', 'command:etcdctl'),
    timeout: 280_000,
  },
  async (t) => {
    const mesh = await FaultMesh.up(t, 'etcd');
    await runFaults(mesh, faultsOf(mesh, storeDownMs), (row) => {
      t.comment(JSON.stringify(row));
      t.ok(row.asked > 50, `${row.fault}: ${row.asked} requests were made`);
      t.equal(
        wronglyFailed(row),
        0,
        `${row.fault}: ${row.failed} failed, may: ${row.mayFail} (${row.problems.join()})`,
      );
    });
  },
);
