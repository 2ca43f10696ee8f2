/**
 * Runs `work` with a signal that is aborted when `signal` is, and with a TimeoutError after `limitMs`. It is no
 * `AbortSignal.any` of an `AbortSignal.timeout`: up to Node 24 nothing but the timer's weak reference holds the latter,
 * and once it is collected the limit never comes (nodejs/node issue 57736).
 */
export async function within<T>(
  limitMs: number,
  signal: AbortSignal,
  work: (until: AbortSignal) => Promise<T>,
): Promise<T> {
  const ended = new AbortController();
  const onAbort = (): void => ended.abort(signal.reason);
  const timer = setTimeout(() => ended.abort(new DOMException('it took too long', 'TimeoutError')), limitMs);
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    return await work(ended.signal);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
  }
}
