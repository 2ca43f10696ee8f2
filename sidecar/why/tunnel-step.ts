import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import type { WhyFacts } from './facts.ts';
import { candidatesOf } from './left-out.ts';
import { conditionOf, listed, type Step, stepOf } from './step.ts';
import { tunnelFix } from './tunnel-fix.ts';

/** How this host reaches the hosts of the instances that may be chosen. */
export function tunnelStep(facts: WhyFacts): Step | undefined {
  const remote = candidatesOf(facts.instances).filter(({ own }) => !own);
  const tunnelled = hostsOf(remote.filter(({ path }) => path.kind === 'tunnel').map(({ instance }) => instance.hostId));
  const here = candidatesOf(facts.instances).length > remote.length;
  if (tunnelled.length === 0) {
    if (remote.length === 0) return undefined;
    const names = listed(hostsOf(remote.map(({ instance }) => instance.host)));
    return { name: 'tunnel', verdict: 'ok', text: `${names} in the clear: network.underlay is declared` };
  }
  const own = conditionOf(
    facts,
    /^(?:pki|identity|credentials|tunnel)\.(?:certificate|credentials|listen|expired|revoked)/,
  );
  const states = tunnelled.map((hostId) => ({
    hostId,
    tunnel: facts.tunnels.get(hostId),
    host: facts.hosts.get(hostId),
  }));
  const broken = states.filter(({ tunnel }) => isBroken(tunnel));
  const details = states.map(({ hostId, tunnel, host }) => ({
    text: `${host?.name ?? hostId}: ${stateText(tunnel)}`,
    sinceMs: tunnel === undefined ? undefined : Date.parse(tunnel.since),
  }));
  const [first] = broken;
  if (first === undefined) {
    const names = listed(states.map(({ hostId, tunnel, host }) => `${host?.name ?? hostId} ${trip(tunnel)}`.trim()));
    return { name: 'tunnel', verdict: 'ok', text: names };
  }
  const name = first.host?.name ?? first.hostId;
  const fix = tunnelFix(first.hostId, facts);
  const sinceMs = first.tunnel === undefined ? undefined : Date.parse(first.tunnel.since);
  const rest = details.filter((_, index) => states[index] !== first);
  const isInTheWay = broken.length === states.length && !here;
  if (isInTheWay && own?.severity === 'error') return { ...stepOf('tunnel', own), details };
  const text = `${name}: ${stateText(first.tunnel)}`;
  return { name: 'tunnel', verdict: isInTheWay ? 'bad' : 'note', text, sinceMs, details: rest, fix };
}

function hostsOf(ids: readonly string[]): string[] {
  return [...new Set(ids)];
}

function isBroken(tunnel: TunnelDocument | undefined): boolean {
  return (
    tunnel !== undefined && (tunnel.state === 'suspect' || (tunnel.state === 'connecting' && tunnel.problem !== null))
  );
}

function stateText(tunnel: TunnelDocument | undefined): string {
  if (tunnel === undefined) return 'nobody has asked for a tunnel yet';
  const at = tunnel.address === null || (tunnel.problem ?? '').includes(tunnel.address) ? '' : ` at ${tunnel.address}`;
  if (tunnel.problem !== null) return `${tunnel.problem}${at}`;
  return tunnel.state === 'ready' ? `ready${at}` : `${tunnel.state}${at}`;
}

function trip(tunnel: TunnelDocument | undefined): string {
  if (tunnel === undefined || tunnel.roundTripMs === null) return '';
  return `(round trip ${tunnel.roundTripMs < 10 ? tunnel.roundTripMs.toFixed(1) : Math.round(tunnel.roundTripMs)} ms)`;
}
