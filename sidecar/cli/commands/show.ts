import { isIP } from 'node:net';
import type { Command } from 'commander';
import type {
  HostsDocument,
  InstancesDocument,
  LinksDocument,
  ResolveDocument,
  ServicesDocument,
  StatusDocument,
} from '../../admin/documents.ts';
import type { AdminClient } from '../admin-client.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, renderDocument, withClient } from '../session.ts';
import type { View } from '../terminal.ts';
import { hostLines } from '../views/hosts.ts';
import { instanceLines } from '../views/instances.ts';
import { linkLines } from '../views/links.ts';
import { resolveLines } from '../views/resolve.ts';
import { serviceLines } from '../views/services.ts';
import { statusLines } from '../views/status.ts';
import { watch } from '../watch.ts';
import { safeJson } from '../words.ts';

interface ShowOptions extends GlobalOptions {
  readonly watch?: boolean;
}

/** The commands that show what is: one document of the API each. */
export function addShowCommands(tools: CommandTools): void {
  addTable(tools, {
    name: 'status',
    about: 'tells in a few lines whether all is well on this host, and if not what to do',
    path: () => '/api/status',
    render: (document: StatusDocument, view) => statusLines(document, view),
    examples: ['legate status', 'legate status --watch', 'legate status --json | jq .todo'],
  });
  addTable(tools, {
    name: 'hosts',
    about: 'lists the hosts of the mesh, lost ones first',
    path: () => '/api/hosts',
    render: (document: HostsDocument, view) => hostLines(document, view),
    examples: ['legate hosts', "legate hosts --json | jq -r '.hosts[].name'"],
  });
  addTable(tools, {
    name: 'services',
    about: 'lists services, those in trouble first, and what was refused and why',
    path: () => '/api/services',
    render: (document: ServicesDocument, view) => serviceLines(document, view),
    examples: ['legate services', 'legate services --watch', "legate services --json | jq -r '.services[].vip'"],
  });
  addTable(tools, {
    name: 'instances',
    argument: '[service]',
    about: 'lists the instances of a service, or of all: status, address, source, last output of the check',
    path: (service) => `/api/instances${service === undefined ? '' : `?service=${encodeURIComponent(service)}`}`,
    render: (document: InstancesDocument, view, service) => instanceLines(document, view, service === undefined),
    examples: ['legate instances db', 'legate instances', 'legate instances db --watch'],
  });
  addTable(tools, {
    name: 'links',
    about: 'lists where consumers on this host reach services, how that goes, and what containers declare',
    path: () => '/api/links',
    render: (document: LinksDocument, view) => linkLines(document, view),
    examples: [
      'legate links',
      'legate links --watch',
      'legate links --json | jq \'.links[] | select(.state != "open")\'',
    ],
  });
  addResolve(tools);
}

interface Table<T> {
  readonly name: string;
  readonly argument?: string;
  readonly about: string;
  readonly path: (argument: string | undefined) => string;
  readonly render: (document: T, view: View, argument: string | undefined) => string[];
  readonly examples: readonly string[];
}

function addTable<T>({ program, session, register }: CommandTools, table: Table<T>): void {
  const command: Command = program.command(table.name).description(table.about);
  if (table.argument !== undefined) command.argument(table.argument);
  command.option('-w, --watch', 'keeps it current until Ctrl-C');
  command.addHelpText('after', examples(...table.examples));
  register<ShowOptions>(command, async (options, argument) => {
    const { terminal } = session;
    const path = table.path(argument);
    const lines = async (client: AdminClient, signal?: AbortSignal): Promise<string[]> => {
      const document = await client.json<T>(path, signal === undefined ? {} : { signal });
      // Watched by a program: one line a document.
      if (options.json) return [safeJson(document, signal === undefined ? 2 : 0)];
      return renderDocument(document, (clean, view) => table.render(clean, view, argument), terminal.view());
    };
    await withClient(session, options, async (client) => {
      if (!options.watch) {
        terminal.lines(await lines(client));
        return;
      }
      const signal = session.interruption();
      await watch(client, terminal, () => lines(client, signal), signal);
    });
    return exitStatus.done;
  });
}

function addResolve({ program, session, register }: CommandTools): void {
  const command = program
    .command('resolve')
    .description("asks this host's name server, and says where the answer came from and what was left out")
    .argument('<name>', 'a domain name, or an IP address')
    .option(
      '-f, --from <container>',
      'asks in the place of this container (name or id), which may have aliases of its own',
    )
    .option('-t, --type <type>', 'record type: A, AAAA, SRV, TXT, PTR, SOA, NS (default: A; of an IP address PTR)')
    .addHelpText(
      'after',
      examples(
        'legate resolve db',
        'legate resolve _db._tcp.mesh.internal --type SRV',
        'legate resolve cache --from web',
      ),
    );
  register<GlobalOptions & { type?: string; from?: string }>(command, async (options, name = '') => {
    const { terminal } = session;
    const type = options.type?.toUpperCase() ?? (isIP(name) === 0 ? 'A' : 'PTR');
    const query = new URLSearchParams({ name, type, ...(options.from !== undefined && { from: options.from }) });
    const document = await withClient(session, options, (client) =>
      client.json<ResolveDocument>(`/api/resolve?${query.toString()}`),
    );
    if (options.json) printJson(terminal, document);
    else terminal.lines(renderDocument(document, resolveLines, terminal.view()));
    return document.status === 'NOERROR' ? exitStatus.done : exitStatus.failed;
  });
}
