import type { TunnelDocument } from '../../proxy/tunnel/tunnel-document.ts';
import { span } from '../../src/base/duration.ts';
import { comeBackHint } from '../../src/model/policy.ts';
import { defaultTunnelPort } from '../../src/pki/desk.ts';
import type { WhyFacts } from './facts.ts';

/** What is wrong with it; also what was seen of the other host's certificate, when nobody asks for the tunnel now. */
export function tunnelProblem(tunnel: TunnelDocument | undefined, nowMs: number): string | undefined {
  if (tunnel === undefined || tunnel.problem !== null) return tunnel?.problem ?? undefined;
  const overMs = nowMs - Date.parse(tunnel.peerCertificateUntil ?? '');
  return tunnel.state !== 'ready' && overMs > 0 ? `its certificate ended ${span(overMs)} ago` : undefined;
}

/** How a host that the others refuse comes back with what it had. */
export function joinAgain(host: string, { policy, hosts }: WhyFacts): string {
  const authority = hosts.get(policy?.policy.authority ?? '');
  const { name, address } = authority ?? { name: "the authority's host", address: 'ADDRESS' };
  return `legate token on ${name}, then on ${host}, its sidecar stopped: legate join ${address} --again --token TOKEN`;
}

/** Whether this host was revoked, by what it knows itself or by what other hosts say to it. */
export function isSelfRevoked({ conditions, tunnels }: WhyFacts): boolean {
  if (conditions.some(({ hint }) => hint === comeBackHint)) return true;
  return [...tunnels.values()].some(({ problem }) => /refuses this host: host \S+ is revoked/.test(problem ?? ''));
}

/** How a revoked host comes back. */
export function letIn(host: string, facts: WhyFacts): string {
  return `to let ${host} in again: ${joinAgain(host, facts)}`;
}

/** What helps against the problem of a host's tunnel: by its words where they tell more than the tunnel's own hint. */
export function tunnelFix(hostId: string, facts: WhyFacts): string {
  const { credentials, nowMs, self, tunnels, hosts, conditions } = facts;
  const tunnel = tunnels.get(hostId);
  const problem = tunnelProblem(tunnel, nowMs) ?? '';
  const host = hosts.get(hostId)?.name ?? tunnel?.host ?? hostId;
  const at = tunnel?.address ?? hosts.get(hostId)?.address ?? host;
  const hint = conditions.find(({ id }) => id === `tunnel.host.${hostId}`)?.hint;
  const port = /:(\d+)$/.exec(at)?.[1] ?? String(defaultTunnelPort);
  if (credentials === undefined)
    return `let ${self.hostName} join the mesh: legate token on the authority's host, then legate join`;
  if (/our certificate has ended|our certificate is bad/.test(problem)) {
    if (credentials.notAfterMs > nowMs) return `on ${host}: set its clock, which is ahead (chronyc makestep)`;
    return `set the clock of ${self.hostName} if it is wrong (chronyc makestep); else ${joinAgain(self.hostName, facts)}`;
  }
  if (/its certificate (?:has not begun|begins)/.test(problem)) {
    return `compare the clocks of ${self.hostName} and ${host}, and set the one that is wrong (chronyc makestep)`;
  }
  // A certificate that has ended is of no use for a new one, wherever its host's clock stands.
  if (/its certificate (?:has )?ended/.test(problem)) {
    return `unless the clock of ${self.hostName} is ahead: ${joinAgain(host, facts)}`;
  }
  if (/revoked/.test(problem)) {
    return letIn(problem.includes('refuses this host') ? self.hostName : host, facts);
  }
  if (/authority|signed by itself|of mesh/.test(problem)) {
    return `${self.hostName} and ${host} trust different authorities: ${joinAgain('the one that is wrong', facts)}`;
  }
  if (/connection refused/.test(problem)) {
    return `on ${host}: is its sidecar running (systemctl status legate), and does a firewall there let ${port}/tcp in?`;
  }
  if (/no answer|no route|nothing|does not answer/.test(problem)) {
    return `is ${host} up, and does a firewall there or on the way let ${port}/tcp in? nc -vz ${at.replace(/:(\d+)$/, ' $1')}`;
  }
  return hint ?? `legate status here and on ${host} says more`;
}
