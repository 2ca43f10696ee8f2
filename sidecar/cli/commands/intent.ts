import { LegateError } from '../../../src/base/errors.ts';
import { printable } from '../../../src/base/text.ts';
import { anyServiceFault, consumerFault } from '../../../src/model/policy-document.ts';
import type { IntentCheckDocument, LearnedDocument, PolicyDocument } from '../../admin/policy-documents.ts';
import { exitStatus } from '../failure.ts';
import {
  type CommandTools,
  examples,
  type GlobalOptions,
  printJson,
  renderDocument,
  type Session,
  tellNotes,
  withClient,
} from '../session.ts';
import { checkLines, learnedLines, policyLines } from '../views/policy.ts';
import { clean } from '../words.ts';

interface ListOptions extends GlobalOptions {
  readonly learned?: boolean;
}

/** Who may call whom. Changes are made on the authority's host. */
export function addIntentCommands({ program, session, register }: CommandTools): void {
  const intent = program
    .command('intent')
    .description('says who may call whom: for the whole mesh, on the host of its authority')
    .addHelpText(
      'after',
      examples('legate intent allow web db', 'legate intent default deny', 'legate intent check web db'),
    );

  for (const action of ['allow', 'deny'] as const) {
    const command = intent
      .command(action)
      .description(
        `${action === 'allow' ? 'lets' : 'forbids'} a consumer ${action === 'allow' ? '' : 'to '}call a service`,
      )
      .argument('<consumer>', 'a service, host, anonymous, or * for all')
      .argument('<service>', 'a service, or * for all; who is named wins over *')
      .addHelpText('after', examples(`legate intent ${action} web db`, `legate intent ${action} '*' db`));
    register<GlobalOptions>(command, async (options, consumer = '', service = '') => {
      const path = intentPath(consumer, service);
      const policy = await change(session, options, path, { method: 'PUT', json: { action } });
      const verb = action === 'allow' ? 'may call' : 'may not call';
      report(session, options, policy, `${consumer} ${verb} ${service}`);
      return exitStatus.done;
    });
  }

  const remove = intent
    .command('remove')
    .description('takes an intent back; another one or the default decides then')
    .argument('<consumer>')
    .argument('<service>')
    .addHelpText('after', examples('legate intent remove web db', "legate intent remove '*' db"));
  register<GlobalOptions>(remove, async (options, consumer = '', service = '') => {
    const policy = await change(session, options, intentPath(consumer, service), { method: 'DELETE' });
    report(session, options, policy, `the intent for ${consumer} and ${service} is gone`);
    return exitStatus.done;
  });

  const list = intent
    .command('list')
    .description('shows the policy: defaults, intents in the order in which they win, grants, revoked hosts')
    .option('--learned', 'instead what the mode learn has carried that would be refused, as ready commands')
    .addHelpText('after', examples('legate intent list', 'legate intent list --learned', 'legate intent list --json'));
  register<ListOptions>(list, async (options) => {
    const { terminal } = session;
    const path = options.learned ? '/api/learned' : '/api/policy';
    const document = await withClient(session, options, (client) =>
      client.json<PolicyDocument | LearnedDocument>(path),
    );
    if (options.json) printJson(terminal, document);
    else
      terminal.lines(
        renderDocument(
          document,
          (each, view) => ('pairs' in each ? learnedLines(each, view) : policyLines(each, view)),
          terminal.view(),
        ),
      );
    return exitStatus.done;
  });

  const check = intent
    .command('check')
    .description('says whether a consumer may call a service, and why; exit status 0 when it may, else 1')
    .argument('<consumer>')
    .argument('<service>')
    .addHelpText('after', examples('legate intent check web db', 'legate intent check anonymous db --json'));
  register<GlobalOptions>(check, async (options, consumer = '', service = '') => {
    const { terminal } = session;
    const path = intentPath(consumer, service);
    const document = await withClient(session, options, (client) => client.json<IntentCheckDocument>(path));
    if (options.json) printJson(terminal, document);
    else terminal.lines(renderDocument(document, checkLines, terminal.view()));
    if (!options.json) tellNotes(session, document);
    return document.allowed ? exitStatus.done : exitStatus.failed;
  });

  addSetting({ program, session, register }, intent, {
    name: 'default',
    about: 'what holds where no intent names the two: allow or deny',
    words: { allow: { default: 'allow' }, deny: { default: 'deny' } },
    text: (word) => `where no intent says, calls are ${word === 'allow' ? 'allowed' : 'denied'}`,
  });
  addSetting({ program, session, register }, intent, {
    name: 'mode',
    about: 'enforce: what is denied is refused; learn: it is carried, and legate intent list --learned tells of it',
    words: { enforce: { mode: 'enforce' }, learn: { mode: 'learn' } },
    text: (word) => (word === 'learn' ? 'nothing is refused, what would be is learned' : 'what is denied is refused'),
  });
  addSetting({ program, session, register }, intent, {
    name: 'links',
    about: 'whether a link that a container declares (legate.links) is permission, where no intent names either',
    words: { on: { fromLinks: true }, off: { fromLinks: false } },
    text: (word) => (word === 'on' ? 'declared links are permission' : 'declared links are no permission'),
  });
}

interface Setting {
  readonly name: string;
  readonly about: string;
  readonly words: Readonly<Record<string, object>>;
  readonly text: (word: string) => string;
}

function addSetting({ session, register }: CommandTools, intent: CommandTools['program'], setting: Setting): void {
  const { name, about, words, text } = setting;
  const choices = Object.keys(words);
  const command = intent
    .command(name)
    .description(about)
    .argument('<value>', choices.join(' or '))
    .addHelpText('after', examples(...choices.map((word) => `legate intent ${name} ${word}`)));
  register<GlobalOptions>(command, async (options, word = '') => {
    const json = Object.hasOwn(words, word) ? words[word] : undefined;
    if (json === undefined) {
      throw new LegateError('E_USAGE', `"${printable(word)}" is neither ${choices.join(' nor ')}`);
    }
    const policy = await change(session, options, '/api/policy', { method: 'PUT', json });
    report(session, options, policy, text(word));
    return exitStatus.done;
  });
}

function intentPath(consumer: string, service: string): string {
  const fault = consumerFault(consumer);
  if (fault !== undefined) {
    throw new LegateError('E_USAGE', `the consumer's name "${printable(consumer)}" ${fault}`, {
      hint: "a consumer is a service, host, anonymous, or '*' for all",
    });
  }
  const serviceFault = anyServiceFault(service);
  if (serviceFault !== undefined) {
    throw new LegateError('E_USAGE', `the service's name "${printable(service)}" ${serviceFault}`, {
      hint: "legate services lists the names; '*' stands for all",
    });
  }
  return `/api/intents/${consumer}/${service}`;
}

function change(
  session: Session,
  options: GlobalOptions,
  path: string,
  call: { readonly method: 'PUT' | 'DELETE'; readonly json?: object },
): Promise<PolicyDocument> {
  return withClient(session, options, (client) => client.json<PolicyDocument>(path, call));
}

/** What was changed, and what keeps it from holding as one may expect. */
function report(session: Session, options: GlobalOptions, document: PolicyDocument, text: string): void {
  const { terminal } = session;
  if (options.json) {
    printJson(terminal, document);
    return;
  }
  const { mode, stored } = clean(document);
  const { style } = terminal;
  const lines = [` ${style.paint(style.good, 'green')} ${text}`];
  if (mode === 'learn' && /may not|denied/.test(text)) {
    lines.push(` ${style.note} the mode is learn, so nothing is refused yet: legate intent mode enforce`);
  }
  if (stored === false) lines.push(` ${style.note} the store does not have it yet: other hosts follow when it answers`);
  terminal.lines(lines);
  tellNotes(session, document);
}
