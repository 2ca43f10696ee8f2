import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import type { WhyFacts } from './facts.ts';
import { candidatesOf } from './left-out.ts';
import { conditionOf, listed, type Step, stepOf } from './step.ts';

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
  const at = first.tunnel?.address ?? first.host?.address ?? name;
  const hint = facts.conditions.find(({ id }) => id === `tunnel.host.${first.hostId}`)?.hint;
  const fix = tunnelFix({ problem: first.tunnel?.problem ?? '', host: name, at, hint }, facts);
  const sinceMs = first.tunnel === undefined ? undefined : Date.parse(first.tunnel.since);
  const rest = details.filter((_, index) => states[index] !== first);
  const isInTheWay = broken.length === states.length && !here;
  if (isInTheWay && own?.severity === 'error') return { ...stepOf('tunnel', own), details };
  const text = `${name}: ${stateText(first.tunnel)}`;
  return { name: 'tunnel', verdict: isInTheWay ? 'bad' : 'note', text, sinceMs, details: rest, fix };
}

interface Trouble {
  readonly problem: string;
  readonly host: string;
  /** Where it is dialled. */
  readonly at: string;
  /** What the tunnel itself advises. */
  readonly hint: string | undefined;
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

/** What helps against a tunnel's problem: by its words where they tell more than the tunnel's own hint. */
function tunnelFix({ problem, host, at, hint }: Trouble, { credentials, nowMs, self }: WhyFacts): string {
  const port = /:(\d+)$/.exec(at)?.[1] ?? '7711';
  if (credentials === undefined)
    return `let ${self.hostName} join the mesh: legate token on the authority's host, then legate join`;
  if (/our certificate has ended|our certificate is bad/.test(problem)) {
    if (credentials.notAfterMs > nowMs) return `on ${host}: set its clock, which is ahead (chronyc makestep)`;
    return `here, on ${self.hostName}: legate ca status, and set the clock if it is wrong (chronyc makestep)`;
  }
  if (/its certificate (?:has )?(?:ended|not begun|begins)/.test(problem)) {
    return `on ${host}: set its clock if it is wrong (chronyc makestep); then it renews by itself, legate status there says why not`;
  }
  if (/revoked|our certificate is revoked/.test(problem)) {
    return 'a revoked host joins anew, with an empty data_dir: legate token, then legate join';
  }
  if (/authority|signed by itself|of mesh/.test(problem)) {
    return `${self.hostName} and ${host} trust different authorities: legate join anew on the one that is wrong`;
  }
  if (/connection refused/.test(problem)) {
    return `on ${host}: is its sidecar running (systemctl status legate), and does a firewall there let ${port}/tcp in?`;
  }
  if (/no answer|no route|nothing/.test(problem)) {
    return `is ${host} up, and does a firewall there or on the way let ${port}/tcp in? nc -vz ${at.replace(/:(\d+)$/, ' $1')}`;
  }
  return hint ?? `legate status here and on ${host} says more`;
}
