import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Ipv4Range, parseIpv4Range } from '../../src/model/address.ts';
import { unless } from '../../test/support/needs.ts';
import { CallerRules, callerCounters, parseContacts } from './caller-rules.ts';
import { makeNamespace } from './test-namespace.ts';

const mac = '02:42:ac:11:00:02';
const binding = { address: '172.17.0.2', interface: 'veth1', mac };

t.test('only differences become commands', async (t) => {
  const rules = new CallerRules('legate', [parseIpv4Range('240.77.0.0/16') as Ipv4Range]);
  const commands = (): readonly string[] => {
    const delta = rules.delta();
    delta.done();
    return delta.commands;
  };
  rules.script().built();
  t.same(commands(), []);
  rules.bind([binding], []);
  rules.setRanges(['172.17.0.0/16']);
  t.same(commands(), [
    'flush set bridge legate ranges',
    `add element bridge legate bindings { "veth1" . ${mac} . 172.17.0.2 }`,
    'add element bridge legate bound { 172.17.0.2 }',
    'add element bridge legate fresh { 172.17.0.2 }',
    'add element bridge legate ranges { 172.17.0.0/16 }',
  ]);
  rules.bind([binding], []);
  rules.setRanges(['172.17.0.0/16']);
  t.same(commands(), [], 'the same again');
  rules.bind([{ ...binding, interface: 'veth2' }], ['172.17.0.2']);
  t.same(commands(), [
    `delete element bridge legate bindings { "veth1" . ${mac} . 172.17.0.2 }`,
    `add element bridge legate bindings { "veth2" . ${mac} . 172.17.0.2 }`,
  ]);
  rules.settle(['172.17.0.2', '172.17.0.3']);
  t.same(commands(), ['delete element bridge legate fresh { 172.17.0.2 }']);
  rules.bind([], ['172.17.0.2', '172.17.0.9']);
  t.same(commands(), [
    `delete element bridge legate bindings { "veth2" . ${mac} . 172.17.0.2 }`,
    'delete element bridge legate bound { 172.17.0.2 }',
  ]);
  t.equal(rules.size, 0);
});

t.test('what nft prints is read', async (t) => {
  const text = `table bridge legate {
	counter spoofed {
		packets 12 bytes 720
	}
	set contacts {
		size 65536
		elements = { "veth1" . ${mac} . 172.17.0.2 . 40000 . 240.77.0.5 expires 4s996ms,
			     "veth2" . ${mac} . 172.17.0.2 . 40001 . 240.77.0.5 timeout 6s expires 1s }
	}
}`;
  t.same(callerCounters(text), { spoofed: 12, unrecorded: 0 });
  t.same(
    parseContacts(text).map(({ interface: name, source }) => [name, source.port]),
    [
      ['veth1', 40000],
      ['veth2', 40001],
    ],
  );
});

t.test('in a network namespace of its own', { skip: unless('nft', 'netns', 'command:conntrack') }, async (t) => {
  const namespace = makeNamespace(`legate-test-callers-${process.pid}`);
  t.teardown(() => namespace.remove());
  const child = fileURLToPath(new URL('caller-filter.netns.js', import.meta.url));
  const env = { ...process.env, LEGATE_TEST_NAMESPACE: namespace.name };
  await t.spawn('ip', ['netns', 'exec', namespace.name, process.execPath, child], { env }, 'caller-filter.netns');
});
