import type { WhyFacts } from './facts.ts';
import { listed, type Step } from './step.ts';

/** Docker answers names of its own before it asks anybody: containers and aliases of a network, `--link`, `--add-host`. */
export function aliasStep({ shadows, target, domain }: WhyFacts): Step | undefined {
  const [first] = shadows;
  if (first === undefined) return undefined;
  const { asked } = target;
  const where = first.network === undefined ? '' : ` in network ${first.network}`;
  const at = first.address === undefined ? '' : `, ${first.address}`;
  const text = `Docker answers ${asked} itself${where}: ${first.what}${at}`;
  const details = shadows.slice(1).map(({ what, network }) => ({ text: `also ${what} in network ${network ?? ''}` }));
  const service = target.service ?? asked;
  const fix = `ask for ${service}.${domain}, or give ${listed([first.what])} another name`;
  if (shadows.every(({ isInstance }) => isInstance)) {
    const past = { text: `that is an instance of ${service}, past this sidecar: no failover, no policy` };
    return { name: 'alias', verdict: 'note', text, details: [past, ...details], fix };
  }
  return { name: 'alias', verdict: 'bad', text: `${text}, which is no instance of ${service}`, details, fix };
}
