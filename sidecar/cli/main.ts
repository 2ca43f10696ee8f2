#!/usr/bin/env node
import { workerCommand } from '../plane/worker-command.ts';

/** How long what should have been closed may keep the process alive after a command's end. */
const lingerMs = 2000;

function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => controller.abort());
  return controller.signal;
}

// `legate services | head -1`: the reader has what it wanted.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

async function runProgram(): Promise<void> {
  const [{ runCommandLine }, { Terminal }, { exitStatus }] = await Promise.all([
    import('./program.ts'),
    import('./terminal.ts'),
    import('./failure.ts'),
  ]);
  const terminal = new Terminal({
    stdout: process.stdout,
    stderr: process.stderr,
    env: process.env,
    nowMs: () => Date.now(),
  });
  // Nothing is left that could ever settle what the command waits for.
  const onEmptied = (): void => {
    terminal.error('legate: this command had nothing left to wait for, and did not end: a fault of Legate');
    process.exit(exitStatus.failed);
  };
  process.once('beforeExit', onEmptied);
  process.exitCode = await runCommandLine(process.argv.slice(2), {
    terminal,
    env: process.env,
    stdin: process.stdin,
    interruption,
  });
  process.off('beforeExit', onEmptied);
  setTimeout(() => process.exit(), lingerMs).unref();
}

// A sidecar starts its workers with this very program, over a channel that nobody else has.
if (process.argv[2] === workerCommand && process.connected) await (await import('../plane/worker.ts')).runWorker();
else await runProgram();
