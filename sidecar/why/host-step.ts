import type { Host } from '../../src/model/host.ts';
import type { WhyFacts } from './facts.ts';
import { candidatesOf } from './left-out.ts';
import { listed, type Step } from './step.ts';

/** The sidecars at the other end. Those of lost hosts are told with their instances. */
export function hostStep({ instances, hosts }: WhyFacts): Step | undefined {
  const ids = new Set(candidatesOf(instances).flatMap(({ own, instance }) => (own ? [] : [instance.hostId])));
  const known = [...ids].flatMap((id) => hosts.get(id) ?? []);
  const [first] = known;
  if (first === undefined) return undefined;
  const told = known.map((host) => `${host.name} (legate ${host.version}${zoneText(host)})`);
  return { name: 'host', verdict: 'ok', text: `${listed(told)}: alive` };
}

function zoneText({ zone }: Host): string {
  return zone === undefined ? '' : `, zone ${zone}`;
}
