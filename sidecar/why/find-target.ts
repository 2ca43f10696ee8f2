import { isIP } from 'node:net';
import { nearest } from '../../src/base/text.ts';
import type { Snapshot } from '../../src/catalog/snapshot.ts';
import { parseEndpoint } from '../../src/model/address.ts';
import type { Refusal } from '../../src/model/instance.ts';
import type { DeclaredLink } from '../../src/model/link.ts';
import type { TargetFacts } from './facts.ts';

export interface TargetSources {
  readonly snapshot: Snapshot;
  readonly domain: string;
  /** Of the consumer. */
  readonly links: readonly DeclaredLink[];
  readonly refusals: readonly Refusal[];
}

type Meaning = Pick<TargetFacts, 'form' | 'service' | 'link'>;

const foreign: Meaning = { form: 'foreign', service: undefined, link: undefined };

/** What a name, or a virtual address with or without its port, means to a consumer. */
export function findTarget(name: string, sources: TargetSources): TargetFacts {
  const asked = name.trim().toLowerCase().replace(/\.$/, '');
  const meaning = meaningOf(asked, sources);
  const { snapshot, refusals } = sources;
  const { service } = meaning;
  const view = service === undefined ? undefined : snapshot.services.get(service);
  return {
    asked,
    ...meaning,
    view,
    near: service === undefined || view !== undefined ? undefined : nearest(service, snapshot.services.keys()),
    refusals: refusals.filter((refusal) => service !== undefined && refusal.service === service),
  };
}

function meaningOf(asked: string, { snapshot, domain, links }: TargetSources): Meaning {
  const address = isIP(asked) !== 0 ? asked : parseEndpoint(asked)?.address;
  if (address !== undefined) {
    return { form: 'address', service: snapshot.vips.get(address), link: undefined };
  }
  const inner = asked.endsWith(`.${domain}`) ? asked.slice(0, -domain.length - 1) : asked;
  if (inner === asked && asked.includes('.')) return foreign;
  const labels = inner.split('.');
  const [first = '', second = ''] = labels;
  if (labels.length === 1) {
    const link = links.find(({ alias }) => alias === first);
    return { form: 'link', service: link?.service ?? first, link };
  }
  if (/^_(?:tcp|udp)$/.test(second) && first.startsWith('_')) {
    return { form: 'instances', service: first.slice(1), link: undefined };
  }
  if (labels.at(-1) !== 'service' || labels.length > 3) return foreign;
  return { form: 'instances', service: labels.at(-2), link: undefined };
}
