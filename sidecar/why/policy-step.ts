import { span } from '../../src/base/duration.ts';
import { decisionText, type Intent } from '../../src/model/policy.ts';
import type { WhyFacts } from './facts.ts';
import { conditionOf, type Step, stepOf } from './step.ts';

/** Whether the consumer may call the service, and by what. */
export function policyStep(facts: WhyFacts): Step | undefined {
  const { policy: found, target, self } = facts;
  const service = target.view?.name;
  if (service === undefined) return undefined;
  const refused = conditionOf(facts, /^policy\.(?:locked|refused|missing|disk)$/);
  const told = refused === undefined ? [] : [{ text: refused.message, sinceMs: refused.sinceMs }];
  if (found === undefined) {
    if (refused === undefined) return undefined;
    const { message, hint, sinceMs } = refused;
    return { name: 'policy', verdict: 'note', text: message, sinceMs, fix: hint };
  }
  const { policy, consumer, decision, maySpeak } = found;
  const { by, intent, allowed } = decision;
  const may = `${consumer} may ${allowed ? '' : 'not '}call ${service}`;
  if (by === 'locked') {
    if (refused !== undefined) return stepOf('policy', refused);
    return {
      name: 'policy',
      verdict: 'bad',
      text: decisionText(decision, { consumer, service }),
      fix: 'legate status',
    };
  }
  if (!maySpeak) {
    const text = `this host may not speak for ${consumer}: grants name others`;
    const fix = `on the authority's host: legate host allow ${self.hostName} ${consumer}`;
    return { name: 'policy', verdict: 'bad', text, details: told, fix };
  }
  const rule = intent === undefined ? `${policy.default} is the default` : intentText(intent, facts.nowMs);
  if (!allowed) {
    const text = `${may} (${rule})`;
    const fix = `on the authority's host: legate intent allow ${consumer} ${service}`;
    return { name: 'policy', verdict: 'bad', text, sinceMs: intent?.setAtMs, details: told, fix };
  }
  if (by === 'learning') {
    const text = `${consumer} would be refused ${service} (${rule}), and is not while the mesh learns`;
    const fix = `legate intent allow ${consumer} ${service}, or legate intent list --learned for all that is needed`;
    return { name: 'policy', verdict: 'note', text, details: told, fix };
  }
  const why = by === 'link' ? 'its declared link is permission' : rule;
  const verdict = told.length > 0 ? 'note' : 'ok';
  return { name: 'policy', verdict, text: `${may} (${why})`, details: told, fix: refused?.hint };
}

function intentText({ action, consumer, service, setAtMs }: Intent, nowMs: number): string {
  return `intent ${action} ${consumer} ${service}, set ${span(nowMs - setAtMs)} ago`;
}
