import type { WhyFacts } from './facts.ts';
import { listed, type Step } from './step.ts';

/** Containers of one network reach each other directly: whoever does is not seen here, and no policy holds. */
export function bypassStep({ bypasses, consumer, target, policy }: WhyFacts): Step | undefined {
  const [first] = bypasses;
  if (first === undefined || consumer.kind !== 'container') return undefined;
  const who = consumer.identity ?? consumer.container;
  const instances = listed(bypasses.map(({ instance }) => instance));
  const policyText = policy === undefined ? 'this sidecar sees nothing of it' : 'policy does not hold there';
  const text = `${who} and ${instances} share network ${first.network}: what they send each other directly passes by, ${policyText}`;
  const fix = `give ${target.view?.name ?? 'the service'} a network of its own, if only links shall reach it`;
  return { name: 'bypass', verdict: 'note', text, fix };
}
