import type { CheckSpec } from '../../src/model/check.ts';
import type { DesiredInstance } from '../../src/model/instance.ts';
import type { Container, Transport } from './container.ts';
import { type CheckWish, labelFault, ownCheck } from './label-values.ts';

/**
 * What is to be asked of an instance, and what Docker already says of it. A check that cannot be is a fault; a container's
 * own HEALTHCHECK counts when no check is named.
 */
export function health(
  wish: CheckWish,
  container: Container,
  transport: Transport,
): Pick<DesiredInstance, 'checks' | 'reported' | 'suspended'> {
  const checks = checksOf(wish, container, transport);
  const asksDocker = checks.some(({ kind }) => kind === 'docker');
  return {
    checks,
    ...(asksDocker && container.health !== undefined && { reported: container.health }),
    // A paused container answers nobody, whatever would be asked of it.
    ...(container.paused && { suspended: 'the container is paused' }),
  };
}

function checksOf(wish: CheckWish, container: Container, transport: Transport): readonly CheckSpec[] {
  if (wish.kind === 'none') return [];
  if (wish.kind === 'own') return container.health === undefined ? [] : [ownCheck];
  if (wish.spec.kind === 'docker' && container.health === undefined) {
    throw labelFault(
      `${wish.key}: the container has no HEALTHCHECK`,
      'Add one (docker run --health-cmd), or use http:/path or tcp.',
    );
  }
  if (wish.spec.kind !== 'docker' && transport === 'udp' && wish.spec.port === undefined) {
    throw labelFault(
      `${wish.key}: a ${wish.spec.kind} check cannot ask a UDP port`,
      `Name a TCP port: ${wish.spec.kind}:PORT.`,
    );
  }
  return [wish.spec];
}
