import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { describeError, isLegateError } from '../src/base/errors.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';

/** What opens a listener of the name server; a failure is a LegateError that says who holds the port. */
export type OpenListener = (endpoint: Endpoint, purpose: string) => Promise<OpenedListener>;

export interface OpenedListener {
  readonly endpoint: Endpoint;
  close(): Promise<void>;
}

const firstRetryMs = 250;
const retryCeilingMs = 10_000;

/**
 * Keeps one listener of the name server open: where it cannot be opened that is a condition with its cause, it is tried
 * again with back-off, and everything else goes on. Resolves after the first try.
 */
export async function keepListening(options: {
  readonly endpoint: Endpoint;
  readonly purpose: string;
  readonly open: OpenListener;
  readonly onOpen?: (listener: OpenedListener) => Promise<void>;
  readonly clock: Clock;
  readonly conditions: Conditions;
  readonly signal: AbortSignal;
}): Promise<void> {
  const { endpoint, purpose, open, clock, conditions, signal } = options;
  const id = `dns.listen.${formatEndpoint(endpoint)}`;
  const backoff = new Backoff(firstRetryMs, retryCeilingMs);
  const attempt = async (): Promise<boolean> => {
    try {
      const listener = await open(endpoint, purpose);
      await options.onOpen?.(listener);
      conditions.clear(id);
      return true;
    } catch (error) {
      const hint = isLegateError(error) ? (error.hint ?? '') : '';
      conditions.raise(id, 'error', `no name server on ${formatEndpoint(endpoint)}: ${describeError(error)}`, hint);
      return false;
    }
  };
  if (await attempt()) return;
  void (async () => {
    while (!signal.aborted) {
      await clock.sleep(backoff.nextMs(), signal);
      if (await attempt()) return;
    }
  })().catch(() => undefined);
}
