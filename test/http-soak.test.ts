import t from 'tap';
import { soak } from './support/http-soak.ts';

t.test('five thousand requests, many of them aborted, leave nothing behind', async (t) => {
  const { before: at, after, ...report } = await soak(5000);
  t.comment(JSON.stringify({ ...report, at, after }));
  t.equal(report.wrong, 0);
  t.ok(report.answers > 2500);
  t.equal(after.descriptors, at.descriptors);
  t.equal(after.sockets, at.sockets);
  t.ok(after.heapMegabytes < at.heapMegabytes + 10);
});
