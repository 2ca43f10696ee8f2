import { span } from '../../src/base/duration.ts';
import type { WhyFacts } from './facts.ts';
import type { Step } from './step.ts';
import { isSelfRevoked, letIn } from './tunnel-fix.ts';

/** How old the picture is that all else is told from. Nothing to say while the store confirms it. */
export function storeStep(facts: WhyFacts): Step | undefined {
  const { store, self } = facts;
  const { origin, ageMs, sinceMs, problem } = store;
  const why = problem === undefined ? '' : `: ${problem}`;
  const fix = isSelfRevoked(facts)
    ? letIn(self.hostName, facts)
    : store.hint || 'legate status says what is wrong with the store';
  if (origin === 'none') {
    return {
      name: 'store',
      verdict: 'bad',
      text: `nothing is known yet, the store was not reached${why}`,
      sinceMs,
      fix,
    };
  }
  if (store.store === 'connected' && origin === 'store') return undefined;
  const age = ageMs === null ? 'never confirmed' : `${span(ageMs)} old`;
  const text = `the store is ${store.store === 'connected' ? 'being read' : store.store}${why}; what is known is ${age}`;
  const details = [{ text: 'names and links go on from it, and nobody hears of changes' }];
  return { name: 'store', verdict: 'note', text, sinceMs, details, fix };
}
