import { type DestinationStream, pino } from 'pino';

export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error';
export const logLevels: readonly LogLevel[] = ['trace', 'debug', 'info', 'warn', 'error'];

/** Values of one log line: scalar, with dotted names (`docker.container`, `dns.listen`). */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

/**
 * One line an event: a constant message and dotted fields. The owner of a loop logs; what is below it returns.
 * No secret is ever passed here.
 */
export interface Log {
  child(fields: LogFields): Log;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
}

/** Writes JSON lines (RFC 3339 time, level in words) to `destination`, standard error by default. */
export function createLog(level: LogLevel, destination?: DestinationStream): Log {
  const options = {
    level,
    base: null,
    messageKey: 'msg',
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  return wrap(pino(options, destination ?? pino.destination({ dest: 2, sync: true })));
}

interface PinoLike {
  child(fields: object): PinoLike;
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

function wrap(logger: PinoLike): Log {
  return {
    child: (fields) => wrap(logger.child(fields)),
    debug: (message, fields = {}) => logger.debug(fields, message),
    info: (message, fields = {}) => logger.info(fields, message),
    warn: (message, fields = {}) => logger.warn(fields, message),
    error: (message, fields = {}) => logger.error(fields, message),
  };
}

/** Swallows everything; for tests, and for commands that tell of a failure themselves. */
export const silentLog: Log = {
  child: () => silentLog,
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
};
