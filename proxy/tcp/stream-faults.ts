import type { ResetReason } from '../tunnel/tunnels.ts';
import type { Blame } from './route.ts';

/** What a stream that never opened says, where its other side does not, and of whom. */
export const streamFaults: Readonly<Record<ResetReason, { readonly problem: string; readonly blame: Blame }>> = {
  reset: { problem: 'reset by its host', blame: 'instance' },
  unreachable: { problem: 'its host cannot connect to it', blame: 'instance' },
  gone: { problem: 'its host does not have it any more', blame: 'way' },
  denied: { problem: 'its host does not allow it', blame: 'way' },
  busy: { problem: 'its host takes no more connections', blame: 'host' },
  protocol: { problem: 'its host was misunderstood', blame: 'way' },
  lost: { problem: 'the tunnel to its host was lost', blame: 'way' },
};
