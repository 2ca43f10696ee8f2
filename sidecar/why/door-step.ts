import { formerStays } from '../../proxy/door/certificates.ts';
import type { LinkDocument } from '../../proxy/link-document.ts';
import type { Condition } from '../../src/base/conditions.ts';
import type { WhyFacts } from './facts.ts';
import { listed, type Step } from './step.ts';

/**
 * What is wrong with the doors of the service on this host, which speak TLS: with their certificates, or with what they lead
 * to. In the way of whoever comes by the door itself; worth knowing for all others.
 */
export function doorStep(facts: WhyFacts): Step | undefined {
  const { consumer, links } = facts;
  const doors = links.filter(({ kind, tls, state }) => kind === 'listen' && tls !== null && state !== 'down');
  const places = consumer.kind === 'listener' ? consumer.listens.map(({ at }) => at) : undefined;
  const asked = places === undefined ? doors : doors.filter(({ address }) => places.some((at) => isAt(address, at)));
  const faults = asked.flatMap((door) => faultsOf(door, facts));
  const isInTheWay = ({ door, blocks }: Fault): boolean => blocks && isOnTheWay(door, facts);
  const worst = faults.find(isInTheWay) ?? faults[0];
  if (worst === undefined) return places === undefined ? undefined : soundStep(asked);
  const verdict = isInTheWay(worst) ? 'bad' : 'note';
  const details = faults.filter((fault) => fault !== worst).map(({ text, sinceMs }) => ({ text, sinceMs }));
  return { name: 'door', verdict, text: worst.text, sinceMs: worst.sinceMs, details, fix: worst.fix };
}

interface Fault {
  readonly door: LinkDocument;
  readonly text: string;
  readonly fix: string;
  readonly sinceMs?: number;
  /** Whether it keeps clients away. */
  readonly blocks: boolean;
}

function faultsOf(door: LinkDocument, { conditions }: WhyFacts): Fault[] {
  const told = conditions
    .filter(({ id }) => isOf(id, door))
    .map((condition): Fault => {
      const { message: text, hint: fix, sinceMs } = condition;
      return { door, text, fix, sinceMs, blocks: door.problem !== null || keepsOut(condition) };
    });
  if (told.length > 0 || door.problem === null) return told;
  const text = `nobody gets in to ${door.service} at ${door.address}: ${door.problem}`;
  return [{ door, text, fix: 'legate status says more', blocks: true }];
}

/** A certificate that is there no longer, but still shown, keeps nobody out. */
function keepsOut({ severity, message }: Condition): boolean {
  return severity === 'error' && !message.includes(formerStays);
}

/** Whether a condition is the door's: `link.tls.shop.0.0.0.0:443.certificate.0`, or `.protocol`. */
function isOf(id: string, { service, address }: LinkDocument): boolean {
  const start = `link.tls.${service}.`;
  if (!id.startsWith(start)) return false;
  const at = id.slice(start.length).replace(/\.(?:certificate\.\d+|protocol)$/, '');
  return isAt(address, at);
}

/** Whether a link is the one that is configured so; port 0 there means any. */
function isAt(address: string, configured: string): boolean {
  return address === configured || configured.endsWith(':0');
}

/** Whether the consumer comes by this door: as whom it stands for, or where there is no virtual address. */
function isOnTheWay(door: LinkDocument, { consumer, vip, links }: WhyFacts): boolean {
  if (consumer.kind === 'listener') return true;
  return !vip.on && links.find(({ kind }) => kind === 'listen') === door;
}

function soundStep(doors: readonly LinkDocument[]): Step | undefined {
  const told = doors.map(({ address, tls }) => {
    const names = tls === null || tls.names.length === 0 ? 'no name' : listed(tls.names);
    return `https://${address} shows certificates for ${names}, until ${tls?.notAfter ?? 'nobody knows when'}`;
  });
  return told.length === 0 ? undefined : { name: 'door', verdict: 'ok', text: told.join('; ') };
}
