import type { WhyDocument } from '../../sidecar/admin/why-document.ts';
import type { HostProcess } from '../testbed/host-process.ts';
import type { Testbed } from '../testbed/testbed.ts';

/** The host with consumers, the one with `db`, and the one with the authority and the store. */
export const consumers = 1;
export const backends = 2;
export const authority = 3;
/** How long certificates live, so that one can be seen to end. */
export const certificateLifeMs = 20_000;
export const configFile = '/etc/legate/legate.yaml';

/** One thing that is broken, and what `why` has to say of it. */
export interface WhyFault {
  readonly name: string;
  /** Who asks for what, on host 1. */
  readonly asked: { readonly name: string; readonly consumer: string };
  readonly make: (testbed: Testbed) => Promise<void>;
  /** Undefined: nothing was broken. */
  readonly heal?: (testbed: Testbed) => Promise<void>;
  /** The first step that is bad, or without one the first note. */
  readonly step: WhyDocument['steps'][number]['name'];
  readonly words: RegExp;
  readonly fix: RegExp;
}

const web = { name: 'db', consumer: 'web' };
const table = 'why_fault';

/** Drops what goes out to, or comes in at, a TCP port of a host; silently, as firewalls do. */
async function block(testbed: Testbed, host: number, hook: 'input' | 'output', port: number): Promise<void> {
  const chain = `{ type filter hook ${hook} priority 0 ; tcp dport ${port} drop ; }`;
  await testbed.host(host).run('nft', `add table inet ${table}; add chain inet ${table} ${hook} ${chain}`);
}

async function unblock(testbed: Testbed, host: number): Promise<void> {
  await testbed.host(host).run('nft', 'delete', 'table', 'inet', table);
}

async function legate(testbed: Testbed, host: number, ...args: string[]): Promise<void> {
  await testbed.host(host).run('legate', ...args);
}

function consumer(name: string, ...options: string[]): (testbed: Testbed) => Promise<void> {
  return async (testbed) => {
    const words = ['run', '-d', '--name', name, '--label', `legate.consumer=${name}`, ...options, 'busybox'];
    await testbed.host(consumers).docker(...words, 'sleep', '3600');
  };
}

function without(host: number, name: string): (testbed: Testbed) => Promise<void> {
  return async (testbed) => void (await testbed.host(host).docker('rm', '-f', name));
}

/** Joins a host to the mesh; `--again` where it was in it. */
export async function enrol(testbed: Testbed, host: number, ...more: '--again'[]): Promise<void> {
  const at = testbed.host(host);
  const token = (await testbed.host(authority).run('legate', 'token')).trim().split('\n').at(-1) ?? '';
  const { address } = testbed.host(authority);
  await at.run('sh', '-c', `echo ${token} | legate join ${address} ${more.join()} --token - -c ${configFile}`);
}

/** What `why` says of a host that the others refuse. */
async function letIn(testbed: Testbed): Promise<void> {
  await testbed.host(backends).sidecar.kill('SIGKILL');
  await enrol(testbed, backends, '--again');
  await testbed.host(backends).startSidecar();
}

/** The faults, in the order in which they are made. */
export function whyFaults(): readonly WhyFault[] {
  let holder: HostProcess | undefined;
  return [
    {
      ...{ name: 'no such service', asked: { name: 'dbs', consumer: 'web' }, make: () => Promise.resolve() },
      ...{ step: 'name', words: /there is no service dbs: .*did you mean db\?/, fix: /^ask for db/ },
    },
    {
      name: 'unhealthy instance',
      asked: web,
      make: async (testbed) => void (await testbed.host(backends).docker('pause', 'db')),
      heal: async (testbed) => void (await testbed.host(backends).docker('unpause', 'db')),
      ...{ step: 'choice', words: /only instance of db cannot be used/, fix: /docker unpause db$/ },
    },
    {
      name: 'drained host',
      asked: web,
      make: (testbed) => legate(testbed, backends, 'drain', '--host'),
      heal: (testbed) => legate(testbed, backends, 'undrain', '--host'),
      ...{ step: 'choice', words: /only instance of db cannot be used/, fix: /legate undrain / },
    },
    {
      name: 'wrong network',
      asked: { name: 'db', consumer: 'alone' },
      make: consumer('alone', '--network', 'none'),
      heal: without(consumers, 'alone'),
      ...{ step: 'consumer', words: /no address on a bridge/, fix: /^docker network connect bridge alone$/ },
    },
    {
      name: 'policy',
      asked: web,
      make: (testbed) => legate(testbed, authority, 'intent', 'deny', 'web', 'db'),
      heal: (testbed) => legate(testbed, authority, 'intent', 'allow', 'web', 'db'),
      ...{ step: 'policy', words: /web may not call db/, fix: /legate intent allow web db$/ },
    },
    {
      name: 'Docker alias',
      asked: { name: 'db', consumer: 'near' },
      make: async (testbed) => {
        await testbed.host(consumers).docker('network', 'create', 'shop');
        await consumer('near', '--network', 'shop', '--dns', '240.77.0.53')(testbed);
        await consumer('other', '--network', 'shop', '--network-alias', 'db')(testbed);
      },
      heal: async (testbed) => {
        for (const name of ['near', 'other']) await without(consumers, name)(testbed);
        await testbed.host(consumers).docker('network', 'rm', 'shop');
      },
      ...{ step: 'alias', words: /Docker answers db itself in network shop/, fix: /ask for db\.mesh\.internal/ },
    },
    {
      name: 'port 53 taken',
      asked: { name: 'db', consumer: 'late' },
      make: async (testbed) => {
        const host = testbed.host(consumers);
        const gateway = await host.docker('network', 'inspect', '-f', '{{(index .IPAM.Config 0).Gateway}}', 'bridge');
        await host.sidecar.kill();
        const bind = `require('node:dgram').createSocket('udp4').bind(53, '${gateway.trim()}')`;
        holder = await host.spawn(process.execPath, '-e', bind);
        await host.startSidecar();
        await consumer('late', '--dns', gateway.trim())(testbed);
      },
      heal: async (testbed) => {
        await holder?.kill('SIGKILL');
        await without(consumers, 'late')(testbed);
      },
      ...{ step: 'resolver', words: /this sidecar cannot listen: .*held by/, fix: /--dns 240\.77\.0\.53/ },
    },
    {
      name: 'stale store',
      asked: web,
      make: (testbed) => block(testbed, consumers, 'output', 7712),
      heal: (testbed) => unblock(testbed, consumers),
      ...{ step: 'store', words: /the store is away/, fix: /./ },
    },
    {
      name: 'blocked 7711',
      asked: web,
      make: (testbed) => block(testbed, backends, 'input', 7711),
      heal: (testbed) => unblock(testbed, backends),
      ...{ step: 'tunnel', words: /no answer from .*:7711/, fix: /firewall .*7711\/tcp/ },
    },
    {
      name: 'expired certificate',
      asked: web,
      make: async (testbed) => {
        const host = testbed.host(backends);
        await host.sidecar.kill('SIGKILL');
        await new Promise((resolve) => setTimeout(resolve, certificateLifeMs + 5000));
        await host.startSidecar(undefined, { ready: false });
      },
      heal: letIn,
      ...{ step: 'choice', words: /only instance of db cannot be used/, fix: /clock .*legate join .* --again/ },
    },
    {
      name: 'revoked host',
      asked: web,
      make: async (testbed) => legate(testbed, authority, 'host', 'revoke', testbed.host(backends).name),
      heal: letIn,
      ...{ step: 'choice', words: /db has no instances/, fix: /legate join .* --again/ },
    },
  ];
}
