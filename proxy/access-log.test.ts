import t from 'tap';
import { ManualClock } from '../src/base/clock.ts';
import { type LogFields, silentLog } from '../src/base/log.ts';
import { AccessLog, type RequestLine } from './access-log.ts';

const traces = Array.from({ length: 400 }, (_, number) => number.toString(16).padStart(32, '0'));

function logOf(sample: number) {
  const lines: LogFields[] = [];
  const log = { ...silentLog, info: (_: string, fields: LogFields = {}) => void lines.push(fields) };
  const known = { clock: new ManualClock(), hostId: '0011223344556677', nameOf: () => undefined };
  return { lines, access: new AccessLog({ ...known, log, sample }) };
}

function request(over: Partial<RequestLine>): RequestLine {
  const about = {
    client: undefined,
    consumer: 'host',
    service: 'web',
    method: 'GET',
    target: '/',
    instance: undefined,
  };
  const counts = { receivedBytes: 1, sentBytes: 1, durationMs: 1, retries: 0 };
  return { ...about, ...counts, traceId: traces[1] ?? '', status: 200, end: '2xx', reason: undefined, ...over };
}

t.test('one of so many is written and says so, and all that failed', async (t) => {
  const all = logOf(1);
  for (const traceId of traces) all.access.request(request({ traceId }));
  t.equal(all.lines.length, traces.length);
  t.ok(all.lines.every(({ sampled }) => sampled === undefined));

  const some = logOf(20);
  for (const traceId of traces) some.access.request(request({ traceId }));
  t.equal(some.lines.length, traces.length / 20);
  t.ok(some.lines.every(({ sampled }) => sampled === 20));
  some.lines.length = 0;
  for (const traceId of traces) some.access.begin({ client: undefined, service: 'db', traceId }).write();
  t.equal(some.lines.length, traces.length / 20, 'connections as well');
  const again = logOf(20);
  for (const traceId of traces) again.access.begin({ client: undefined, service: 'db', traceId, peer: 'x' }).write();
  const ids = (lines: readonly LogFields[]) => lines.map((line) => line['trace.id']);
  t.same(ids(again.lines), ids(some.lines), 'the other host writes the same ones');

  const failures: [string, Partial<RequestLine>][] = [
    ['a server error', { status: 500, end: '5xx' }],
    ['an answer that broke off', { end: 'broken' }],
    ['a client that went', { end: 'client gone' }],
    ['no answer', { status: 0, end: 'client gone' }],
    ['a denial', { status: 403, end: '4xx', reason: 'policy' }],
  ];
  for (const [name, over] of failures) {
    const { lines, access } = logOf(1_000_000);
    access.request(request(over));
    t.match(lines, [{ 'link.end': over.end, sampled: undefined }], name);
    access.request(request({ status: 404, end: '4xx' }));
    t.equal(lines.length, 1, 'what the instance says in order is sampled');
  }
  const { lines, access } = logOf(1_000_000);
  const begin = () => access.begin({ client: undefined, service: 'db', traceId: traces[1] ?? '' });
  begin().refuse('denied', 'policy');
  const reset = begin();
  reset.broke('instance reset');
  reset.write();
  begin().write();
  t.match(lines, [
    { 'link.end': 'denied', sampled: undefined },
    { 'link.end': 'instance reset', sampled: undefined },
  ]);
  t.equal(lines.length, 2);
});
