import { writeSync } from 'node:fs';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import { openEmbeddedStore } from '../../src/store/embedded/embedded-store.ts';

/**
 * Run by the crash test: writes to the store in the folder of its first argument until it is killed, and prints a line
 * for each write once it is acknowledged. The second argument makes its keys its own.
 */
const [, , path = '', round = ''] = process.argv;
const store = await openEmbeddedStore({ path, clock: systemClock, log: silentLog, metrics: new Metrics() });
const { revision } = await store.range('/');
writeSync(1, `open ${revision}\n`);

async function write(writer: number): Promise<void> {
  for (let index = 0; ; index += 1) {
    const key = `/${round}/${writer}/${index}`;
    const value = Buffer.from(`${key} `.repeat(1 + (index % 50)));
    const put = { kind: 'put', key, value } as const;
    const result = await store.txn([], [put, { kind: 'put', key: `/shared/${writer}`, value: Buffer.from(key) }]);
    if (result.ok) writeSync(1, `put ${key} ${result.revision}\n`);
  }
}

await Promise.all([0, 1, 2, 3].map(write));
