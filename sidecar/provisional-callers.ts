import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../src/base/clock.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import { PersistentMap } from '../src/base/persistent-map.ts';
import type { Caller, CallerTable } from '../src/model/caller.ts';
import type { DockerSource } from './docker/source.ts';

const everyMs = 25;

/** PROVISIONAL: callers by what Docker says of addresses, without the kernel's word. To be replaced by the real table. */
export function provisionalCallers(docker: DockerSource, clock: Clock, signal: AbortSignal): Observable<CallerTable> {
  const table = new Latest<CallerTable>({ off: undefined, bound: PersistentMap.empty() });
  const look = (): void => {
    const { bound } = table.value;
    const puts = new Map<string, Caller>();
    for (const { container, consumer } of docker.consumers()) {
      for (const { ipv4 } of container.attachments) {
        if (ipv4 === undefined || container.networkMode === 'host') continue;
        const caller = { container: container.name, consumer: consumer.name, links: consumer.links };
        const known = bound.get(ipv4);
        puts.set(ipv4, known !== undefined && isDeepStrictEqual(known, caller) ? known : caller);
      }
    }
    const next = bound.with(
      puts,
      [...bound.keys()].filter((address) => !puts.has(address)),
    );
    if (next !== bound) table.set({ off: undefined, bound: next });
    if (!signal.aborted) clock.after(everyMs, look);
  };
  look();
  return table;
}
