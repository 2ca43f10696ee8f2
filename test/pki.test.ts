import { execFile } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect } from 'node:tls';
import t from 'tap';
import type { AuthorityDocument, IdentityDocument, StatusDocument } from '../sidecar/admin/documents.ts';
import { applicationProtocols } from '../src/pki/desk.ts';
import { formatToken, newToken, parseToken } from '../src/pki/token.ts';
import { Agent, legateMain, type Ran, run, type Teardown, temporaryFolder } from './support/agent.ts';
import { makeTestAuthority } from './support/certificates.ts';
import { freePort } from './support/faults.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

/** The whole way by the command line: init, agent, join, token, ca, over the real listeners. */
const legate = (args: readonly string[], input?: string): Promise<Ran> =>
  run(process.execPath, [legateMain, ...args], input === undefined ? {} : { input });

interface Ports {
  readonly tunnel: number;
  readonly store: number;
}

interface Host {
  readonly agent: Agent;
  readonly ports: Ports;
  readonly dataDir: string;
  readonly config: Readonly<Record<string, unknown>>;
}

async function host(t: Teardown, name: string, more: Readonly<Record<string, unknown>> = {}): Promise<Host> {
  const ports = { tunnel: await freePort(), store: await freePort() };
  const config = { host: name, tunnel: { listen: `127.0.0.1:${ports.tunnel}` }, ...more };
  const agent = new Agent(t, config);
  return { agent, ports, config, dataDir: join(agent.folder, 'data') };
}

async function first(
  t: Teardown,
  more: Readonly<Record<string, unknown>> = {},
  ...args: string[]
): Promise<Host & { init: Ran }> {
  const made = await host(t, 'web-1', more);
  made.agent.configure({
    ...made.config,
    store: { kind: 'embedded', listen: `127.0.0.1:${made.ports.store}` },
    ...more,
  });
  const init = await legate(['init', '-c', made.agent.configFile, ...args]);
  if (init.status !== 0) throw new Error(init.stderr + init.stdout);
  return { ...made, init };
}

function tokenOf({ stdout }: Ran): string {
  return /--token (\S+)/.exec(stdout.trim().split('\n').at(-1) ?? '')?.[1] ?? '';
}

function join_(to: Host, of: Host, token: string): Promise<Ran> {
  return legate(['join', `127.0.0.1:${to.ports.tunnel}`, '--token', '-', '-c', of.agent.configFile], `${token}\n`);
}

const identityOf = async ({ agent }: Host): Promise<IdentityDocument> =>
  (await agent.json<StatusDocument>('/api/status')).identity;

async function newToken_({ agent }: Host, ...args: string[]): Promise<string> {
  return (await agent.cli('token', ...args)).stdout.trim();
}

/** The serial of what a listener shows, checked against the roots in a file; an error when it is not believed. */
function served(port: number, rootsFile: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: '127.0.0.1',
      port,
      ca: readFileSync(rootsFile),
      ALPNProtocols: [applicationProtocols.tunnel],
      checkServerIdentity: () => undefined,
    });
    socket.setTimeout(5000, () => socket.destroy(new Error('no handshake within 5 s')));
    socket.once('error', reject);
    socket.once('secureConnect', () => {
      const serial = socket.getPeerX509Certificate()?.serialNumber.toLowerCase() ?? '';
      socket.off('error', reject).on('error', () => undefined);
      socket.destroy();
      resolve(serial);
    });
  });
}

t.test('from nothing to two hosts, and who is not let in', async (t) => {
  const bare = await host(t, 'web-1');
  const without = await legate(['init', '-c', bare.agent.configFile]);
  t.equal(without.status, 2, 'an embedded store that nobody could reach');
  t.match(without.stderr, /store\.listen is missing.*listen: "127\.0\.0\.1:7712"/);
  t.notOk(existsSync(join(bare.dataDir, 'pki')));

  const one = await first(t);
  const lines = one.init.stdout.trim().split('\n');
  t.equal(lines.filter((line) => line.startsWith('legate join ')).length, 1);
  t.match(lines.at(-1), new RegExp(`^legate join 127\\.0\\.0\\.1:${one.ports.tunnel} --token lgt1_\\S+ -c \\S+$`));
  const pki = join(one.dataDir, 'pki');
  for (const name of ['host.key', 'authority/policy.key', 'policy.json']) {
    t.equal(statSync(join(pki, name)).mode & 0o777, 0o600, name);
  }
  const before = readFileSync(join(pki, 'roots.pem'), 'utf8');
  const again = await legate(['init', '-c', one.agent.configFile]);
  t.equal(again.status, 1);
  t.match(again.stderr, /belongs to a host of a mesh already; nothing was changed/);
  t.equal(readFileSync(join(pki, 'roots.pem'), 'utf8'), before);

  const two = await host(t, 'db-1');
  const token = tokenOf(one.init);
  t.match(
    (await join_(one, two, token)).stderr,
    /nobody listens at .*legate agent running/,
    'its sidecar does not run yet',
  );
  await one.agent.start();
  t.match(await identityOf(one), { role: 'authority', problem: null });

  const misspelt = token.slice(0, 20) + (token[20] === 'A' ? 'B' : 'A') + token.slice(21);
  const parsed = parseToken(token);
  for (const [what, shown, message] of [
    ['misspelt', misspelt, /misspelt/],
    ['unknown', formatToken(newToken(parsed.fingerprint, parsed.authority)), /knows no such token/],
    [
      'of another root',
      formatToken({ ...parsed, fingerprint: 'ab'.repeat(32) }),
      /not the authority that the token names; nothing was sent/,
    ],
    [
      'of another host',
      formatToken({ ...parsed, authority: 'ab'.repeat(8) }),
      /another host of the mesh, not its authority; nothing was sent/,
    ],
    ['expired', await newToken_(one, '--ttl', '1s'), /has expired/],
  ] as const) {
    if (what === 'expired') await waitFor('it to expire', () => Date.now() > startedMs + 1500);
    const refused = await join_(one, two, shown);
    t.equal(refused.status, 1, what);
    t.match(refused.stderr, message, what);
    t.notMatch(refused.stderr, shown.slice(5, 30), 'a token is not repeated');
    t.notOk(existsSync(join(two.dataDir, 'pki')), what);
  }
  two.agent.configure({ ...two.config, mesh: 'other' });
  t.match((await join_(one, two, token)).stderr, /is of mesh legate, not other/);
  two.agent.configure({ ...two.config, host: 'web-1' });
  t.match((await join_(one, two, token)).stderr, /the name web-1 is that of host web-1/);
  two.agent.configure(two.config);

  const joined = await join_(one, two, token);
  t.equal(joined.status, 0, joined.stderr);
  t.match(joined.stdout, new RegExp(`offered at https://127\\.0\\.0\\.1:${one.ports.store}`));
  const three = await host(t, 'late-1');
  t.match((await join_(one, three, token)).stderr, /used as often as it may be/, 'replayed');
  t.match((await join_(one, two, await newToken_(one))).stderr, /belongs to a host of a mesh already/);

  await two.agent.start();
  await waitFor(
    'the store to answer',
    async () => (await two.agent.json<StatusDocument>('/api/status')).store.state === 'connected',
  );
  t.match(await identityOf(two), { role: 'member', problem: null, roots: (await identityOf(one)).roots });
  await waitFor(
    'both to be known',
    async () => (await two.agent.json<{ hosts: { alive: boolean }[] }>('/api/hosts')).hosts.length === 2,
  );
  t.same((await two.agent.json<StatusDocument>('/api/status')).todo, []);
  const stored = await one.agent.json<{ hosts: { name: string }[] }>('/api/ca');
  t.same(stored.hosts.map(({ name }) => name).sort(), ['db-1', 'web-1']);
  const elsewhere = await two.agent.cli('token');
  t.equal(elsewhere.status, 1);
  t.match(elsewhere.stderr, /the authority of this mesh is on web-1 \(127\.0\.0\.1\), not here; run the command there/);
  const metrics = (await one.agent.api('GET', '/metrics')).text;
  t.match(metrics, /legate_pki_certificate_remaining_seconds 60\d\d\d\d/);
  t.match(metrics, /legate_pki_refusals_total\{reason="token expired"\} 1/);
  t.match(await one.agent.cli('ca', 'status'), { status: 0, stdout: /web-1 .*alive/ });

  await t.test('openssl sees what was issued', { skip: unless('command:openssl') }, async (t) => {
    const roots = join(two.dataDir, 'pki', 'roots.pem');
    for (const file of [join(pki, 'host.crt'), join(two.dataDir, 'pki', 'host.crt'), roots]) {
      const ran = await run('openssl', ['verify', '-x509_strict', '-CAfile', roots, file]);
      t.equal(ran.status, 0, ran.stdout + ran.stderr);
    }
    const args = ['s_client', '-connect', `127.0.0.1:${one.ports.tunnel}`, '-CAfile', roots, '-verify_return_error'];
    const ran = await run('openssl', [...args, '-alpn', applicationProtocols.enrol, '-verify_ip', '127.0.0.1'], {
      input: '',
    });
    t.match(ran.stdout, /Verify return code: 0 \(ok\)/);
    t.match(ran.stdout, /ALPN protocol: legate-enrol\/1/);
  });

  await two.agent.kill();
  chmodSync(join(two.dataDir, 'pki', 'host.key'), 0o640);
  await two.agent.start({ ready: false });
  t.equal(await two.agent.ended(), 1);
  t.match(two.agent.log.join('\n'), /host\.key can be read by others than its owner; chmod 600/);
});
const startedMs = Date.now();

t.test('certificates renew by themselves, and it is said when they cannot', async (t) => {
  const one = await first(t, {}, '--certificate-life', '12s');
  const two = await host(t, 'db-1');
  await one.agent.start();
  t.match(await join_(one, two, tokenOf(one.init)), { status: 0 });
  await two.agent.start();
  const before = [await identityOf(one), await identityOf(two)];
  for (const [index, each] of [one, two].entries()) {
    const next = await waitFor('a new certificate', async () => {
      const now = await identityOf(each);
      return now.serial !== before[index]?.serial && now;
    });
    t.equal(next.problem, null);
    const roots = join(two.dataDir, 'pki', 'roots.pem');
    t.equal(await served(each.ports.tunnel, roots), next.serial, 'it is the one that is shown');
    const onDisk = new X509Certificate(readFileSync(join(each.dataDir, 'pki', 'host.crt')));
    t.equal(onDisk.serialNumber.toLowerCase(), next.serial);
  }
  await one.agent.kill('SIGKILL');
  const todo = async (): Promise<string> =>
    JSON.stringify(
      (await two.agent.json<StatusDocument>('/api/status')).todo.filter(({ id }) => id === 'pki.certificate'),
    );
  t.match(await waitFor('a word', async () => /could not be renewed.*nobody listens/.exec(await todo())), /./);
  await waitFor('its end', async () => /has ended/.test(await todo()), { timeoutMs: 20_000 });
  await one.agent.start();
  await waitFor('its own to be new', async () => (await identityOf(one)).problem === null);
});

t.test('the root is replaced while hosts go on believing each other', async (t) => {
  const one = await first(t);
  const two = await host(t, 'db-1');
  await one.agent.start();
  t.match(await join_(one, two, tokenOf(one.init)), { status: 0 });
  await two.agent.start();
  const [old = ''] = (await identityOf(one)).roots;
  const ca = (): Promise<AuthorityDocument> => one.agent.json<AuthorityDocument>('/api/ca');
  await waitFor('db-1 to live', async () => (await ca()).hosts.filter(({ alive }) => alive).length === 2);

  // Every host's certificate is looked at with the other's roots, all the time.
  let looked = 0;
  const failures: string[] = [];
  let stopped = false;
  const looking = (async () => {
    while (!stopped) {
      for (const [shown, by] of [
        [one, two],
        [two, one],
      ] as const) {
        if (!shown.agent.running) continue;
        looked += 1;
        await served(shown.ports.tunnel, join(by.dataDir, 'pki', 'roots.pem')).catch((error: Error) => {
          // The sidecar that is killed below takes its listener with it.
          if (!/ECONNREFUSED|ECONNRESET|socket disconnected|no handshake/.test(error.message))
            failures.push(error.message);
        });
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  })();
  process.kill(two.agent.pid, 'SIGSTOP');
  t.match(await one.agent.cli('ca', 'rotate'), { status: 0, stdout: /is announced, and issues next/ });
  t.match(await one.agent.cli('ca', 'rotate'), { status: 1, stderr: /being replaced already/ });
  t.match(await ca(), { phase: 'announcing', waitingFor: ['db-1'] });
  await one.agent.kill('SIGKILL');
  await one.agent.start();
  t.match(await ca(), { phase: 'announcing' }, 'a restart forgets nothing');
  process.kill(two.agent.pid, 'SIGCONT');
  const end = await waitFor(
    'the end',
    async () => {
      const now = await ca();
      return now.phase === 'none' && now;
    },
    { timeoutMs: 30_000 },
  );
  t.equal(end.roots.length, 1);
  t.not(end.roots[0]?.fingerprint, old);
  t.same(
    end.hosts.map(({ rootState }) => rootState),
    ['issuing', 'issuing'],
  );
  await waitFor('both to believe only the new one', async () => {
    const all = [await identityOf(one), await identityOf(two)];
    return all.every(({ roots }) => roots.length === 1 && roots[0] === end.roots[0]?.fingerprint);
  });
  stopped = true;
  await looking;
  t.same(failures, [], `${looked} handshakes`);
  t.ok(looked > 20);
  t.notOk(existsSync(join(one.dataDir, 'pki', 'authority', `root-${old.slice(0, 16)}.key`)), 'the old key is gone');
  const three = await host(t, 'late-1');
  t.match(await join_(one, three, await newToken_(one)), { status: 0 }, 'a new host joins by the new root');
});

t.test('the authority is saved and restored', async (t) => {
  const passphrases = temporaryFolder(t);
  const [pass, wrong] = [join(passphrases, 'pass'), join(passphrases, 'wrong')];
  writeFileSync(pass, 'one two three\n', { mode: 0o600 });
  writeFileSync(wrong, 'four\n', { mode: 0o600 });
  const one = await first(t, { authority: { passphrase_file: pass } });
  const file = join(passphrases, 'authority.backup');
  const config = ['-c', one.agent.configFile];
  t.match(await legate(['ca', 'backup', file, ...config]), { status: 2, stderr: /--passphrase-file/ });
  t.match(await legate(['ca', 'backup', file, ...config, '--passphrase-file', pass]), { status: 0, stdout: /1 host/ });
  t.equal(statSync(file).mode & 0o777, 0o600);
  t.notMatch(readFileSync(file, 'utf8'), /PRIVATE/);
  const restore = (passphrase: string, ...more: string[]): Promise<Ran> =>
    legate(['ca', 'restore', file, ...config, '--passphrase-file', passphrase, ...more]);
  t.match(await restore(pass), { status: 1, stderr: /is there already/ });
  const id = JSON.parse(readFileSync(join(one.dataDir, 'host.json'), 'utf8')).hostId;
  const kept = join(passphrases, 'kept');
  cpSync(join(one.dataDir, 'store'), kept, { recursive: true });
  rmSync(one.dataDir, { recursive: true });
  t.match(await restore(wrong), { status: 1, stderr: /cannot be opened with this passphrase/ });
  t.match(await restore(pass), { status: 0 });
  cpSync(kept, join(one.dataDir, 'store'), { recursive: true });
  await one.agent.start();
  t.match(await one.agent.json('/api/status'), { host: { id }, identity: { role: 'authority', problem: null } });
  const two = await host(t, 'db-1');
  t.match(await join_(one, two, await newToken_(one)), { status: 0 }, 'it goes on letting hosts in');
  await two.agent.start();
  await waitFor(
    'it to be alive',
    async () => (await one.agent.json<{ hosts: unknown[] }>('/api/hosts')).hosts.length === 2,
  );
  await two.agent.kill();

  // The authority moves to the other host of the mesh.
  await one.agent.kill();
  rmSync(join(one.dataDir, 'pki', 'authority'), { recursive: true });
  two.agent.configure({ ...two.config, authority: { passphrase_file: pass } });
  const moving = ['ca', 'restore', file, '-c', two.agent.configFile, '--passphrase-file', pass];
  t.match(await legate(moving), { status: 0 });
  await one.agent.start();
  await two.agent.start();
  const moved = JSON.parse(readFileSync(join(two.dataDir, 'host.json'), 'utf8')).hostId;
  await waitFor('the first to know', async () => /is on db-1/.test((await one.agent.cli('token')).stderr));
  t.match(await identityOf(two), { role: 'authority' });
  t.match(await identityOf(one), { role: 'member' });
  t.match(moved, /^[0-9a-f]{16}$/);
});

t.test('certificates from outside are read again when they change', async (t) => {
  const folder = temporaryFolder(t);
  const authority = await makeTestAuthority();
  const hostId = '00112233445566aa';
  const at = (name: string): string => join(folder, name);
  const put = async (id: string): Promise<string> => {
    const { chain, key, serial } = await authority.issue(id);
    writeFileSync(at('ca.pem'), authority.root);
    writeFileSync(at('key.pem'), key, { mode: 0o600 });
    writeFileSync(at('cert.pem'), chain);
    return serial.replace(/^0+/, '');
  };
  const before = await put(hostId);
  const one = await host(t, 'web-1', { tls: { ca: at('ca.pem'), cert: at('cert.pem'), key: at('key.pem') } });
  mkdirSync(one.dataDir);
  writeFileSync(join(one.dataDir, 'host.json'), JSON.stringify({ v: 1, hostId }));
  await one.agent.start();
  t.match(await identityOf(one), { role: 'outside', serial: before, problem: null });
  t.equal((await served(one.ports.tunnel, at('ca.pem'))).replace(/^0+/, ''), before);
  const after = await put(hostId);
  await waitFor('the new one', async () => (await identityOf(one)).serial === after);
  await waitFor(
    'it to be shown',
    async () => (await served(one.ports.tunnel, at('ca.pem'))).replace(/^0+/, '') === after,
  );
  await put('ffffffffffffffff');
  const todo = async (): Promise<string> => JSON.stringify((await one.agent.json<StatusDocument>('/api/status')).todo);
  await waitFor('a word on the wrong one', async () =>
    /names host ffffffffffffffff.*the ones before stay in use/.test(await todo()),
  );
  t.match(await identityOf(one), { serial: after }, 'the old one stays');
  chmodSync(at('key.pem'), 0o644);
  await waitFor('a word on the mode', async () => /can be read by others/.test(await todo()));
  t.match(await one.agent.cli('token'), { status: 1, stderr: /in no mesh with an authority/ });
});

t.test('the token of join is not left in the list of processes', async (t) => {
  const one = await host(t, 'web-1');
  const token = formatToken(newToken('ab'.repeat(32), 'ab'.repeat(8)));
  // An address that does not answer keeps it waiting; 192.0.2.0/24 is for documentation (RFC 5737).
  const args = [legateMain, 'join', '192.0.2.1', '--token', token, '-c', one.agent.configFile];
  const child = execFile(process.execPath, args);
  t.teardown(() => child.kill('SIGKILL'));
  await waitFor(
    'it to have hidden it',
    () => !readFileSync(`/proc/${child.pid}/cmdline`, 'utf8').includes(token.slice(5, 40)),
  );
  t.pass();
});
