import { printable } from '../../../src/base/text.ts';
import type { InstanceDocument, RefreshDocument } from '../../admin/documents.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, withClient } from '../session.ts';
import { clean } from '../words.ts';
import { hostName, instancePath } from './register.ts';

interface RefreshOptions extends GlobalOptions {
  readonly status?: string;
  readonly output?: string;
}

/** The command by which an instance with a check of kind ttl says that it is there. */
export function addRefreshCommand({ program, session, register }: CommandTools): void {
  const command = program
    .command('refresh')
    .description(
      'tells that an instance is there, for its checks of kind ttl; to be run again before their time is over',
    )
    .argument('<id>', 'as `legate instances` shows it: HOST/NAME, or NAME for this host')
    .option('--status <status>', 'how it is: passing, warning or critical (default: passing)')
    .option('--output <text>', 'a word on it, for people')
    .addHelpText(
      'after',
      examples(
        'legate refresh worker-9000',
        'legate refresh web-1/worker-9000 --status warning --output "the queue is long"',
        'while pgrep worker; do legate refresh worker-9000; sleep 10; done',
      ),
    );
  register<RefreshOptions>(command, async ({ status, output, ...options }, id = '') => {
    const { terminal } = session;
    const json: RefreshDocument = {
      ...(status !== undefined && { status }),
      ...(output !== undefined && { output }),
    };
    const document = await withClient(session, options, async (client) => {
      const full = id.includes('/') ? id : `${await hostName(client)}/${id}`;
      return client.json<InstanceDocument>(instancePath(full), { method: 'PUT', json });
    });
    if (options.json) printJson(terminal, document);
    else {
      const { style } = terminal;
      const shown = clean(document);
      terminal.lines([` ${style.paint(style.good, 'green')} ${printable(shown.id)} is refreshed: ${shown.status}`]);
    }
    return exitStatus.done;
  });
}
