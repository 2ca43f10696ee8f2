import { ejectionText } from '../../proxy/link-document.ts';
import { span } from '../../src/base/duration.ts';
import type { Preference } from '../../src/model/service-settings.ts';
import type { InstanceFacts, WhyFacts } from './facts.ts';
import { candidatesOf, keptOut, leftOut } from './left-out.ts';
import { type Detail, listed, type Step } from './step.ts';

/** Which instance a connection would get, and why not the others. */
export function choiceStep(facts: WhyFacts): Step | undefined {
  const { target, instances, nowMs } = facts;
  const { view, refusals } = target;
  if (view === undefined) return undefined;
  const kept = keptOut(facts);
  if (instances.length === 0) {
    const refused = refusals.map(({ source, reason, hint }) => ({
      text: `${source} was refused: ${reason}`,
      fix: hint,
    }));
    const details = [...kept, ...refused];
    const register = `register one: docker run --label legate.service=${view.name} --label legate.port=${view.port} …`;
    const none = `${view.name} has no instances`;
    const { lastDeparture: left } = facts;
    if (left === undefined || kept.length > 0) {
      return { name: 'choice', verdict: 'bad', text: none, details, fix: details[0]?.fix ?? register };
    }
    const text = `${none}: ${left.id} left ${span(nowMs - left.atMs)} ago`;
    const fix = details[0]?.fix ?? `look why its container ended on ${left.host}: docker ps -a and docker logs there`;
    return { name: 'choice', verdict: 'bad', text, details, fix };
  }
  const candidates = candidatesOf(instances);
  const out = [...instances.flatMap((instance) => leftOut(instance, facts) ?? []), ...kept];
  if (candidates.length === 0) {
    const count = instances.length === 1 ? 'the only instance' : `none of ${instances.length} instances`;
    const text = `${count} of ${view.name} ${instances.length === 1 ? 'cannot' : 'can'} be used`;
    const [first] = out;
    return { name: 'choice', verdict: 'bad', text, sinceMs: first?.sinceMs, details: out, fix: first?.fix };
  }
  const avoided = candidates.flatMap((candidate) => avoidedNow(candidate, nowMs) ?? []);
  const sound = candidates.filter((candidate) => avoidedNow(candidate, nowMs) === undefined);
  const chosen = preferred(sound.length > 0 ? sound : candidates, view.prefer);
  const ids = chosen.map(({ instance }) => instance.id);
  const text =
    ids.length === 1 ? `${ids.join()}${onHost(chosen[0])}` : `${view.balance} among ${ids.length}: ${listed(ids)}`;
  const details = [...brakeDetail(facts), ...avoided, ...out];
  if (sound.length > 0) return { name: 'choice', verdict: 'ok', text, details };
  const fix = `${out[0]?.fix ?? 'look at the instances'}; they are tried again by themselves`;
  return { name: 'choice', verdict: 'note', text: `${text}: all that is left has failed lately`, details, fix };
}

function onHost(facts: InstanceFacts | undefined): string {
  return facts === undefined || facts.own ? '' : ` on host ${facts.instance.host}`;
}

/** Those with weight; the nearest of them, where the service does not say otherwise. */
function preferred(candidates: readonly InstanceFacts[], prefer: Preference | undefined): readonly InstanceFacts[] {
  const weighted = candidates.filter(({ instance }) => instance.weight > 0);
  const from = weighted.length > 0 ? weighted : candidates;
  if (prefer === 'any') return from;
  const nearest = Math.min(...from.map(({ distance }) => distance));
  return from.filter(({ distance }) => distance === nearest);
}

/** Usable, and tried last. */
function avoidedNow(
  { instance, suspect, ejectedUntilMs, ejectedFor }: InstanceFacts,
  nowMs: number,
): Detail | undefined {
  if (suspect) return { text: `${instance.id} is tried last: host ${instance.host} did not answer just now` };
  if (ejectedUntilMs === undefined || ejectedUntilMs <= nowMs) return undefined;
  return { text: `${instance.id} is avoided for ${span(ejectedUntilMs - nowMs)} more: ${ejectionText(ejectedFor)}` };
}

function brakeDetail({ target }: WhyFacts): Detail[] {
  const { brake } = target.view ?? {};
  if (brake === undefined) return [];
  return [{ text: 'most turned critical at once: they go on being used for now', sinceMs: brake.sinceMs }];
}
