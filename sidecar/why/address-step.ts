import type { LinkDocument } from '../../proxy/link-document.ts';
import { span } from '../../src/base/duration.ts';
import { formatEndpoint } from '../../src/model/address.ts';
import { transportOf } from '../../src/model/instance.ts';
import type { ConsumerFacts, WhyFacts } from './facts.ts';
import { conditionOf, listed, type Step, stepOf } from './step.ts';

/** Whether what is dialled leads to this sidecar: the listener, the kernel's map, the way there. */
export function addressStep(facts: WhyFacts): Step | undefined {
  const { target, consumer, vip } = facts;
  const { view, form, link } = target;
  if (view === undefined) return undefined;
  if (form === 'instances') {
    const text = 'such names give the instances’ own addresses: connections go past this sidecar';
    return { name: 'address', verdict: 'note', text };
  }
  if (transportOf(view.protocol) === 'udp') {
    return { name: 'address', verdict: 'note', text: 'UDP is not linked: the name gives the instances’ own addresses' };
  }
  if (consumer.kind === 'listener') return ofListener(facts, consumer, view.name);
  if (!vip.on) return withoutVips(facts);
  if (view.vip === undefined) {
    const full = conditionOf(facts, /^services\.(?:vip\.range|write)$/);
    if (full !== undefined) return stepOf('address', full);
    const text = `${view.name} has no virtual address yet: the store gives it one`;
    return { name: 'address', verdict: 'bad', text, fix: 'legate status says what keeps the store from it' };
  }
  const port = link?.port ?? view.port;
  const dialled = formatEndpoint({ address: view.vip, port });
  return unreachable(facts, dialled) ?? atLink(facts, dialled, port);
}

/** What stands between the consumer and the address. */
function unreachable(facts: WhyFacts, dialled: string): Step | undefined {
  const { consumer } = facts;
  const broken = conditionOf(facts, /^link\.map$/);
  if (broken !== undefined) return stepOf('address', broken);
  if (consumer.kind !== 'container' || consumer.inHostNetwork) return undefined;
  const cut = noWayOut(consumer);
  if (cut !== undefined) {
    const text = `${consumer.container} has no route to ${dialled}: ${cut}`;
    const fix = `docker network connect bridge ${consumer.container}`;
    return { name: 'address', verdict: 'bad', text, fix };
  }
  const firewall = conditionOf(facts, /^vip\.(?:clients|.*\.firewall)$/);
  return firewall === undefined ? undefined : stepOf('address', firewall);
}

function noWayOut({ networks }: ConsumerFacts & { kind: 'container' }): string | undefined {
  const attached = networks.filter(({ address }) => address !== undefined);
  if (attached.length === 0 || attached.some(({ hasGateway }) => hasGateway)) return undefined;
  const names = listed(attached.map(({ name }) => name));
  return `${names} ${attached.length === 1 ? 'is' : 'are'} without a way out`;
}

function atLink(facts: WhyFacts, dialled: string, port: number): Step {
  const { links, target } = facts;
  const found = links.find((each) => each.kind !== 'listen' && each.address === dialled);
  if (found !== undefined) return atListener(facts, found);
  const limit = conditionOf(facts, /^link\.aliases$/);
  if (limit !== undefined && port !== target.view?.port) return stepOf('address', limit);
  const text = `${dialled} is not open on this host`;
  return { name: 'address', verdict: 'bad', text, fix: 'legate links shows what is open, legate status what is wrong' };
}

function atListener(facts: WhyFacts, link: LinkDocument | undefined): Step {
  if (link === undefined) {
    const text = 'its listener is not open';
    return {
      name: 'address',
      verdict: 'bad',
      text,
      fix: 'legate links shows what is open, legate status what is wrong',
    };
  }
  if (link.state === 'down') {
    const told = conditionOf(facts, new RegExp(`^link\\.listen\\.${link.service}\\.`));
    const text = `this sidecar cannot listen for ${link.address}: ${link.problem ?? 'it is not open'}`;
    return {
      name: 'address',
      verdict: 'bad',
      text,
      sinceMs: told?.sinceMs,
      fix: told?.hint ?? 'legate status says more',
    };
  }
  const parkMs = facts.target.view?.parkMs ?? 0;
  const nothing = 'while nothing usable is behind it';
  const refused = parkMs > 0 ? `connections wait up to ${span(parkMs)} ${nothing}` : `refused ${nothing}`;
  // What is wrong with a door is told of the door.
  const refusing = link.state === 'refusing' && link.problem === null ? `, ${refused}` : '';
  return { name: 'address', verdict: 'ok', text: `${link.address} → this sidecar${refusing}` };
}

/** The listeners of the configuration that stand for a consumer; port 0 there means any. */
function ofListener(facts: WhyFacts, consumer: ConsumerFacts & { kind: 'listener' }, service: string): Step {
  const places = consumer.listens.filter((each) => each.service === service).map(({ at }) => at);
  if (places.length === 0) {
    const text = `no listener of the configuration stands for ${consumer.name} and leads to ${service}`;
    const fix = `write links: [{service: ${service}, listen: "127.0.0.1:PORT", consumer: ${consumer.name}}]`;
    return { name: 'address', verdict: 'bad', text, fix };
  }
  const isIt = (address: string): boolean => places.some((at) => at === address || at.endsWith(':0'));
  return atListener(
    facts,
    facts.links.find(({ kind, address }) => kind === 'listen' && isIt(address)),
  );
}

/** Without virtual addresses names lead to a listener of the configuration, else to the instances themselves. */
function withoutVips(facts: WhyFacts): Step {
  const { links, vip, answer, target } = facts;
  const listener = links.find(({ kind }) => kind === 'listen');
  if (listener !== undefined) return atListener(facts, listener);
  const told = conditionOf(facts, /^vip\.(?:open|.*\.off)$/);
  const why = vip.reason === null ? '' : ` (${vip.reason})`;
  const name = target.view?.name ?? target.asked;
  const listen = `write links: [{service: ${name}, listen: "127.0.0.1:PORT"}] for a fixed local address`;
  const fix = told === undefined ? listen : `${told.hint}; or ${listen}`;
  if ((answer?.addresses.length ?? 0) > 0) {
    const text = `no virtual addresses here${why}: the name gives instances’ own addresses, past this sidecar`;
    return { name: 'address', verdict: 'note', text, sinceMs: told?.sinceMs, fix };
  }
  const text = `no virtual addresses here${why}, and no listener for ${name}`;
  return { name: 'address', verdict: 'bad', text, sinceMs: told?.sinceMs, fix };
}
