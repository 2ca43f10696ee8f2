import type { Snapshot } from '../../src/catalog/snapshot.ts';
import { type Instance, transportOf } from '../../src/model/instance.ts';
import { httpDefaults } from '../../src/model/service-settings.ts';
import type { TakenBack } from '../../src/model/taken-back.ts';
import type { SplitDocument, SplitSideDocument, TakenBackDocument } from '../admin/documents.ts';
import { serviceOf } from '../admin/views.ts';
import type { SplitGuard } from './split-guard.ts';
import { failingSide, guardRule, measureOf, type SideSeen } from './verdict.ts';

/** Rates are of the requests of so long. */
const rateWindowMs = 10_000;

interface Parts {
  readonly snapshot: Snapshot;
  readonly host: string;
  readonly guard: Pick<SplitGuard, 'traffic' | 'seen'>;
  readonly nowMs: number;
}

/** A service's split, and what this host's consumers get of each side. E_NOT_FOUND without such a service. */
export function splitDocument(name: string, { snapshot, host, guard, nowMs }: Parts): SplitDocument {
  const service = serviceOf(snapshot, name);
  const { split = {}, formerSplit, takenBack, protocol, sticky, splitGuard } = service;
  const tags = Object.keys(split);
  const factor = splitGuard ?? httpDefaults.splitGuard;
  const seen = guard.seen(service);
  const verdicts = verdictsOf(seen, factor, takenBack?.tag);
  const sum = Object.values(split).reduce((total, weight) => total + weight, 0);
  const rest =
    tags.length === 0 ? [] : service.instances.filter((each) => !each.tags.some((tag) => tags.includes(tag)));
  return {
    service: name,
    protocol,
    split: tags.length === 0 ? null : split,
    former: formerSplit ?? null,
    sticky: sticky ?? httpDefaults.sticky,
    guard: factor,
    host,
    sides: tags.map((tag): SplitSideDocument => {
      const weight = split[tag] ?? 0;
      const { requests, errors } = guard.traffic.total(name, tag);
      const lately = guard.traffic.since(name, tag, rateWindowMs, nowMs);
      const perSecond = (count: number): number => (lately.ms === 0 ? 0 : rounded((count * 1000) / lately.ms));
      const withTag = (instance: Instance): boolean => instance.tags.includes(tag);
      return {
        tag,
        weight,
        share: rounded(weight / sum, 1e6),
        instances: service.instances.filter(withTag).length,
        usable: service.usable.filter(withTag).length,
        requests,
        errors,
        rates: { requests: perSecond(lately.requests), errors: perSecond(lately.errors) },
        errorRate: lately.requests === 0 ? null : rounded(lately.errors / lately.requests, 1e6),
        latencyMs: lately.requests === 0 ? null : rounded((lately.seconds * 1000) / lately.requests),
        verdict: verdicts.get(tag) ?? 'off',
      };
    }),
    without: {
      instances: rest.length,
      tags: [...new Set(rest.flatMap((instance) => instance.tags))].sort().slice(0, maxTagsNamed),
    },
    takenBack: takenBack
      ? {
          ...takenBackOf(takenBack),
          host: snapshot.hosts.get(takenBack.hostId)?.name ?? takenBack.hostId,
        }
      : null,
    splits: transportOf(protocol) === 'tcp' && protocol !== 'tcp',
  };
}

const maxTagsNamed = 20;

function takenBackOf({ atMs, ...takenBack }: TakenBack): Omit<TakenBackDocument, 'host'> {
  return { ...takenBack, at: new Date(atMs).toISOString() };
}

function verdictsOf(
  seen: readonly SideSeen[],
  factor: number,
  takenBack: string | undefined,
): Map<string, SplitSideDocument['verdict']> {
  const measure = measureOf(seen);
  const failing = failingSide(seen, factor)?.side;
  return new Map(
    seen.map((side) => {
      if (side.tag === takenBack) return [side.tag, 'taken back'];
      if (side.weight === 0 || factor <= 0) return [side.tag, 'off'];
      if (side === measure) return [side.tag, 'measure'];
      if (side === failing) return [side.tag, 'failing'];
      const isKnown = measure !== undefined && (side.errors >= guardRule.leastErrors || side.requests >= enough);
      return [side.tag, isKnown ? 'good' : 'few requests'];
    }),
  );
}

/** From so many requests on a side without many errors is called good. */
const enough = 50;

function rounded(value: number, per = 10): number {
  return Math.round(value * per) / per;
}
