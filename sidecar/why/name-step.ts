import { span } from '../../src/base/duration.ts';
import type { WhyFacts } from './facts.ts';
import { keptOut } from './left-out.ts';
import { listed, type Step } from './step.ts';

/** What this very consumer is answered under the name. */
export function nameStep(facts: WhyFacts): Step {
  const { target, answer, store, domain } = facts;
  const { asked, form, service, link, view } = target;
  if (form === 'foreign') {
    const text = `${asked} is no name of the mesh: those are NAME or NAME.${domain}`;
    return { name: 'name', verdict: 'bad', text, fix: 'legate services lists the names' };
  }
  if (form === 'address' && service === undefined) {
    const text = `no service has the address ${asked}`;
    return {
      name: 'name',
      verdict: 'bad',
      text,
      fix: 'legate services lists the services and their virtual addresses',
    };
  }
  const meant = link === undefined ? asked : `${asked} → ${link.service} (legate.links of the container)`;
  if (view === undefined) return noSuchService(facts, service ?? asked);
  const from = store.ageMs === null ? 'from the snapshot on disk' : `from the snapshot of ${span(store.ageMs)} ago`;
  if (form === 'address')
    return { name: 'name', verdict: 'ok', text: `${asked} is the address of ${view.name}, ${from}` };
  if (answer === undefined) return { name: 'name', verdict: 'unknown', text: `${meant}: nobody was asked` };
  if (answer.addresses.length > 0) {
    return { name: 'name', verdict: 'ok', text: `${meant} → ${listed(answer.addresses)}, ${from}` };
  }
  const note = answer.note === null ? '' : `: ${answer.note}`;
  const details = answer.leftOut.map(({ id, reason }) => ({ text: `${id}: ${reason}` }));
  const text = `${meant} has no address for it now (${answer.status === 'NOERROR' ? 'NODATA' : answer.status})${note}`;
  return { name: 'name', verdict: 'bad', text, details, fix: withoutAddress(facts) };
}

/** Why a name of a service that exists may have no address, and what to do then. */
function withoutAddress({ target, vip, instances }: WhyFacts): string | undefined {
  const name = target.view?.name ?? target.asked;
  // What is wrong with the instances is told at their step.
  if (instances.length === 0 || !instances.some(({ usable }) => usable)) return undefined;
  if (vip.on) return `legate status says why ${name} has no virtual address`;
  return `give it an address on this host: links: [{service: ${name}, listen: "127.0.0.1:PORT"}]`;
}

function noSuchService(facts: WhyFacts, service: string): Step {
  const { target, domain } = facts;
  const { near, refusals, link, asked } = target;
  const [refused] = refusals;
  const [kept] = keptOut(facts);
  const details = refusals.map(({ source, reason }) => ({
    text: `${source} asked to be it and was refused: ${reason}`,
  }));
  const alias = link === undefined ? '' : ` (${asked} in legate.links means it)`;
  if (kept !== undefined) {
    const text = `there is no service ${service}${alias} for this host`;
    return { name: 'name', verdict: 'bad', text, details: keptOut(facts), fix: kept.fix };
  }
  if (refused !== undefined) {
    return { name: 'name', verdict: 'bad', text: `there is no service ${service}${alias}`, details, fix: refused.hint };
  }
  const register = `register it: docker run --label legate.service=${service} --label legate.port=PORT …`;
  const guess = near === undefined ? '' : `; did you mean ${near}?`;
  const text = `there is no service ${service}${alias}: ${service}.${domain} is unknown${guess}`;
  const fix = near === undefined ? register : `ask for ${near}, or ${register}`;
  return { name: 'name', verdict: 'bad', text, fix };
}
