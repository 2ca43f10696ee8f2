import type { WhyDocument } from '../admin/why-document.ts';
import { addressStep } from './address-step.ts';
import { aliasStep } from './alias-step.ts';
import { bypassStep } from './bypass-step.ts';
import { choiceStep } from './choice-step.ts';
import { consumerStep } from './consumer-step.ts';
import { doorStep } from './door-step.ts';
import type { WhyFacts } from './facts.ts';
import { hostStep } from './host-step.ts';
import { instanceStep } from './instance-step.ts';
import { nameStep } from './name-step.ts';
import { policyStep } from './policy-step.ts';
import { resolverStep } from './resolver-step.ts';
import { type Explain, type Step, stepDocument } from './step.ts';
import { storeStep } from './store-step.ts';
import { tunnelStep } from './tunnel-step.ts';

/** The way of a connection, in its order. */
const way: readonly Explain[] = [
  storeStep,
  nameStep,
  aliasStep,
  resolverStep,
  addressStep,
  doorStep,
  policyStep,
  choiceStep,
  tunnelStep,
  hostStep,
  instanceStep,
  bypassStep,
];

/** All that is told of it beside the steps. */
export type WhyAsked = Pick<WhyDocument, 'name' | 'consumer' | 'changes'>;

/** Walks the way of a connection. Pure. */
export function explain(facts: WhyFacts, { name, consumer, changes }: WhyAsked): WhyDocument {
  const steps = stepsOf(facts);
  const worst = steps.find(({ verdict }) => verdict === 'bad');
  // Without anything in the way the first that is not as it should be, as the reader asked for a reason.
  const lesser = steps.find(({ verdict, fix }) => verdict === 'note' && fix !== undefined);
  return {
    name,
    consumer,
    service: facts.target.view?.name ?? null,
    fine: worst === undefined,
    steps: steps.map(stepDocument),
    fix: (worst === undefined ? lesser : worst)?.fix ?? null,
    traffic: trafficOf(facts),
    changes: steps.length > 1 ? changes : [],
  };
}

function stepsOf(facts: WhyFacts): readonly Step[] {
  const first = consumerStep(facts);
  // What a consumer that is not here would meet can only be told where it is.
  if (facts.consumer.kind === 'elsewhere' || facts.consumer.kind === 'unknown') return [first];
  return [first, ...way.flatMap((step) => step(facts) ?? [])];
}

function trafficOf({ links }: WhyFacts): WhyDocument['traffic'] {
  if (links.length === 0) return null;
  let lastError: { readonly at: string; readonly message: string } | null = null;
  const sum = { active: 0, total: 0, failed: 0, denied: 0 };
  for (const { connections, denied, lastError: error } of links) {
    sum.active += connections.active;
    sum.total += connections.total;
    sum.failed += connections.failed;
    sum.denied += denied.total;
    if (error !== null && (lastError === null || error.at > lastError.at)) lastError = error;
  }
  return { ...sum, lastError };
}
