import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import { nameFault } from '../../../src/model/names.ts';
import { anyServiceFault } from '../../../src/model/policy-document.ts';
import type { GrantChangeDocument, RevocationDocument } from '../../admin/policy-documents.ts';
import { exitStatus } from '../failure.ts';
import {
  type CommandTools,
  examples,
  type GlobalOptions,
  printJson,
  renderDocument,
  tellNotes,
  withClient,
} from '../session.ts';
import type { View } from '../terminal.ts';
import { grantChangeLines } from '../views/policy.ts';

/** What a host may offer, and that it may nothing any more. Changes are made on the authority's host. */
export function addHostCommands({ program, session, register }: CommandTools): void {
  const host = program
    .command('host')
    .description('says which services a host may offer, and revokes hosts, on the host of the authority')
    .addHelpText('after', examples('legate host allow db-1 db', 'legate host revoke web-3', 'legate hosts'));

  for (const on of [true, false]) {
    const word = on ? 'allow' : 'disallow';
    const about = on
      ? 'lets a host offer a service and speak for it; no host without a grant may any more'
      : 'takes back what legate host allow gave';
    const command = host
      .command(word)
      .description(about)
      .argument('<host>', 'its name or id; a host to which nothing is granted may offer what is granted to nobody')
      .argument('<service>', 'a service, or * for any')
      .addHelpText('after', examples(`legate host ${word} db-1 db`, `legate host ${word} db-1 '*'`));
    register<GlobalOptions>(command, async (options, name = '', service = '') => {
      const { terminal } = session;
      const path = `${hostPath(name)}/grants/${serviceName(service)}`;
      const document = await withClient(session, options, (client) =>
        client.json<GrantChangeDocument>(path, { method: on ? 'PUT' : 'DELETE' }),
      );
      if (options.json) printJson(terminal, document);
      else {
        terminal.lines(renderDocument(document, grantChangeLines, terminal.view()));
        tellNotes(session, document);
      }
      return exitStatus.done;
    });
  }

  const revoke = host
    .command('revoke')
    .description('has every host refuse this one from now on, whatever it shows; for a machine that was lost or stolen')
    .argument('<host>', 'its name or id')
    .addHelpText('after', examples('legate host revoke web-3', 'legate host revoke 0011223344556677 --json'));
  register<GlobalOptions>(revoke, async (options, name = '') => {
    const { terminal } = session;
    const document = await withClient(session, options, (client) =>
      client.json<RevocationDocument>(`${hostPath(name)}/revoke`, { method: 'POST' }),
    );
    if (options.json) printJson(terminal, document);
    else terminal.lines(renderDocument(document, revocationLines, terminal.view()));
    return exitStatus.done;
  });
}

function revocationLines({ host, hostId, changed, stored }: RevocationDocument, { style }: View): string[] {
  const good = style.paint(style.good, 'green');
  const lines = [` ${good} ${host} (${hostId}) ${changed ? 'is revoked' : 'had been revoked before'}, for ever`];
  lines.push(` ${style.note} to let it in again, as another host: legate token, then legate join --again there`);
  if (!stored) lines.push(` ${style.note} the store does not have it yet: other hosts follow when it answers`);
  return lines;
}

function hostPath(name: string): string {
  const fault = nameFault(name);
  if (fault === undefined) return `/api/hosts/${name}`;
  throw new LegateError('E_USAGE', `the host's name "${printable(name)}" ${fault}`, {
    hint: 'legate hosts lists the names',
  });
}

function serviceName(service: string): string {
  const fault = anyServiceFault(service);
  if (fault === undefined) return service;
  throw new LegateError('E_USAGE', `the service's name "${printable(service)}" ${fault}`, {
    hint: "legate services lists the names; '*' stands for any",
  });
}
