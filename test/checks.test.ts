import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import type { InstanceDocument, ServiceDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { DockerClient } from '../sidecar/docker/client.ts';
import { execThrough } from '../sidecar/docker/exec.ts';
import { systemClock } from '../src/base/clock.ts';
import { HealthRunner } from '../src/health/runner.ts';
import { type CheckSpec, checkDefaults } from '../src/model/check.ts';
import { Agent, checkout, must, run, temporaryFolder } from './support/agent.ts';
import { TestDocker } from './support/docker.ts';
import { unless } from './support/needs.ts';
import { parts } from './support/records.ts';
import { waitFor } from './support/wait.ts';

const docker = unless('docker', 'busybox', 'command:musl-gcc', 'command:gcc');
const socket = '/var/run/docker.sock';

/** Real commands in real containers, watched by a real runner. */
// They share nothing, and wait more than they work.
t.jobs = 3;

t.test('exec: commands inside containers', { skip: docker, timeout: 180_000 }, async (t) => {
  const engine = await TestDocker.open(t);
  const client = new DockerClient({ socket });
  t.teardown(() => client.close());
  const runInContainer = execThrough(client);
  const container = await engine.start('busy', ['-e', 'COLOUR=green', '--user', '1000'], ['sleep', '100000']);
  const inside = (command: string, signal = AbortSignal.timeout(20_000), where = container) =>
    runInContainer(where, command, signal, () => undefined);
  const processes = async (): Promise<string> =>
    (await engine.docker('top', engine.name('busy'), '-eo', 'pid,args')).split('\n').slice(1).join('\n');
  const onlySleep = () => waitFor('nothing to be left', async () => (await processes()).split('\n').length === 1);

  await t.test('exit status and output, as the container has it', async (t) => {
    const cases: [command: string, exitStatus: number, output: RegExp][] = [
      ['echo $COLOUR; echo "it\'s \\"fine\\"" >&2', 0, /^green\nit's "fine"\n$/],
      ['cat /proc/self/status', 0, /^Uid:\t1000/m],
      ['exit 3', 3, /^$/],
      ['no-such-program --now', 127, /no-such-program/],
      ['kill -9 $$', 137, /^$/],
      ['echo before; exec 1>&- 2>&-; sleep 0.3; exit 4', 4, /^before\n$/],
      ['printf "\\033[31m\\000"', 0, /^\u001b\[31m\u0000$/],
      ['echo 42', 0, /^42\n$/],
    ];
    for (const [command, exitStatus, output] of cases) {
      t.match(await inside(command), { kind: 'ended', exitStatus, output }, command);
    }
    const large = await inside(
      'head=$(cat /bin/busybox | tr -dc a | cut -c1-9 2>/dev/null); cat /bin/ask-musl; exit 5',
    );
    t.match(large, { kind: 'ended', exitStatus: 5 });
    t.ok(large.kind === 'ended' && large.output.length <= 4096, 'only the beginning is kept');
  });

  await t.test('what never ends is killed with all that it has started', async (t) => {
    for (const command of [
      'sleep 1000',
      'sleep 1000 & sleep 1001 & wait',
      'trap "" TERM INT; while true; do :; done',
    ]) {
      const cut = new AbortController();
      let begun = false;
      const asked = runInContainer(container, command, cut.signal, () => {
        begun = true;
      });
      await waitFor('it to run', () => begun);
      cut.abort();
      await asked;
      await onlySleep();
      t.pass(command);
    }
    const cut = new AbortController();
    const asked = inside('sleep 1000', cut.signal);
    cut.abort();
    t.match(await asked, { kind: 'refused' }, 'cut before it began');
    await onlySleep();
  });

  await t.test('what prints without end is killed, and not kept', async (t) => {
    const result = await inside(
      'while true; do echo 0123456789012345678901234567890123456789012345678901234567890; done',
    );
    t.match(result, { kind: 'flooding', output: /^0123/ });
    t.ok(result.kind === 'flooding' && result.output.length <= 4096);
    await onlySleep();
  });

  await t.test('what cannot be run says why', async (t) => {
    const root = temporaryFolder(t);
    mkdirSync(join(root, 'bin'));
    cpSync('/bin/busybox', join(root, 'bin', 'busybox'));
    const image = `${engine.prefix}:shell-less`;
    await must('sh', '-c', `tar -C ${root} -c . | docker import - ${image}`);
    t.teardown(async () => {
      await run('docker', ['rm', '-f', engine.name('shell-less')]);
      await run('docker', ['rmi', '-f', image]);
    });
    const name = engine.name('shell-less');
    const shellLess = await must('docker', 'run', '-d', '--name', name, image, '/bin/busybox', 'sleep', '100000');
    t.match(await inside('true', undefined, shellLess), {
      kind: 'refused',
      reason: 'the container has no /bin/sh to run it with',
    });
    await must('docker', 'pause', name);
    t.match(await inside('true', undefined, shellLess), { kind: 'refused', reason: 'the container is paused' });
    await must('docker', 'unpause', name);
    await must('docker', 'kill', name);
    t.match(await inside('true', undefined, shellLess), { kind: 'refused', reason: 'the container does not run' });
    await must('docker', 'rm', '-f', name);
    t.match(await inside('true', undefined, shellLess), { kind: 'refused', reason: 'the container is gone' });
    const away = new DockerClient({ socket: join(root, 'nothing.sock') });
    t.teardown(() => away.close());
    t.match(await execThrough(away)(container, 'true', AbortSignal.timeout(5000), () => undefined), {
      kind: 'away',
      reason: /no Docker socket at/,
    });
  });

  await t.test('as checks: pass, warn, fail, cut, and nothing left behind at the end', async (t) => {
    const runner = new HealthRunner({ ...parts(systemClock), runInContainer, onChange: () => undefined });
    t.teardown(() => runner.close());
    const set = (name: string, over: Partial<CheckSpec>): void => {
      const check: CheckSpec = { kind: 'exec', ...checkDefaults, intervalMs: 300, timeoutMs: 3000, fall: 1, ...over };
      runner.set(name, { address: '10.0.0.1', port: 80, checks: [check], container, incarnation: 'a' });
    };
    set('well', { command: 'echo ready' });
    set('warns', { command: 'echo slow; exit 1', warningExit: 1 });
    set('fails', { command: 'echo broken; exit 2', warningExit: 1 });
    set('hangs', { command: 'echo waiting; sleep 1000', timeoutMs: 1000 });
    set('floods', { command: 'while true; do cat /bin/busybox; done' });
    const expected = {
      well: { status: 'passing', output: 'ready' },
      warns: { status: 'warning', output: 'exit status 1: slow' },
      fails: { status: 'critical', output: 'exit status 2: broken' },
      hangs: { status: 'critical', output: 'not ended within 1s, killed: waiting' },
      floods: { status: 'critical', output: /^prints without end, killed: / },
    };
    for (const [name, health] of Object.entries(expected)) {
      await waitFor(`${name} to be ${health.status}`, () => runner.get(name)?.status === health.status, {
        timeoutMs: 30_000,
      });
      t.match(runner.get(name), health, name);
    }
    t.match(runner.details('hangs')?.checks, [{ kind: 'exec', target: 'exec echo waiting; sleep 1000' }]);
    await runner.close();
    await onlySleep();
  });
});

/** An image with a real gRPC server: Node, what it is linked to, and @grpc/grpc-js with what that needs. */
async function grpcImage(t: Test, image: string): Promise<void> {
  const root = temporaryFolder(t);
  const copy = (from: string, to = from): void => {
    mkdirSync(dirname(join(root, to)), { recursive: true });
    cpSync(from, join(root, to), { recursive: true, dereference: true });
  };
  copy(process.execPath, '/bin/node');
  const libraries = await must('ldd', process.execPath);
  for (const [, path = ''] of libraries.matchAll(/(\/[^ ]+) \(/g)) copy(path);
  const wanted = ['@grpc/grpc-js'];
  const seen = new Set<string>();
  for (let name = wanted.pop(); name !== undefined; name = wanted.pop()) {
    if (seen.has(name)) continue;
    seen.add(name);
    const folder = join(checkout, 'node_modules', name);
    copy(folder, join('/app/node_modules', name));
    const manifest = (await import(join(folder, 'package.json'), { with: { type: 'json' } })) as {
      default: { dependencies?: Record<string, string> };
    };
    wanted.push(...Object.keys(manifest.default.dependencies ?? {}));
  }
  writeFileSync(join(root, 'app', 'server.cjs'), grpcServerSource);
  await must('sh', '-c', `tar -C ${root} -c . | docker import - ${image}`);
  t.teardown(async () => {
    await run('docker', ['rmi', '-f', image]);
  });
}

/** Serves until SIGUSR2 tells it to refuse, and again at the next one. */
const grpcServerSource = `
const { Server, ServerCredentials } = require('@grpc/grpc-js');
let status = 1;
process.on('SIGUSR2', () => { status = status === 1 ? 2 : 1; });
process.on('SIGTERM', () => process.exit(0));
const pass = (bytes) => bytes;
const server = new Server();
server.addService(
  { Check: { path: '/grpc.health.v1.Health/Check', requestStream: false, responseStream: false,
      requestSerialize: pass, requestDeserialize: pass, responseSerialize: pass, responseDeserialize: pass } },
  { Check: (call, done) => done(null, Buffer.from([8, status])) },
);
server.bindAsync('0.0.0.0:50051', ServerCredentials.createInsecure(), (error) => { if (error) throw error; });
`;

t.test('grpc, ttl and containers through a whole sidecar', { skip: docker, timeout: 180_000 }, async (t) => {
  const engine = await TestDocker.open(t);
  const image = `${engine.prefix}:grpc`;
  const server = engine.name('grpc');
  await grpcImage(t, image);
  t.teardown(async () => {
    await run('docker', ['rm', '-f', server]);
  });
  await must('docker', 'run', '-d', '--name', server, image, '/bin/node', '/app/server.cjs');
  const format = '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}';
  const address = await must('docker', 'inspect', '--format', format, server);
  const service = `rpc-${process.pid}`;
  const check = { kind: 'grpc', interval: '200ms', rise: 1, fall: 1 };
  const agent = await new Agent(t, {
    docker: { socket, expose: 'off' },
    instances: [{ service, address, port: 50_051, protocol: 'grpc', name: 'rpc', checks: [check] }],
  }).start();
  const status = async (wanted: string): Promise<InstanceDocument> =>
    waitFor(`${service} to be ${wanted}`, async () => {
      const { instances } = await agent.json<ServiceDocument>(`/api/services/${service}`);
      return instances.find((instance) => instance.status === wanted);
    });
  t.match(await status('passing'), {
    output: 'grpc: SERVING',
    checks: [{ kind: 'grpc', target: `grpc://${address}:50051/`, status: 'passing', output: 'grpc: SERVING' }],
  });
  await must('docker', 'kill', '-s', 'USR2', server);
  t.match(await status('critical'), { output: 'grpc: NOT_SERVING' });
  await must('docker', 'kill', '-s', 'USR2', server);
  const { history = [] } = await status('passing');
  t.match(
    history.map((change) => change.status),
    ['passing', 'critical', 'passing'],
  );
  await must('docker', 'stop', server);
  // Who asks an address that has just gone may also hear nothing at all until the check's time is up.
  t.match(await status('critical'), {
    output: /^(grpc: (connection refused|no route|no answer)|no answer within 1s$)/,
  });
});

t.test('an instance that reports itself: the API, the command line, restarts', { timeout: 120_000 }, async (t) => {
  const agent = await new Agent(t, {
    instances: [
      {
        service: 'job',
        address: '127.0.0.1',
        port: 9000,
        name: 'job',
        checks: [{ kind: 'ttl', ttl: '6s', deregister_after: '1s' }],
      },
    ],
  }).start();
  const found = async (service: string): Promise<InstanceDocument | undefined> => {
    const answer = await agent.api('GET', `/api/instances?service=${service}`);
    if (answer.status !== 200) return undefined;
    return (JSON.parse(answer.text) as { instances: InstanceDocument[] }).instances[0];
  };
  const until = (service: string, status: string | undefined) =>
    waitFor(
      `${service} to be ${status ?? 'gone'}`,
      async () => ((await found(service))?.status ?? 'gone') === (status ?? 'gone'),
    );
  t.equal((await found('job'))?.status, 'starting');
  const put = async (name: string, body: unknown) => {
    const answer = await agent.api('PUT', `/api/instances/${name}`, body);
    return { status: answer.status, document: JSON.parse(answer.text) as InstanceDocument };
  };
  t.match(await put('web-1/job', {}), {
    status: 200,
    document: { id: 'web-1/job', status: 'passing', source: 'file' },
  });
  t.match(await put('web-1/job', { status: 'warning', output: 'long queue\u001b' }), {
    status: 200,
    document: { status: 'warning', output: 'long queue\\u001b', checks: [{ kind: 'ttl' }] },
  });
  const wrong: [name: string, body: unknown, status: number, code: string][] = [
    ['web-1/nothing', {}, 404, 'E_NOT_FOUND'],
    ['web-2/job', {}, 409, 'E_CONFLICT'],
    ['web-1/job', { status: 'lost' }, 400, 'E_INVALID'],
    ['web-1/job', { output: 5 }, 400, 'E_INVALID'],
    ['web-1/job', { status: 'passing', outptu: 'x' }, 409, 'E_CONFLICT'],
    ['web-1/job', [], 400, 'E_INVALID'],
  ];
  for (const [name, body, expected, code] of wrong) {
    const answer = await put(name, body);
    t.match(answer, { status: expected, document: { error: { code, hint: /^/ } } }, `${name} ${JSON.stringify(body)}`);
  }

  await t.test('registered through the API, which is a sign of life too', async (t) => {
    const entry = { service: 'task', address: '127.0.0.1', port: 9001, checks: [{ kind: 'ttl', ttl: '1h' }] };
    t.match(await put('web-1/task', entry), { status: 200, document: { status: 'passing', source: 'api' } });
    let stored = '';
    await waitFor('the record to be stored', async () => {
      const before = stored;
      stored = (await found('task'))?.revision ?? '';
      return stored !== '' && stored === before;
    });
    for (let index = 0; index < 20; index += 1) t.match(await put('web-1/task', entry), { status: 200 });
    t.equal((await found('task'))?.revision, stored, 'the same again is not written again');
    t.match(await put('web-1/task', { status: 'critical', output: 'x' }), { document: { status: 'critical' } });
    await until('task', 'critical');
    t.match(await put('web-1/task', entry), { document: { status: 'passing' } });
    const plain = { service: 'plain', address: '127.0.0.1', port: 9002 };
    t.match(await put('web-1/plain', plain), { status: 200 });
    t.match(await put('web-1/plain', {}), {
      status: 400,
      document: { error: { code: 'E_INVALID', hint: /kind: ttl/ } },
    });
  });

  await t.test('the command', async (t) => {
    t.match(await agent.cli('refresh', 'task'), { status: 0, stdout: / web-1\/task is refreshed: passing\n$/ });
    const warned = await agent.cli('refresh', 'web-1/task', '--status', 'warning', '--output', 'slow', '--json');
    t.match(JSON.parse(warned.stdout), { status: 'warning', checks: [{ kind: 'ttl', output: 'slow' }] });
    t.match(await agent.cli('refresh', 'nobody'), { status: 1, stderr: /there is no instance nobody/ });
    t.match(await agent.cli('refresh', 'task', '--status', 'fine'), {
      status: 1,
      stderr: /passing, warning, critical/,
    });
    const listed = JSON.parse((await agent.cli('instances', 'task', '--json')).stdout) as { instances: object[] };
    t.match(listed.instances, [{ checks: [{ kind: 'ttl', status: 'warning' }], history: [{ status: 'warning' }] }]);
    t.match(await agent.cli('refresh', '-h'), { status: 0, stdout: /Examples:\n/ });
  });

  await t.test('silence makes it critical, then it leaves, and a refresh brings it back', async (t) => {
    await put('web-1/job', {});
    await until('job', 'critical');
    t.match(await found('job'), { output: 'no refresh within 6s' });
    await until('job', undefined);
    const { todo } = await agent.json<StatusDocument>('/api/status');
    t.match(
      todo.filter(({ id }) => id === 'registrar.deregistered.job'),
      [{ message: 'job of job (file) is deregistered after 1s critical: no refresh within 6s' }],
    );
    t.match(await put('web-1/job', { status: 'critical' }), {
      status: 200,
      document: { status: 'critical', revision: '' },
    });
    t.match(await put('web-1/job', {}), { status: 200, document: { status: 'passing' } });
    await until('job', 'passing');
  });

  await t.test('a restart keeps what was said, for one more time', async (t) => {
    await put('web-1/job', { status: 'warning', output: 'as said' });
    await agent.kill();
    await agent.start();
    t.match(await found('job'), { status: 'warning', output: 'as said' });
    t.match(await found('task'), { status: 'warning', output: 'slow', source: 'api' });
    await until('job', 'critical');
    t.match(await found('task'), { status: 'warning' });
  });
});

t.test(
  'https and an initial status, from the file',
  { skip: unless('command:openssl'), timeout: 60_000 },
  async (t) => {
    const folder = temporaryFolder(t);
    const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
    const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
    await must(
      'openssl',
      'req',
      ...kind,
      '-subj',
      '/CN=x',
      '-addext',
      'subjectAltName=IP:127.0.0.1',
      '-keyout',
      key,
      '-out',
      cert,
    );
    const { createServer: createHttps } = await import('node:https');
    const { readFileSync } = await import('node:fs');
    const web = createHttps({ key: readFileSync(key), cert: readFileSync(cert) }, (_, response) => response.end('ok'));
    const silent = createServer(() => undefined);
    for (const server of [web, silent]) {
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      t.teardown(() => {
        server.closeAllConnections();
        server.close();
      });
    }
    const port = (web.address() as AddressInfo).port;
    const base = { service: 'web', address: '127.0.0.1', port };
    const tls = { kind: 'http', tls: true, interval: '200ms', fall: 1 };
    const agent = await new Agent(t, {
      instances: [
        { ...base, name: 'any', checks: [{ ...tls, tls_skip_verify: true }] },
        { ...base, name: 'strict', checks: [tls] },
        {
          ...base,
          name: 'slow',
          port: (silent.address() as AddressInfo).port,
          checks: [{ kind: 'http', initial_status: 'passing', interval: '100ms', timeout: '20s' }],
        },
      ],
    }).start();
    const instance = async (name: string): Promise<InstanceDocument | undefined> => {
      const { instances } = await agent.json<ServiceDocument>('/api/services/web');
      return instances.find((each) => each.name === name);
    };
    t.match(await instance('slow'), { status: 'passing', output: '' });
    await waitFor('any certificate to do', async () => (await instance('any'))?.status === 'passing');
    await waitFor('verification to fail', async () => (await instance('strict'))?.status === 'critical');
    t.match(await instance('strict'), { output: /certificate .* not accepted .*tls_skip_verify accepts it/ });
    t.match(await instance('any'), { checks: [{ target: `GET https://127.0.0.1:${port}/` }] });
    await agent.kill();
    await agent.start({ env: { SSL_CERT_FILE: cert } });
    await waitFor('the machine to trust it', async () => (await instance('strict'))?.status === 'passing');
  },
);
