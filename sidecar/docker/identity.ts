import type { Declarations } from './container.ts';

const identityKey = /^(?:legate\.(?:\d+\.)?service|legate\.consumer|SERVICE_(?:\d+_)?NAME)$/i;

/** What remains of a container's declarations, and what an image's author said instead of the operator. */
export interface OwnDeclarations extends Declarations {
  /** `KEY=value` of each identity that was dropped, for a message. */
  readonly dropped: readonly { readonly key: string; readonly value: string }[];
  /** Whether the operator gave any `SERVICE_*` key beyond what the image has. */
  readonly operatorSpeaks: boolean;
}

/** Whether anything is declared at all: only then the image must be looked at. */
export function declaresAnything({ labels, environment }: Declarations): boolean {
  return labels.size > 0 || environment.size > 0;
}

/**
 * Takes out identity that comes from the image instead of `docker run`: what is the same in the image's own
 * configuration. Docker merges both, so a value that the operator repeats word for word counts as the image's. Without
 * knowledge of the image (`undefined`) everything counts as the operator's.
 */
export function ownDeclarations(declarations: Declarations, image: Declarations | undefined): OwnDeclarations {
  if (image === undefined) return { ...declarations, dropped: [], operatorSpeaks: true };
  const dropped: { key: string; value: string }[] = [];
  let operatorSpeaks = false;
  const filter = (own: ReadonlyMap<string, string>, baked: ReadonlyMap<string, string>): Map<string, string> => {
    const kept = new Map<string, string>();
    for (const [key, value] of own) {
      const fromImage = baked.get(key) === value;
      if (!fromImage && key.startsWith('SERVICE_')) operatorSpeaks = true;
      if (fromImage && identityKey.test(key)) dropped.push({ key, value });
      else kept.set(key, value);
    }
    return kept;
  };
  const labels = filter(declarations.labels, image.labels);
  const environment = filter(declarations.environment, image.environment);
  return { labels, environment, oversized: declarations.oversized, dropped, operatorSpeaks };
}
