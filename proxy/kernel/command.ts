import { execFile } from 'node:child_process';
import { describeError, LegateError, systemCode } from '../../src/base/errors.ts';
import { printable, truncate } from '../../src/base/text.ts';

const timeoutMs = 10_000;
/** 100,000 elements of a map listed as text are 5 MB. */
const maxOutputBytes = 32 * 1024 * 1024;

/** Which Debian package has the command; for hints. */
const packages: Readonly<Record<string, string>> = { nft: 'nftables', ip: 'iproute2', conntrack: 'conntrack' };

/** Where system tools live that a plain user's PATH leaves out. */
const systemFolders = '/usr/sbin:/sbin';

/** The environment of a tool: a stable language, and no home, so that `nft -i` keeps no history file. */
export function toolEnvironment(): NodeJS.ProcessEnv {
  const path = process.env.PATH ?? '/usr/bin:/bin';
  return { PATH: `${path}:${systemFolders}`, LC_ALL: 'C', HOME: '/nonexistent' };
}

/** The machine has no descriptor, process or memory left for a child: this says nothing about what it was to do. */
const startFailures: ReadonlySet<string> = new Set(['EMFILE', 'ENFILE', 'EAGAIN', 'ENOMEM']);

/** A command's failure: what it wrote to standard error is in the message, its first line only (Node's own error would repeat all of it). */
function failure(command: string, error: unknown, stderr: string): LegateError {
  if (systemCode(error) === 'ENOENT') return missing(command, error);
  if (startFailures.has(systemCode(error) ?? '')) {
    return new LegateError('E_PERMISSION', `${command} cannot be started: ${describeError(error)}`, {
      hint: 'raise the limits of open files and processes (LimitNOFILE, ulimit -n, ulimit -u)',
    });
  }
  const text = printable(truncate(stderr.trim().split('\n', 1)[0] ?? '', 300));
  if (/not permitted|permission denied/i.test(stderr) || systemCode(error) === 'EACCES') {
    return new LegateError('E_PERMISSION', `no right to change the network of this host (${command}: ${text})`, {
      hint: 'run as root or with the capability NET_ADMIN',
    });
  }
  return new LegateError('E_INVALID', `${command} failed: ${text || describeError(error)}`);
}

function missing(command: string, cause: unknown): LegateError {
  return new LegateError('E_NOT_FOUND', `the command ${command} is not installed`, {
    hint: `install ${packages[command] ?? command}`,
    cause,
  });
}

/**
 * Runs a system tool to its end and gives its standard output. Bounded in time (10 s) and output (32 MiB). Rejects with
 * E_NOT_FOUND when the command is not there, E_PERMISSION when the kernel refuses for want of rights, E_INVALID
 * otherwise.
 */
export function runCommand(
  command: string,
  args: readonly string[],
  options: { readonly input?: string; readonly onStart?: (pid: number) => void } = {},
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = execFile(
      command,
      args,
      { timeout: timeoutMs, maxBuffer: maxOutputBytes, env: toolEnvironment(), killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else if (error.killed === true && error.code === undefined) {
          reject(new LegateError('E_TIMEOUT', `${command} gave no answer in ${timeoutMs / 1000} s`, { cause: error }));
        } else reject(failure(command, error, stderr));
      },
    );
    if (child.pid !== undefined) options.onStart?.(child.pid);
    // A child that ends before it has read everything closes the pipe; its exit status tells the story.
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(options.input ?? '');
  });
}
