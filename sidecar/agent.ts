import { systemClock } from '../src/base/clock.ts';
import { describeError, isLegateError } from '../src/base/errors.ts';
import { createLog } from '../src/base/log.ts';
import type { Config } from '../src/config/config.ts';
import { startSidecar } from './app.ts';
import { withJoinedStore } from './joined-store.ts';
import type { ReloadFaults } from './reload-report.ts';
import { ownVersion } from './version.ts';

/** How long a sidecar that was asked to let another one take its place may take to do so. */
const handOverLimitMs = 30_000;
/** Whoever signals a process and then its group means one stop; somebody who has lost patience comes later. */
const sameSignalMs = 500;

/** Reads the configuration again for SIGHUP: it, or its faults. */
export type Reload = () => { readonly config: Config } | ReloadFaults;

/**
 * Runs the sidecar in the foreground until SIGTERM or SIGINT, which drain and leave; another one later ends at once. SIGHUP
 * reloads the configuration file. The exit status: 0 after a clean stop, 1 when it could not start.
 */
export async function runAgent(
  config: Config,
  options: {
    readonly configFile?: string | undefined;
    readonly reload: Reload;
    /** Asks the sidecar that runs to let this one take its place. */
    readonly replace?: (() => Promise<void>) | undefined;
  },
): Promise<number> {
  const log = createLog(config.log.level);
  const stopping = new Promise<NodeJS.Signals>((resolve) => {
    let firstMs: number | undefined;
    const onSignal = (signal: NodeJS.Signals): void => {
      const nowMs = systemClock.monotonicMs();
      firstMs ??= nowMs;
      if (nowMs - firstMs >= sameSignalMs) process.exit(1);
      resolve(signal);
    };
    process.on('SIGTERM', onSignal);
    process.on('SIGINT', onSignal);
  });
  let sidecar: Awaited<ReturnType<typeof startSidecar>>;
  // A clock's timers do not keep a process alive, and while it waits to begin there is nothing else.
  const alive = setInterval(() => undefined, 60_000);
  try {
    const reread = (): Config | undefined => {
      const next = options.reload();
      return 'config' in next ? withJoinedStore(next.config) : undefined;
    };
    await options.replace?.();
    const holderLimitMs = options.replace === undefined ? undefined : handOverLimitMs;
    const waiting = holderLimitMs === undefined ? {} : { holderLimitMs };
    const { configFile } = options;
    const common = { log, clock: systemClock, version: ownVersion(), configFile, reread, ...waiting };
    sidecar = await startSidecar(withJoinedStore(config), common);
  } catch (error) {
    const hint = isLegateError(error) && error.hint !== undefined ? `; ${error.hint}` : '';
    process.stderr.write(`legate agent: ${describeError(error)}${hint}\n`);
    if (!isLegateError(error) || config.log.level === 'debug')
      log.debug('stack', { stack: error instanceof Error ? (error.stack ?? '') : '' });
    return 1;
  } finally {
    clearInterval(alive);
  }
  process.on('SIGHUP', () => {
    const next = options.reload();
    if ('config' in next) sidecar.reload(withJoinedStore(next.config));
    else sidecar.reloadFailed(next);
  });
  const signal = await Promise.race([stopping, sidecar.replaced]);
  if (signal === undefined) {
    log.info('another sidecar takes over');
    await sidecar.handOver(stopping);
    log.info('handed over, connections go on');
    return 0;
  }
  log.info('stopping', { 'process.signal': signal, 'drain.timeout_ms': config.drainTimeoutMs });
  const cut = await sidecar.stop();
  log.info('stopped', { 'link.connections_cut': cut });
  return 0;
}
