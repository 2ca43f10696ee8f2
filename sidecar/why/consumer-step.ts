import type { ConsumerFacts, ContainerFacts, WhyFacts } from './facts.ts';
import { conditionOf, listed, type Step } from './step.ts';

/** Who connects, and whether that is known when it does. */
export function consumerStep(facts: WhyFacts): Step {
  const { consumer, self, target } = facts;
  switch (consumer.kind) {
    case 'host':
      return { name: 'consumer', verdict: 'ok', text: `this host, ${self.hostName}` };
    case 'process':
      return {
        name: 'consumer',
        verdict: 'ok',
        text: `${consumer.name} (a process of this host, which calls as host)`,
      };
    case 'listener':
      return {
        name: 'consumer',
        verdict: 'ok',
        text: `${consumer.name} (whoever connects to ${listed(consumer.listens.map(({ at }) => at))})`,
      };
    case 'container':
      return containerStep(consumer, facts);
    case 'elsewhere':
      return {
        name: 'consumer',
        verdict: 'bad',
        text: `${consumer.name} does not run on this host: it is on ${listed(consumer.hosts)}`,
        fix: `on ${consumer.hosts[0] ?? 'its host'}: legate why ${consumer.name} ${target.asked}`,
      };
    case 'unknown':
      return unknownStep(consumer, target.asked);
  }
}

function unknownStep(
  { name, near, dockerProblem, dockerOff }: ConsumerFacts & { kind: 'unknown' },
  asked: string,
): Step {
  const nobody = `nobody on this host is called ${name}`;
  const elsewhere = `it may be on another host: run legate why ${name} ${asked} there`;
  if (near !== undefined) {
    const text = `${nobody}; did you mean ${near}?`;
    return { name: 'consumer', verdict: 'bad', text, fix: `legate why ${near} ${asked}; or ${elsewhere}` };
  }
  if (dockerProblem !== undefined && !dockerOff) {
    const text = `${nobody}; containers are not known (${dockerProblem})`;
    return { name: 'consumer', verdict: 'bad', text, fix: `start Docker, or see legate status; or ${elsewhere}` };
  }
  const fix = dockerOff
    ? elsewhere
    : `${elsewhere}; here docker ps shows what runs, and --label legate.consumer=${name} gives a container that name`;
  return { name: 'consumer', verdict: 'bad', text: `${nobody}: no container, service or link`, fix };
}

function containerStep(consumer: ContainerFacts, facts: WhyFacts): Step {
  const { container, identity, networks, address, inHostNetwork, others } = consumer;
  const who = identity ?? 'anonymous';
  const details = others.length === 0 ? [] : [{ text: `so are the containers ${listed(others)}` }];
  if (inHostNetwork) {
    const text = `container ${container}, in the host's own network: it calls as host`;
    return { name: 'consumer', verdict: 'ok', text, details };
  }
  if (address === undefined) {
    const has = networks.length === 0 ? 'it has no network' : `it is on ${listed(networks.map(({ name }) => name))}`;
    const text = `container ${container} has no address on a bridge of this host: ${has}`;
    return { name: 'consumer', verdict: 'bad', text, fix: `docker network connect bridge ${container}` };
  }
  const at = networks.find((network) => network.address === address);
  const place = `container ${container}, ${address}${at?.interface === undefined ? '' : ` on ${at.interface}`}`;
  const unseen = conditionOf(facts, new RegExp(`^callers\\.${consumer.shortId}\\.unseen$`));
  if (unseen !== undefined) {
    const { message, sinceMs, hint } = unseen;
    return { name: 'consumer', verdict: 'bad', text: `${who} (${place}): ${message}`, sinceMs, fix: hint };
  }
  const { verdict, why, fix } = knowing(consumer, facts);
  return { name: 'consumer', verdict, text: `${who} (${place}${why})`, details, fix };
}

/** Whether it is known by its name when it calls. That only matters where there is a policy. */
function knowing(
  { identity, bound, callersOff, container }: ContainerFacts,
  { policy }: WhyFacts,
): Pick<Step, 'verdict' | 'fix'> & { readonly why: string } {
  const verdict = policy === undefined ? 'ok' : 'note';
  if (callersOff !== undefined) return { verdict, why: `; callers are not told apart: ${callersOff}` };
  if (!bound) return { verdict, why: '; its address is not bound yet' };
  if (identity !== undefined) return { verdict: 'ok', why: '' };
  const fix = `run ${container} with --label legate.consumer=NAME, so that intents can name it`;
  return { verdict, why: '; it is several services or none, and nothing says which', fix };
}
