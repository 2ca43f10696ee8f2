import type { Command } from 'commander';
import { LegateError } from '../../src/base/errors.ts';
import type { AdminClient } from './admin-client.ts';
import type { Terminal, View } from './terminal.ts';
import { clean, safeJson } from './words.ts';

/** What a command works with: everything from outside the process comes in here. */
export interface Session {
  readonly terminal: Terminal;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly stdin: AsyncIterable<Uint8Array | string>;
  /** Aborted at Ctrl-C or SIGTERM; signals are only caught once somebody has asked for this. */
  interruption(): AbortSignal;
}

/** The options that every command knows. */
export interface GlobalOptions {
  readonly admin?: string;
  readonly tokenFile?: string;
  readonly caFile?: string;
  readonly json?: boolean;
  /** The configuration of the sidecar that is meant. */
  readonly config?: string;
}

/** How a command is hooked in: what `run` gives back becomes the exit status. */
export type Register = <O extends GlobalOptions>(
  command: Command,
  run: (options: O, ...args: (string | undefined)[]) => Promise<number>,
) => void;

export interface CommandTools {
  readonly program: Command;
  readonly session: Session;
  readonly register: Register;
}

/**
 * Runs `use` with a client for the sidecar that the options mean, and closes it. Loaded only here: `legate agent` comes up
 * quicker without an HTTP client.
 */
export async function withClient<T>(
  session: Session,
  options: GlobalOptions,
  use: (client: AdminClient) => Promise<T>,
): Promise<T> {
  const { AdminClient, defaultAdminAddress, parseAdminAddress, readRoots, readToken } = await import(
    './admin-client.ts'
  );
  const { admin, config } = options;
  // A flag wins over a variable. The configuration is read by nobody who does not name one.
  const named = admin === undefined && config !== undefined ? await import('./config-admin.ts') : undefined;
  const found = named?.adminOf(session, config ?? '');
  const address = parseAdminAddress(found?.address ?? admin ?? (session.env.LEGATE_ADMIN || defaultAdminAddress));
  const tokenFile = options.tokenFile ?? found?.tokenFile ?? session.env.LEGATE_TOKEN_FILE;
  const roots = address.secure ? readRoots(options.caFile ?? session.env.LEGATE_CA_FILE, address) : undefined;
  const client = new AdminClient({ address, roots, token: tokenFile ? readToken(tokenFile) : undefined });
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

/** A document as lines for people. A sidecar of another version may lack what this one shows: that is said as such. */
export function renderDocument<T>(document: T, render: (document: T, view: View) => string[], view: View): string[] {
  try {
    return render(clean(document), view);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new LegateError('E_INVALID', "the sidecar's answer has another form than this version knows", {
      hint: 'compare legate --version with the version of the sidecar, or use --json',
      cause: error,
    });
  }
}

export function printJson(terminal: Terminal, document: unknown): void {
  terminal.lines([safeJson(document, 2)]);
}

/** What is no error and may be a mistake goes to standard error, beside what was done. */
export function tellNotes({ terminal }: Session, document: { readonly notes?: readonly string[] }): void {
  for (const note of clean(document).notes ?? []) terminal.error(` ${terminal.style.note} ${note}`);
}

export function examples(...lines: string[]): string {
  return `\nExamples:\n${lines.map((line) => `  ${line}`).join('\n')}`;
}
