import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { ServiceDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { checkout, run, temporaryFolder } from './support/agent.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';
import { buildImage, documentedRun, limitedTo, unitCapabilities } from './testbed/deployment.ts';
import { newerEngine } from './testbed/engines.ts';
import type { TestbedHost } from './testbed/host.ts';
import { HostSidecar } from './testbed/host-sidecar.ts';
import { Testbed, testbedNeeds } from './testbed/testbed.ts';

/** The sidecar as it is deployed: a plain process with the unit's rights, a container as documented, on several hosts. */

const skip = unless(...testbedNeeds, 'command:curl');
const newer = skip === false ? await newerEngine() : { missing: skip };
if ('missing' in newer && process.env.CI === 'true') throw new Error(newer.missing);

const nameServer = '240.77.0.53';
const httpd = 'mkdir -p /w; hostname >/w/index.html; exec httpd -f -h /w -p';
const labels = ['--label', 'legate.service=db', '--label', 'legate.port=80'];

/** A container `db` that says its name, which Docker starts at each boot. */
async function startDb(host: TestbedHost): Promise<void> {
  const names = ['--name', 'db', '--hostname', `db-on-${host.name}`];
  const kept = ['--restart', 'always', '--stop-signal', 'KILL'];
  await host.docker('run', '-d', ...names, ...kept, ...labels, 'busybox', 'sh', '-c', `${httpd} 80`);
}

/** What a new container on the host gets from a name and port of the mesh; throws when it does not get through. */
function askFromContainer(host: TestbedHost, name: string, port: number): Promise<string> {
  const ask = `printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 ${name} ${port} | tail -n 1`;
  return host.docker('run', '--rm', '--dns', nameServer, 'busybox', 'sh', '-c', ask);
}

async function status(sidecar: HostSidecar): Promise<StatusDocument> {
  return sidecar.json<StatusDocument>('/api/status');
}

/** Waits until `db` is linked and the sidecar finds nothing wrong with its host. */
async function well(sidecar: HostSidecar): Promise<StatusDocument> {
  await waitFor(`db on ${sidecar.host.name}`, async () => {
    const { vip, usable } = await sidecar.json<ServiceDocument>('/api/services/db');
    return vip !== null && usable === 1;
  });
  return waitFor(`nothing to be wrong on ${sidecar.host.name}`, async () => {
    const found = await status(sidecar);
    if (found.todo.length > 0) throw new Error(found.todo.map(({ message }) => message).join('; '));
    return found.vip.state === 'on' && found;
  });
}

t.test('systemd finds no fault in the unit', { skip: unless('command:systemd-analyze') }, async (t) => {
  // Where nothing is installed, the program that it starts would be one.
  const unit = join(temporaryFolder(t), 'legate.service');
  writeFileSync(
    unit,
    readFileSync(join(checkout, 'deploy', 'legate.service'), 'utf8').replace(/\/usr\/local\S+/, '/bin/true'),
  );
  t.same(await run('systemd-analyze', ['verify', '--man=no', unit]), { status: 0, stdout: '', stderr: '' });
});

t.test('as a process and as a container', { skip, timeout: 270_000 }, async (t) => {
  const engines = 'folder' in newer ? { 3: newer.folder } : {};
  const testbed = await Testbed.up(t, { hosts: 3, engines });
  const [one, two, three] = [testbed.host(1), testbed.host(2), testbed.host(3)];
  await Promise.all(testbed.hosts.map(startDb));
  const container = new HostSidecar(two);

  await t.test('a plain process with the rights of the unit, and each of them is needed', async (t) => {
    const capabilities = unitCapabilities();
    t.ok(capabilities.length > 0);
    const sidecar = await one.startSidecar({}, { prefix: limitedTo(capabilities) });
    await well(sidecar);
    t.match(
      await one.run('cat', `/proc/${await one.run('pgrep', '-o', '-x', 'node')}/status`),
      /CapBnd:\s+0000000000081400/,
    );
    t.equal(await askFromContainer(one, 'db', 80), 'db-on-host-1');
    t.equal(await sidecar.kill(), 0);
    const missing: Readonly<Record<string, RegExp>> = {
      net_admin: /virtual addresses/,
      net_bind_service: /port 53/,
      sys_ptrace: /callers/,
    };
    for (const capability of capabilities) {
      const fewer = await one.startSidecar(
        {},
        { prefix: limitedTo(capabilities.filter((name) => name !== capability)) },
      );
      const said = await waitFor(`a word about ${capability}`, async () => {
        const { todo, vip } = await status(fewer);
        const words = `${todo.map(({ message }) => message).join('\n')}\n${vip.reason ?? ''}`;
        return missing[capability]?.test(words) === true && words;
      });
      t.ok(said, capability);
      await fewer.kill();
    }
  });

  await t.test('a container as documented', async (t) => {
    await buildImage(t, two);
    container.configure({});
    const [run = '', ...words] = documentedRun();
    // So that its socket is reached from outside, and its health is known soon.
    const more = ['-v', `${two.folder}:${two.folder}`, '--health-interval', '1s'];
    await two.docker(run, ...more, ...words);
    await container.isReady();
    const found = await well(container);
    t.match(found.docker.state, 'connected');
    t.equal(await askFromContainer(two, 'db', 80), 'db-on-host-2');
    t.match(await two.docker('exec', 'legate', 'legate', 'status'), /all is well/);
    const health = (): Promise<string> => two.docker('inspect', '--format', '{{.State.Health.Status}}', 'legate');
    await waitFor('the container to be healthy', async () => (await health()) === 'healthy');
    const inside = ['inspect', '--format', '{{.HostConfig.Privileged}} {{.HostConfig.ReadonlyRootfs}}', 'legate'];
    t.equal(await two.docker(...inside), 'false true');
    await two.docker('stop', 'legate');
    t.equal(await two.docker('inspect', '--format', '{{.State.ExitCode}}', 'legate'), '0');
    t.notMatch(await two.run('nft', 'list', 'tables'), /legate/, 'it takes back what it made');
    await two.docker('start', 'legate');
    await container.isReady();
  });

  await t.test('a newer engine', { skip: 'missing' in newer ? newer.missing : false }, async (t) => {
    t.match(await three.docker('version', '--format', '{{.Server.Version}}'), /^26\.1\./);
    const sidecar = await three.startSidecar({}, { prefix: limitedTo(unitCapabilities()) });
    t.match((await well(sidecar)).docker, { state: 'connected' });
    t.equal(await askFromContainer(three, 'db', 80), 'db-on-host-3');
    await sidecar.kill();
  });

  await t.test('a link to other hosts outlives a power cut, from a process and from a container', async (t) => {
    for (const host of [two, three]) {
      await host.docker(
        'run',
        '-d',
        '--name',
        'web',
        '--hostname',
        `web-on-${host.name}`,
        '-p',
        '8080:80',
        'busybox',
        'sh',
        '-c',
        `${httpd} 80`,
      );
    }
    const far = [two, three].map(({ number, address }) => ({
      ...{ service: 'web', name: `web-${number}`, address, port: 8080, reach: 'mesh' },
      checks: [{ kind: 'tcp', interval: '250ms', timeout: '500ms', fall: 2 }],
    }));
    const config = { network: { underlay: 'trusted' }, instances: far };
    const sidecar = await one.startSidecar(config);
    const usable = async (): Promise<number> => (await sidecar.json<ServiceDocument>('/api/services/web')).usable;
    await waitFor('both', async () => (await usable()) === 2);
    // Each data-plane process takes turns of its own.
    const both = new Set<string>();
    for (let n = 0; n < 8; n += 1) both.add(await askFromContainer(one, 'web', 8080));
    t.same([...both].sort(), ['web-on-host-2', 'web-on-host-3']);
    await three.powerOff();
    await waitFor('the dead host to be left out', async () => (await usable()) === 1);
    for (let n = 0; n < 3; n += 1) t.equal(await askFromContainer(one, 'web', 8080), 'web-on-host-2');

    const { id } = (await status(container)).host;
    await two.powerOff();
    await two.boot();
    await container.isReady();
    await well(container);
    t.equal(await askFromContainer(two, 'db', 80), 'db-on-host-2', 'the container is back after a power cut');
    t.equal((await status(container)).host.id, id, 'and so is the sidecar, as the same host');
    await sidecar.kill();
  });

  await t.test('names answer when the first container boots', async (t) => {
    const first = ['sh', '-c', 'nslookup db.mesh.internal >/first 2>&1 && echo answered >>/first; exec sleep 1000'];
    const kept = ['--name', 'asker', '--restart', 'always', '--stop-signal', 'KILL', '--dns', nameServer];
    const sidecar = await one.startSidecar({});
    await well(sidecar);
    await one.docker('run', '-d', ...kept, 'busybox', ...first);
    await one.docker('exec', 'asker', 'rm', '/first');
    await one.powerOff();
    await one.boot({ engine: false });
    await one.startSidecar();
    await one.startEngine();
    const asked = await waitFor('what the container was told', async () => {
      const said = await one.docker('exec', 'asker', 'cat', '/first');
      return /answered|can't/.test(said) && said;
    });
    t.match(asked, /Address: 240\.77\.(?!0\.53)/, 'the first question was answered');
  });
});
