import { soak } from '../support/http-soak.ts';
import type { Bench } from './bench.ts';

/** Requests in one run, and in a `--quick` one. */
const requests = 1_000_000;
const quickRequests = 50_000;

/** What is left of very many requests, of which many are aborted by clients or instances. */
export const soakBench: Bench = {
  name: 'http-leaks',
  skip: () => false,
  async run(say, { quick }) {
    const { before, after, ...report } = await soak(quick ? quickRequests : requests, say);
    say(
      `${report.requests} requests over ${report.connections} connections, ${report.answers} answers, ${report.wrong} wrong`,
    );
    say(`heap ${before.heapMegabytes} MB before, ${after.heapMegabytes} MB after`);
    return [
      { what: 'answers that were wrong', unit: '', ours: report.wrong, better: 'lower', aim: 0 },
      { what: 'descriptors left', unit: '', ours: after.descriptors - before.descriptors, better: 'lower', aim: 0 },
      { what: 'sockets left', unit: '', ours: after.sockets - before.sockets, better: 'lower', aim: 0 },
      { what: 'heap left', unit: 'MB', ours: after.heapMegabytes - before.heapMegabytes, better: 'lower', aim: 5 },
    ];
  },
};
