import { truncate } from '../../src/base/text.ts';
import { isUsableStatus } from '../../src/model/instance.ts';
import { allowCommand } from '../grant-advice.ts';
import type { InstanceFacts, WhyFacts } from './facts.ts';
import type { Detail } from './step.ts';
import { letIn, tunnelFix, tunnelProblem } from './tunnel-fix.ts';

/** What is said of the instances of a container that `docker pause` stopped. */
const pausedOutput = 'the container is paused';
/** Of a check's output, in characters. */
const maxOutput = 120;

/** Instances that connections may go to now, the nearest and soundest first. */
export function candidatesOf(instances: readonly InstanceFacts[]): readonly InstanceFacts[] {
  return instances.filter((facts) => facts.usable && facts.path.kind !== 'none').sort((a, b) => rank(a) - rank(b));
}

/** Sound ones before ejected before suspect ones, with weight before without, near before far. */
function rank({ suspect, ejectedUntilMs, instance, distance }: InstanceFacts): number {
  const trouble = suspect ? 2 : ejectedUntilMs === undefined ? 0 : 1;
  return trouble * 100 + (instance.weight === 0 ? 10 : 0) + distance;
}

/** Why an instance gets no connections, and what to do about it. */
export interface LeftOut extends Detail {
  readonly fix: string;
}

/** What is kept out of the picture itself: instances without a grant, and those of revoked hosts. */
export function keptOut(all: WhyFacts): LeftOut[] {
  const { ungranted, grantAdvice, revokedHosts, target } = all;
  const service = target.service ?? target.asked;
  const offered = ungranted.map(({ id, host }) => ({
    text: `${id}: host ${host} may not offer ${service}, no grant says so`,
    // Of several the first is told what to do about.
    fix: grantAdvice ?? `on the authority's host: ${allowCommand({ host, service })}`,
  }));
  const gone = revokedHosts.map((host) => ({
    text: `host ${host}, which had instances of it, is revoked`,
    fix: letIn(host, all),
  }));
  return [...offered, ...gone];
}

/** Undefined for candidates. */
export function leftOut(facts: InstanceFacts, all: WhyFacts): LeftOut | undefined {
  const { self, target, conditions } = all;
  const { instance, own, usable, path, sinceMs } = facts;
  const { id, host, draining, status, source, protocol } = instance;
  const service = target.view?.name ?? instance.service;
  const there = own ? '' : `on ${host}: `;
  const paused = source.startsWith('docker:') && instance.output === pausedOutput;
  if (paused) {
    return { text: `${id} is paused`, sinceMs, fix: `${there}docker unpause ${source.slice('docker:'.length)}` };
  }
  if (draining) return drains(facts, conditions, there);
  if (!usable && isUsableStatus(status)) {
    const fix = `${there}correct its protocol, or: legate service set ${service} protocol=${protocol}`;
    return { text: `${id} speaks ${protocol}, unlike the service`, fix };
  }
  if (!usable) return unhealthy(facts, all, there);
  if (path.kind !== 'none') return undefined;
  const join = `join ${self.hostName} and ${host} to one mesh (legate init, legate join)`;
  const fix = `${join}, or publish its port (-p) and declare network.underlay`;
  return { text: `${id} cannot be dialled from here: ${path.reason}`, fix: source === '' ? join : fix };
}

function drains({ instance, own, sinceMs }: InstanceFacts, conditions: WhyFacts['conditions'], there: string): LeftOut {
  const whole = own && conditions.some(({ id, hint }) => id === 'drain.operator' && hint.includes('--host'));
  const fix = `${there}legate undrain ${whole ? '--host' : instance.id}`;
  return { text: `${instance.id} drains`, sinceMs, fix };
}

/** What is known of a lost host is what its tunnel says. */
function lost({ instance, sinceMs }: InstanceFacts, all: WhyFacts): LeftOut {
  const { id, host, hostId } = instance;
  const tunnel = all.tunnels.get(hostId);
  const text = `${id}: host ${host} is lost`;
  if (tunnel?.state === 'ready') {
    const fix = `on ${host}: legate status says why it does not reach the store`;
    return { text: `${text}, and its tunnel works: it does not reach the store`, sinceMs, fix };
  }
  const problem = tunnelProblem(tunnel, all.nowMs);
  if (problem !== undefined) {
    return { text: `${text} (${problem})`, sinceMs, fix: tunnelFix(hostId, all) };
  }
  const fix = `is ${host} up, its sidecar running (systemctl status legate), and can it reach the store?`;
  return { text, sinceMs, fix };
}

function unhealthy(facts: InstanceFacts, all: WhyFacts, there: string): LeftOut {
  const { instance, sinceMs } = facts;
  const { id, status, output, source } = instance;
  const said = output === '' ? '' : `, "${truncate(output, maxOutput)}"`;
  const text = `${id} is ${status}${said}`;
  if (status === 'lost') return lost(facts, all);
  const container = source.startsWith('docker:') ? source.slice('docker:'.length) : undefined;
  if (status === 'starting') {
    const fix = `wait for its first check; ${there}legate instances shows what it says`;
    return { text: `${id} is starting: its check has not passed yet`, sinceMs, fix };
  }
  const look = container === undefined ? `look at ${id}` : `docker logs ${container}`;
  return { text, sinceMs, fix: `${there}${look}; it is back as soon as its check passes` };
}
