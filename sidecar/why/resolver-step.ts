import type { NameServerDocument } from '../admin/documents.ts';
import type { AskedServer, WhyFacts } from './facts.ts';
import { listed, type Step } from './step.ts';

const namePort = ':53';

/** Whom the consumer asks for names, and whether that leads here. */
export function resolverStep(facts: WhyFacts): Step | undefined {
  const { resolver, consumer, answer, target } = facts;
  if (resolver === undefined || consumer.kind !== 'container' || target.form === 'address') return undefined;
  const { servers } = resolver;
  const advice = dnsAdvice(facts);
  if (servers === undefined) {
    const text = 'it asks Docker, which does not tell whom it asks in turn: daemon.json, or the host’s own name server';
    const fix = `if names fail: ${advice}`;
    return { name: 'resolver', verdict: 'unknown', text, fix };
  }
  if (servers.length === 0) return { name: 'resolver', verdict: 'bad', text: 'it asks no name server', fix: advice };
  const [first] = servers;
  const up = servers.find(({ address }) => ourAt(facts, address)?.state === 'up');
  const down = servers.map(({ address }) => ourAt(facts, address)).find((ours) => ours?.state === 'down');
  if (up !== undefined && up === first)
    return { name: 'resolver', verdict: 'ok', text: `it asks ${up.address}, this sidecar` };
  const right = servers.find((server) => isRight(server, answer?.addresses ?? []));
  const details = servers.map((server) => ({ text: toldBy(server, facts) }));
  if (right !== undefined) {
    return { name: 'resolver', verdict: 'ok', text: `it asks ${right.address}, which answers as this sidecar does` };
  }
  if (down !== undefined) return downStep(facts, down, advice);
  if (up !== undefined) {
    const text = `it asks ${first?.address ?? ''} before this sidecar (${up.address}): whoever answers first wins`;
    return { name: 'resolver', verdict: 'bad', text, details, fix: advice };
  }
  const text = `it asks ${listed(servers.map(({ address }) => address))}, not this sidecar`;
  return { name: 'resolver', verdict: 'bad', text, details, fix: advice };
}

function downStep(facts: WhyFacts, down: NameServerDocument, advice: string): Step {
  const told = facts.conditions.find(({ id }) => id === `dns.listen.${down.listen}`);
  const text = `it asks ${down.listen}, where this sidecar cannot listen: ${down.problem ?? 'it is not open'}`;
  const fix = told === undefined ? advice : `${told.hint}; or ${advice}`;
  return { name: 'resolver', verdict: 'bad', text, sinceMs: told?.sinceMs, fix };
}

/** The name server of ours that belongs at the address. */
function ourAt({ nameServers }: WhyFacts, address: string): NameServerDocument | undefined {
  return nameServers.find(({ listen }) => listen === address + namePort);
}

function isRight({ answer }: AskedServer, wanted: readonly string[]): boolean {
  return answer !== undefined && 'addresses' in answer && answer.addresses.some((address) => wanted.includes(address));
}

function toldBy({ address, answer }: AskedServer, facts: WhyFacts): string {
  if (ourAt(facts, address) !== undefined) return `${address} is this sidecar`;
  if (answer === undefined) return `${address} was not asked`;
  if ('problem' in answer) return `${address} answers: ${answer.problem}`;
  return `${address} answers ${listed(answer.addresses)}`;
}

/** How the consumer comes to ask us. */
function dnsAdvice({ nameServers, consumer }: WhyFacts): string {
  const up = nameServers.filter(({ listen, state }) => state === 'up' && listen.endsWith(namePort));
  const best = up.find(({ purpose }) => purpose === 'virtual address') ?? up[0];
  const container = consumer.kind === 'container' ? consumer.container : 'it';
  if (best === undefined) return 'legate status says why no name server listens at port 53';
  const address = best.listen.slice(0, -namePort.length);
  return `run ${container} with --dns ${address}, or write "dns": ["${address}"] into Docker's daemon.json for all`;
}
