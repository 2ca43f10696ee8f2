import { formatEndpoint } from '../../src/model/address.ts';
import type { InstanceFacts, ProbeFacts, WhyFacts } from './facts.ts';
import { candidatesOf } from './left-out.ts';
import type { Detail, Step } from './step.ts';
import { tunnelStep } from './tunnel-step.ts';

/** What came of connecting to the instances just now. */
export function instanceStep(facts: WhyFacts): Step | undefined {
  const { instances, probes } = facts;
  if (instances.length === 0) return undefined;
  const candidates = candidatesOf(instances);
  const asked = candidates.flatMap((candidate) => probed(candidate, probes) ?? []);
  const cut = candidates.length > 0 && tunnelStep(facts)?.verdict === 'bad';
  if (cut) return { name: 'instance', verdict: 'unknown', text: 'not reached' };
  // What policy forbids is not tried, here and over there.
  if (facts.policy?.decision.allowed === false) return { name: 'instance', verdict: 'unknown', text: 'not tried' };
  if (asked.length === 0) return notAsked(facts, candidates.length > 0);
  const failed = asked.flatMap(({ facts: each, probe }) => (probe.ok ? [] : [{ facts: each, probe }]));
  const good = asked.find(({ probe }) => probe.ok);
  const details = failed.map((each): Detail => ({ text: `${whereOf(each.facts)}: ${each.probe.problem}` }));
  const [worst] = failed;
  if (worst === undefined) return { name: 'instance', verdict: 'ok', text: acceptedText(asked) };
  const fix = fixOf(worst.facts, worst.probe);
  if (good !== undefined) {
    return { name: 'instance', verdict: 'note', text: acceptedText([good]), details, fix };
  }
  const text = `${whereOf(worst.facts)}: ${worst.probe.problem}`;
  return { name: 'instance', verdict: 'bad', text, details: details.slice(1), fix };
}

/** Without candidates: whether one that is left out would answer. */
function notAsked({ instances, probes }: WhyFacts, wasThere: boolean): Step {
  for (const each of instances) {
    const found = probed(each, probes);
    if (found === undefined) continue;
    const { probe } = found;
    const text = probe.ok
      ? `${whereOf(each)} accepts connections: only its status keeps it out`
      : `${whereOf(each)}: ${probe.problem}`;
    return { name: 'instance', verdict: 'note', text };
  }
  return { name: 'instance', verdict: 'unknown', text: wasThere ? 'not tried' : 'not reached' };
}

function probed(
  facts: InstanceFacts,
  probes: ReadonlyMap<string, ProbeFacts>,
): { readonly facts: InstanceFacts; readonly probe: ProbeFacts } | undefined {
  const probe = probes.get(facts.instance.id);
  return probe === undefined ? undefined : { facts, probe };
}

function acceptedText(asked: readonly { readonly facts: InstanceFacts; readonly probe: ProbeFacts }[]): string {
  const parts = asked.map(
    ({ facts, probe }) => `${whereOf(facts)}${probe.ok ? ` in ${timeText(probe.elapsedMs)}` : ''}`,
  );
  return `${parts.join(', ')}: connected`;
}

function timeText(elapsedMs: number): string {
  return elapsedMs < 10 ? `${elapsedMs.toFixed(1)} ms` : `${Math.round(elapsedMs)} ms`;
}

function whereOf({ instance, path }: InstanceFacts): string {
  if (path.kind === 'dial') return `${instance.id} at ${formatEndpoint(path)}`;
  return path.kind === 'tunnel' ? `${instance.id} through the tunnel` : instance.id;
}

/** What helps where an instance takes no connection, though its status says that it does. */
function fixOf({ instance, own }: InstanceFacts, { code }: ProbeFacts & { ok: false }): string {
  const { source, port, host, id } = instance;
  const there = own ? '' : `on ${host}: `;
  const container = source.startsWith('docker:') ? source.slice('docker:'.length) : undefined;
  const one = container === undefined ? 'checks: [{kind: tcp}]' : 'legate.check=tcp';
  const check = `give it a check (${one}), so that it is left out while it does not answer`;
  if (code === 'ECONNREFUSED' || code === 'unreachable') {
    if (container === undefined) return `${there}start what listens at port ${port}; ${check}`;
    return `${there}let ${container} listen at 0.0.0.0:${port} instead of loopback, or correct legate.port; ${check}`;
  }
  if (code === 'denied')
    return `${host} has another policy than this host: legate status there says whether it reaches the store`;
  if (code === 'gone') return `${id} has just ended: ask again`;
  if (code === 'busy') return `${host} takes no new connections: legate status there says why`;
  return `${there}does a firewall or the application itself keep port ${port} from answering? ${check}`;
}
