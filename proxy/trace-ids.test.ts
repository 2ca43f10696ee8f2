import t from 'tap';
import { TraceIds } from './trace-ids.ts';

t.test('ids are different, also those of another process', (t) => {
  const [one, other] = [new TraceIds(), new TraceIds()];
  const seen = new Set<string>();
  for (let count = 0; count < 20_000; count += 1) seen.add(one.next()).add(other.next());
  t.equal(seen.size, 40_000);
  t.ok([...seen].every((id) => /^[0-9a-f]{32}$/.test(id)));
  for (let at = 0; at < TraceIds.length; at += 1) {
    const digits = new Set([...seen].map((id) => id[at]));
    t.equal(digits.size, 16, `every digit is found at ${at}`);
  }
  t.end();
});

t.test('an id is written between what is there', (t) => {
  const out = Buffer.alloc(TraceIds.length + 2, '-');
  new TraceIds().put(out, 1);
  t.match(out.toString(), /^-[0-9a-f]{32}-$/);
  t.end();
});
