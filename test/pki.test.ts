import { execFile } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { StatusDocument } from '../sidecar/admin/documents.ts';
import { applicationProtocols } from '../src/pki/desk.ts';
import { formatToken, newToken, parseToken } from '../src/pki/token.ts';
import { legateMain, run, temporaryFolder } from './support/agent.ts';
import { makeTestAuthority } from './support/certificates.ts';
import { firstHost, identityOf, joinTo, legate, meshHost, nextToken, served, tokenOf } from './support/mesh-host.ts';
import { unless } from './support/needs.ts';
import { waitFor } from './support/wait.ts';

t.test('from nothing to two hosts, and who is not let in', async (t) => {
  const bare = await meshHost(t, 'web-1');
  const without = await legate(['init', '-c', bare.agent.configFile]);
  t.equal(without.status, 2, 'an embedded store that nobody could reach');
  t.match(without.stderr, /store\.listen is missing.*listen: "127\.0\.0\.1:7712"/);
  t.notOk(existsSync(join(bare.dataDir, 'pki')));

  const one = await firstHost(t);
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

  const two = await meshHost(t, 'db-1');
  const token = tokenOf(one.init);
  t.match(
    (await joinTo(one, two, token)).stderr,
    /nobody listens at .*legate agent running/,
    'its sidecar does not run yet',
  );
  await one.agent.start();
  t.match(await identityOf(one), { role: 'authority', problem: null });

  const misspelt = token.slice(0, 20) + (token[20] === 'A' ? 'B' : 'A') + token.slice(21);
  const parsed = parseToken(token);
  const expired = await nextToken(one, '--ttl', '1s');
  const expiredAtMs = Date.now() + 1000;
  for (const [what, shown, message] of [
    ['misspelt', misspelt, /misspelt/],
    ['unknown', formatToken(newToken(parsed.fingerprint, parsed.authority)), /knows no such token/],
    [
      'of another root',
      formatToken({ ...parsed, fingerprint: 'ab'.repeat(32) }),
      /not the authority that .* nothing was sent/,
    ],
    [
      'of another host',
      formatToken({ ...parsed, authority: 'ab'.repeat(8) }),
      /another host of the mesh, .* nothing was sent/,
    ],
    ['expired', expired, /has expired/],
  ] as const) {
    if (what === 'expired') await waitFor('it to expire', () => Date.now() > expiredAtMs);
    const refused = await joinTo(one, two, shown);
    t.equal(refused.status, 1, what);
    t.match(refused.stderr, message, what);
    t.notMatch(refused.stderr, shown.slice(5, 30), 'a token is not repeated');
    t.notOk(existsSync(join(two.dataDir, 'pki')), what);
  }
  two.agent.configure({ ...two.config, mesh: 'other' });
  t.match((await joinTo(one, two, token)).stderr, /is of mesh legate, not other/);
  two.agent.configure({ ...two.config, host: 'web-1' });
  t.match((await joinTo(one, two, token)).stderr, /the name web-1 is that of host web-1/);
  two.agent.configure(two.config);

  const joined = await joinTo(one, two, token);
  t.equal(joined.status, 0, joined.stderr);
  t.match(joined.stdout, new RegExp(`offered at https://127\\.0\\.0\\.1:${one.ports.store}`));
  const three = await meshHost(t, 'late-1');
  t.match((await joinTo(one, three, token)).stderr, /used as often as it may be/, 'replayed');
  t.match((await joinTo(one, two, await nextToken(one))).stderr, /belongs to a host of a mesh already/);

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
  const one = await meshHost(t, 'web-1', { tls: { ca: at('ca.pem'), cert: at('cert.pem'), key: at('key.pem') } });
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
  const one = await meshHost(t, 'web-1');
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
