import type { Clock } from '../../src/base/clock.ts';
import { TraceIds } from '../trace-ids.ts';
import type { ResetReason, StreamEvents, StreamHead, TunnelStream, Tunnels } from './tunnels.ts';

/** How long the other host and its instance may take together. */
const limitMs = 2000;

/** A connection that is only tried: who asks, and for which instance of which host. */
export interface Probe {
  readonly hostId: string;
  readonly head: Omit<StreamHead, 'traceId'>;
}

export type ProbeResult =
  | { readonly ok: true; readonly elapsedMs: number }
  /** `reason`: of the other side, `no tunnel` or `silent`; `detail`: for people. */
  | { readonly ok: false; readonly reason: ResetReason | 'no tunnel' | 'silent'; readonly detail: string };

/** Opens a stream to an instance of another host and resets it as soon as the instance is connected. Never rejects. */
export function probeThrough(
  tunnels: Pick<Tunnels, 'open'>,
  { hostId, head }: Probe,
  clock: Clock,
): Promise<ProbeResult> {
  return new Promise((resolve) => {
    const beganMs = clock.monotonicMs();
    let stream: TunnelStream | string | undefined;
    const end = (result: ProbeResult): void => {
      cancelTimer();
      if (typeof stream === 'object') stream.reset('reset');
      resolve(result);
    };
    const nothing = (): void => undefined;
    const events: StreamEvents = {
      opened: () => end({ ok: true, elapsedMs: clock.monotonicMs() - beganMs }),
      data: nothing,
      ended: nothing,
      drained: nothing,
      closed: (reason, detail) => end({ ok: false, reason: reason ?? 'reset', detail }),
    };
    const cancelTimer = clock.after(limitMs, () => {
      end({ ok: false, reason: 'silent', detail: `no answer within ${limitMs / 1000} s` });
    });
    stream = tunnels.open(hostId, { ...head, traceId: new TraceIds().next() }, events);
    if (typeof stream === 'string') end({ ok: false, reason: 'no tunnel', detail: stream });
  });
}
