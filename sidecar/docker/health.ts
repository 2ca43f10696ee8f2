import type { Endpoint } from '../../src/model/address.ts';
import type { CheckSpec } from '../../src/model/check.ts';
import type { DesiredInstance } from '../../src/model/instance.ts';
import type { CheckWish } from './check-values.ts';
import type { Container, Transport } from './container.ts';
import { labelFault } from './label-values.ts';

/** What is known of the instance that is to be asked. */
export interface Subject {
  readonly container: Container;
  readonly transport: Transport;
  /** Where it listens, as its container sees it. */
  readonly inside: Endpoint;
  /** Told what is accepted and does nothing. */
  readonly note: (reason: string, hint: string) => void;
}

/**
 * What is to be asked of an instance, and what Docker already says of it. A check that cannot be is a fault; a container's
 * own HEALTHCHECK counts when no check is named.
 */
export function health(wish: CheckWish, subject: Subject): Pick<DesiredInstance, 'checks' | 'reported' | 'suspended'> {
  const { container } = subject;
  const checks = checksOf(wish, subject);
  const asksDocker = checks.some(({ kind }) => kind === 'docker');
  return {
    checks,
    ...(asksDocker && container.health !== undefined && { reported: container.health }),
    // A paused container answers nobody, whatever would be asked of it.
    ...(container.paused && { suspended: 'the container is paused' }),
  };
}

function checksOf(wish: CheckWish, { container, transport, inside, note }: Subject): readonly CheckSpec[] {
  if (wish.kind === 'own' && container.health === undefined) {
    if (wish.modifier !== undefined) {
      note(`${wish.modifier} does nothing without a check`, 'Name one: legate.check=http:/path, or another kind.');
    }
    return [];
  }
  for (const { key, hint } of wish.idle) note(`${key} does nothing with ${subjectOf(wish)}`, hint);
  if (wish.kind === 'none') return [];
  if (wish.kind === 'own') return [wish.spec];
  const { spec, key } = wish;
  if (spec.kind === 'docker' && container.health === undefined) {
    throw labelFault(
      `${key}: the container has no HEALTHCHECK`,
      'Add one (docker run --health-cmd), or use http:/path or tcp.',
    );
  }
  if (asksPort(spec) && transport === 'udp' && spec.port === undefined) {
    throw labelFault(`${key}: a ${spec.kind} check cannot ask a UDP port`, portHint(key, spec));
  }
  if (wish.substitute !== true || spec.command === undefined) return [spec];
  return [{ ...spec, command: substituted(spec.command, inside) }];
}

function subjectOf(wish: CheckWish): string {
  if (wish.kind === 'none') return 'the check none';
  if (wish.kind === 'own') return 'the check of the container itself (HEALTHCHECK)';
  const { kind, tls } = wish.spec;
  return `a check of kind ${kind}${tls === undefined ? '' : ' over TLS'}`;
}

function asksPort({ kind }: CheckSpec): boolean {
  return kind === 'tcp' || kind === 'http' || kind === 'grpc';
}

function portHint(key: string, { kind }: CheckSpec): string {
  if (key.startsWith('SERVICE_')) return 'Say it for the TCP port only: SERVICE_<port>_CHECK_…';
  return `Name a TCP port: ${kind}:PORT.`;
}

/** As registrator does it: plain text, wherever it stands. */
function substituted(command: string, { address, port }: Endpoint): string {
  return command.replaceAll('$SERVICE_IP', address).replaceAll('$SERVICE_PORT', String(port));
}
