/** Brings up a testbed as a test does and waits to be killed; testbed.test.ts looks at what is left. */
import { Testbed } from './testbed.ts';

const testbed = await Testbed.up({ teardown: () => undefined }, { hosts: 2, hasTurn: true });
await testbed.host(2).docker('run', '-d', 'busybox', 'sleep', '1000');
console.log(testbed.folder);
setInterval(() => undefined, 1000);
