import type { WhyDocument } from '../../sidecar/admin/why-document.ts';
import { describeError } from '../../src/base/errors.ts';
import { waitFor } from '../support/wait.ts';
import { Testbed } from '../testbed/testbed.ts';
import {
  authority,
  backends,
  certificateLifeMs,
  configFile,
  consumers,
  enrol,
  type WhyFault,
  whyFaults,
} from './why-faults.ts';

/** How long `why` may take to name a fault: a silent tunnel is given up after 15 s, a host is lost after its lease. */
const namedWithinMs = 60_000;

/** Makes each fault on the testbed, prints what `why` says of it, and gives the exit status. */
export async function printWhy(only: RegExp | undefined): Promise<number> {
  const closers: (() => void | Promise<void>)[] = [];
  try {
    const testbed = await Testbed.up({ teardown: (run) => void closers.push(run) }, { hosts: 3, say: console.log });
    await bringUp(testbed);
    let wrong = 0;
    for (const fault of whyFaults().filter(({ name }) => only?.test(name) ?? true)) {
      if (!(await named(testbed, fault))) wrong += 1;
    }
    console.log(wrong === 0 ? 'each was named, with its fix' : `${wrong} were not named as they should be`);
    return wrong === 0 ? 0 : 1;
  } finally {
    for (const close of closers.reverse()) await close();
  }
}

async function bringUp(testbed: Testbed): Promise<void> {
  const { address } = testbed.host(authority);
  testbed.host(authority).sidecar.configure({ store: { kind: 'embedded', listen: `${address}:7712` } });
  const life = `${certificateLifeMs / 1000}s`;
  await testbed.host(authority).run('legate', 'init', '-c', configFile, '--certificate-life', life);
  await testbed.host(authority).startSidecar();
  for (const host of [backends, consumers]) {
    testbed.host(host).sidecar.configure({});
    await enrol(testbed, host);
    await testbed.host(host).startSidecar();
  }
  for (const host of [backends, consumers]) await testbed.host(host).image('busybox');
  const labels = ['--label', 'legate.service=db', '--label', 'legate.port=80', '--label', 'legate.check=tcp'];
  const server = ['busybox', 'httpd', '-f', '-p', '80', '-h', '/etc'];
  await testbed.host(backends).docker('run', '-d', '--name', 'db', ...labels, ...server);
  const options = ['--label', 'legate.consumer=web', '--dns', '240.77.0.53'];
  await testbed.host(consumers).docker('run', '-d', '--name', 'web', ...options, 'busybox', 'sleep', '3600');
  await fine(testbed);
}

function ask(testbed: Testbed, { name, consumer }: WhyFault['asked']): Promise<WhyDocument> {
  const query = new URLSearchParams({ name, consumer });
  return testbed.host(consumers).sidecar.json<WhyDocument>(`/api/why?${query.toString()}`);
}

async function fine(testbed: Testbed): Promise<void> {
  let last = '';
  const isFine = async (): Promise<boolean> => {
    const { steps } = await ask(testbed, { name: 'db', consumer: 'web' });
    const wrong = steps.filter(({ verdict }) => verdict === 'bad' || verdict === 'note');
    last = wrong.map(({ name, text }) => `${name}: ${text}`).join('; ');
    return wrong.length === 0;
  };
  await waitFor('nothing to be wrong', isFine, { timeoutMs: namedWithinMs, everyMs: 200 }).catch((error: unknown) => {
    throw new Error(`${describeError(error)}; ${last}`);
  });
}

async function named(testbed: Testbed, fault: WhyFault): Promise<boolean> {
  let last = 'it was not asked';
  const isNamed = async (): Promise<boolean> => {
    const { steps, fix } = await ask(testbed, fault.asked);
    const step = steps.find(({ verdict }) => verdict === 'bad') ?? steps.find(({ verdict }) => verdict === 'note');
    last = `${step?.name ?? 'fine'}: ${step?.text ?? ''} → ${fix ?? 'no fix'}`;
    return step?.name === fault.step && fault.words.test(step.text) && fault.fix.test(fix ?? '');
  };
  try {
    await fault.make(testbed);
    const beganMs = performance.now();
    await waitFor(`why to name ${fault.name}`, isNamed, { timeoutMs: namedWithinMs, everyMs: 200 });
    console.log(`ok   ${fault.name} (${((performance.now() - beganMs) / 1000).toFixed(1)} s)  ${last}`);
    return true;
  } catch (error) {
    console.log(`not  ${fault.name}  ${last} (${describeError(error)})`);
    return false;
  } finally {
    await fault.heal?.(testbed);
    if (fault.heal !== undefined) await fine(testbed);
  }
}
