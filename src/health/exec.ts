import { formatDuration } from '../base/duration.ts';
import type { Probe, ProbeResult } from './probe.ts';

/** What became of a command inside a container. */
export type CommandResult =
  /** `output`: the beginning of what it printed. */
  | { readonly kind: 'ended'; readonly exitStatus: number; readonly output: string }
  /** It printed more than a check has any use for, and was killed. */
  | { readonly kind: 'flooding'; readonly output: string }
  /** The container cannot run it. */
  | { readonly kind: 'refused'; readonly reason: string }
  /** Nobody could be asked to run it, which says nothing about the container. */
  | { readonly kind: 'away'; readonly reason: string };

/**
 * Runs `/bin/sh -c command` inside a container, as its user and in its environment, and resolves when it has ended. When
 * the signal is aborted it is killed with all of its process group, and the promise resolves once that is done or
 * cannot be done. `onBegun` is called when it runs, with a function that gives what it has printed so far.
 */
export type RunInContainer = (
  container: string,
  command: string,
  signal: AbortSignal,
  onBegun: (printed: () => string) => void,
) => Promise<CommandResult>;

/** Passes when the command's exit status is 0, and warns at the one that the check names. */
export function execProbe(run: RunInContainer): Probe {
  return async ({ container }, { command, warningExit, timeoutMs }, signal, ifLate) => {
    if (container === undefined || command === undefined) {
      return { verdict: 'fail', output: 'a command runs inside a container only, and this instance is none' };
    }
    const after = formatDuration(timeoutMs);
    // The engine's silence is not the container's fault.
    ifLate?.(() => ({ verdict: 'unknown', output: `the Docker Engine did not run it within ${after}` }));
    const result = await run(container, command, signal, (printed) => {
      ifLate?.(() => ({ verdict: 'fail', output: withOutput(`not ended within ${after}, killed`, printed()) }));
    });
    return foundBy(result, warningExit);
  };
}

function foundBy(result: CommandResult, warningExit: number | undefined): ProbeResult {
  switch (result.kind) {
    case 'ended': {
      const { exitStatus, output } = result;
      if (exitStatus === 0) return { verdict: 'pass', output: output.trim() || 'exit status 0' };
      const verdict = exitStatus === warningExit ? 'warn' : 'fail';
      return { verdict, output: withOutput(`exit status ${exitStatus}${meaningOf(exitStatus)}`, output) };
    }
    case 'flooding':
      return { verdict: 'fail', output: withOutput('prints without end, killed', result.output) };
    case 'refused':
      return { verdict: 'fail', output: result.reason };
    case 'away':
      return { verdict: 'unknown', output: `not run: ${result.reason}` };
  }
}

/** What shells mean by it (POSIX.1-2017, Shell Command Language, 2.8.2). */
function meaningOf(exitStatus: number): string {
  if (exitStatus === 126) return ' (not executable)';
  if (exitStatus === 127) return ' (no such program)';
  return exitStatus > 128 && exitStatus <= 192 ? ` (ended by signal ${exitStatus - 128})` : '';
}

function withOutput(text: string, output: string): string {
  const printed = output.trim();
  return printed === '' ? text : `${text}: ${printed}`;
}
