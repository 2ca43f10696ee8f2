import { spawn } from 'node:child_process';
import t from 'tap';
import { type Ran, run } from '../support/agent.ts';
import { EtcdCluster } from '../support/etcd.ts';
import { unless } from '../support/needs.ts';
import { OfferedStore } from '../support/offered-store.ts';
import { waitFor } from '../support/wait.ts';

/** Runs etcdctl against a store; the words as in a shell. */
type Etcdctl = (words: string, input?: string) => Promise<Ran>;

function etcdctl(endpoint: string): Etcdctl {
  const env = { ...process.env, ETCDCTL_API: '3' };
  return (words, input = '') =>
    run('sh', ['-c', `etcdctl --endpoints=${endpoint} --command-timeout=20s ${words}`], { input, env });
}

/**
 * What both must print alike: ids of clusters, members and leases are names, terms and sizes are their own, and times
 * that are left are not measured here.
 */
function comparable(text: string): string {
  return text
    .replace(/"(cluster_id|member_id|raft_term|ID|id|lease)":\d+/g, '"$1":0')
    .replace(/\b[0-9a-f]{15,16}\b/g, 'ID')
    .replace(/remaining\(\d+s\)/g, 'remaining')
    .replace(/"ttl":\d+/g, '"ttl":0')
    .replace(/took = \S+|"took":"[^"]*"/g, 'took')
    .replace(/\{"level":"warn".*\n/g, '')
    .replace(/127\.0\.0\.1:\d+/g, 'ENDPOINT');
}

/** In order: each sees what those before it did. `LEASE` is the lease that was granted last. */
const commands: readonly (readonly [words: string, input?: string])[] = [
  ['put a one'],
  ['put a two --prev-kv'],
  ['put b/1 x'],
  ['put b/2 y'],
  ['put b/3 z'],
  ['put empty ""'],
  ['get a'],
  ['get none'],
  ['get b/ --prefix'],
  ['get b/ --prefix --limit=2'],
  ['get b/ --prefix --keys-only'],
  ['get b/ --prefix --count-only --write-out=fields'],
  ['get b/ --prefix --order=DESCEND'],
  ['get b/ --prefix --sort-by=MODIFY --order=DESCEND'],
  ['get b/1 b/3'],
  ['get b --from-key'],
  ['get "" --prefix'],
  ['get a --print-value-only'],
  ['put a --ignore-value'],
  ['put none --ignore-value'],
  ['put a three --lease=1234'],
  ['txn -i', 'mod("a") > "0"\nvalue("b/1") = "x"\n\nput a four\nget a\ndel b/1\n\nput c no\n\n'],
  ['txn -i', 'version("a") = "1"\n\nput a no\n\nget b/ --prefix\nput c yes\n\n'],
  ['txn -i', 'create("none") = "0"\n\nput d 1\nput d 2\n\n\n'],
  ['del b/2 --prev-kv'],
  ['del none'],
  ['del b/ --prefix'],
  ['lease grant 60'],
  ['put leased v --lease=LEASE'],
  ['get leased'],
  ['lease timetolive LEASE'],
  ['lease timetolive LEASE --keys'],
  ['lease keep-alive --once LEASE'],
  ['lease list'],
  ['lease revoke LEASE'],
  ['lease revoke LEASE'],
  ['lease timetolive LEASE'],
  ['get leased'],
  ['compaction 5'],
  ['compaction 5'],
  ['compaction 5000'],
  ['get a --rev=5000'],
  ['get a --rev=2'],
  ['alarm list'],
  ['endpoint health'],
  ['--user=me:secret get a'],
];

const skip = unless('command:etcd', 'command:etcdctl');
if (skip) t.plan(0, skip);
else {
  const cluster = await EtcdCluster.start(t);
  const [member] = cluster.members;
  const offered = await OfferedStore.open(t);
  const theirs = etcdctl(`127.0.0.1:${member?.url.port}`);
  const ours = etcdctl(`127.0.0.1:${offered.port}`);

  t.test('etcdctl prints what it prints of etcd', async (t) => {
    for (const form of ['simple', 'json']) {
      const leases = new Map<Etcdctl, string>();
      for (const [words, input] of commands) {
        const said: string[] = [];
        for (const ctl of [theirs, ours]) {
          const more = form === 'json' && !words.includes('--write-out') ? ' --write-out=json' : '';
          const { status, stdout, stderr } = await ctl(words.replace('LEASE', leases.get(ctl) ?? '0') + more, input);
          const granted = /lease ([0-9a-f]+) granted/.exec(stdout)?.[1] ?? /^\{.*"ID":(\d+),"TTL"/m.exec(stdout)?.[1];
          if (words.startsWith('lease grant')) {
            leases.set(ctl, form === 'json' ? BigInt(granted ?? 0).toString(16) : (granted ?? ''));
          }
          said.push(comparable(`${status}\n${stdout}${stderr}`));
        }
        t.equal(said[1], said[0], `${form}: ${words}`);
      }
    }
  });

  t.test('etcdctl watches', async (t) => {
    const revision = Number(/"revision":(\d+)/.exec((await ours('get a --write-out=json')).stdout)?.[1]);
    const same = Number(/"revision":(\d+)/.exec((await theirs('get a --write-out=json')).stdout)?.[1]);
    t.equal(revision, same, 'both have counted alike');
    const cases = [
      'w/ --prefix',
      `w/ --prefix --prev-kv --rev=${revision + 1}`,
      'w/1',
      `w/ --prefix -w json --rev=${revision + 2}`,
    ];
    const followers = cases.flatMap((words) =>
      [member?.url.port, offered.port].map((port) => {
        const argv = [`--endpoints=127.0.0.1:${port}`, 'watch', ...words.split(' ')];
        const child = spawn('etcdctl', argv, {
          env: { ...process.env, ETCDCTL_API: '3' },
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        t.teardown(() => child.kill());
        const follower = { words, text: '' };
        child.stdout.setEncoding('utf8').on('data', (text: string) => {
          follower.text += text;
        });
        return follower;
      }),
    );
    // A first change, again and again, until all have heard of one: only then all of them watch.
    let tries = 0;
    await waitFor(
      'all to watch',
      async () => {
        tries += 1;
        for (const ctl of [theirs, ours]) await ctl(`put w/1 try${tries}`);
        return followers.every(({ text }) => text.length > 0);
      },
      { timeoutMs: 30_000 },
    );
    for (const ctl of [theirs, ours]) {
      await ctl('put w/1 one');
      await ctl('put w/2 two');
      await ctl('del w/ --prefix');
      await ctl('put w/1 "last one"');
    }
    const isEnd = (text: string): boolean => text.includes('last one') || text.includes('bGFzdCBvbmU=');
    await waitFor('the last', () => followers.every(({ text }) => isEnd(text)), { timeoutMs: 30_000 });
    for (let index = 0; index < followers.length; index += 2) {
      const [wanted, found] = [followers[index], followers[index + 1]];
      t.same(tail(found?.text ?? ''), tail(wanted?.text ?? ''), wanted?.words ?? '');
    }
  });

  t.test('etcdctl knows its member and its state', async (t) => {
    const [status] = JSON.parse((await ours('endpoint status --write-out=json')).stdout);
    t.match(status.Status, { version: /^3\.4\.0-legate$/, leader: status.Status.header.member_id, dbSize: Number });
    t.equal(status.Status.raftIndex, status.Status.header.revision);
    const { members } = JSON.parse((await ours('member list --write-out=json')).stdout);
    t.match(members, [{ ID: status.Status.header.member_id, clientURLs: [`http://127.0.0.1:${offered.port}`] }]);
    const refused = await ours('user list');
    t.match(refused.stderr, /Unimplemented.*not offered by Legate.*store\.kind: etcd/);
  });
}

/** What was told from the change called "one" on: what came before depends on when each began to watch. */
function tail(text: string): string {
  const plain = comparable(text).replace(/"Header":\{[^}]*\}/g, '');
  const from = plain.search(/\none\n|b25l/);
  return plain.slice(Math.max(0, from));
}
