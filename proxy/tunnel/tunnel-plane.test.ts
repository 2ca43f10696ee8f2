import { createHash, randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import { makeTestAuthority } from '../../test/support/certificates.ts';
import { waitFor } from '../../test/support/wait.ts';
import { makeHost, RecordedEvents, type TestHost, testHead } from './test-support.ts';
import type { TunnelStream } from './tunnels.ts';

const authority = await makeTestAuthority();
const ids = { a: 'aaaaaaaaaaaaaaaa', b: 'bbbbbbbbbbbbbbbb' } as const;
const shown = { a: await authority.issue(ids.a), b: await authority.issue(ids.b) };

function opened(host: TestHost, to: string, events: RecordedEvents): TunnelStream {
  const stream = host.plane.open(to, testHead(), events);
  if (typeof stream === 'string') throw new Error(stream);
  events.stream = stream;
  return stream;
}

async function pair(t: Test): Promise<{ a: TestHost; b: TestHost }> {
  const a = makeHost({ hostId: ids.a, credentials: shown.a });
  const b = makeHost({ hostId: ids.b, credentials: shown.b });
  t.teardown(() => Promise.all([a.plane.close(), b.plane.close()]));
  await Promise.all([a.plane.start(), b.plane.start()]);
  a.knows({ hostId: ids.b, port: b.plane.bound?.port ?? 0 });
  await waitFor('the address', () => a.snapshots.value.hosts.size > 0);
  a.plane.want(ids.b, true);
  await waitFor('a tunnel', () => a.plane.state(ids.b).state === 'ready');
  return { a, b };
}

t.test('a stream carries bytes, ends and its head to the other host', async (t) => {
  const { a, b } = await pair(t);
  const events = new RecordedEvents();
  const stream = opened(a, ids.b, events);
  const sent = randomBytes(3_000_000);
  for (let at = 0; at < sent.length; at += 100_000) stream.write(sent.subarray(at, at + 100_000));
  stream.end();
  const incoming = await waitFor('the stream', () => b.incoming[0]);
  t.equal(incoming.hostId, ids.a);
  const hash = createHash('sha256');
  incoming.events.onData = (chunk) => hash.update(chunk);
  await waitFor('the end', () => incoming.events.hasEnded);
  t.equal(incoming.events.bytes, sent.length);
  t.ok(events.isOpened);
  incoming.stream.write(Buffer.from('answer'));
  incoming.stream.end();
  await waitFor('both ends', () => events.closedBy !== undefined && incoming.events.closedBy !== undefined);
  t.equal(events.bytes, 6);
  t.same(events.closedBy, { reason: undefined, detail: '' });
});
