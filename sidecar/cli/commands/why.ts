import { LegateError } from '../../../src/base/errors.ts';
import type { WhyDocument } from '../../admin/why-document.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, renderDocument, withClient } from '../session.ts';
import { whyLines } from '../views/why.ts';

/** `legate why`: the way of a connection, step by step, and the one thing to do. */
export function addWhyCommand({ program, session, register }: CommandTools): void {
  const command = program
    .command('why')
    .description('walks the way of a connection: name, address, policy, choice, tunnel, instance, and what to fix')
    .argument('[consumer]', 'a container (name or id), a service, or host (default: host)')
    .argument('<name>', 'what it connects to: a service, an alias, a name of the mesh, a virtual address')
    .addHelpText('after', examples('legate why db', 'legate why web db', 'legate why web-7f3 db.mesh.internal --json'));
  // The optional word stands in front, which the parser has no form for: one word alone is the name.
  for (const argument of command.registeredArguments) argument.argOptional();
  command.usage('[options] [consumer] <name>');
  register<GlobalOptions>(command, async (options, first, second) => {
    const [consumer, name] = second === undefined ? [undefined, first] : [first, second];
    if (name === undefined) {
      throw new LegateError('E_USAGE', 'why needs the name that is connected to', {
        hint: 'such as: legate why web db',
      });
    }
    const query = new URLSearchParams({ name, ...(consumer !== undefined && { consumer }) });
    const { terminal } = session;
    const document = await withClient(session, options, (client) =>
      client.json<WhyDocument>(`/api/why?${query.toString()}`),
    );
    if (options.json) printJson(terminal, document);
    else terminal.lines(renderDocument(document, whyLines, terminal.view()));
    return document.fine ? exitStatus.done : exitStatus.failed;
  });
}
