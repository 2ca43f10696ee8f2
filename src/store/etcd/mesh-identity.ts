import { createSecureContext, type PeerCertificate, type SecureContext } from 'node:tls';
import type { Clock } from '../../base/clock.ts';
import { LegateError, systemCode } from '../../base/errors.ts';
import type { Credentials } from '../../model/credentials.ts';
import { isRevoked } from '../../model/policy.ts';
import { hostIdOfNames } from '../../model/spiffe.ts';
import type { StoreTrust } from '../trust.ts';
import type { Connection } from './connection.ts';
import { EtcdFailure } from './failure.ts';

/** Requests under way when a connection is to be made anew are waited for so long. */
const finishMs = 5000;
const pollMs = 20;
/** A connection is made anew when this part of its certificate's life is left, or a tenth less. */
const remakeAt = 0.2;
const remakeSpread = 0.1;
/** Timers take no more; what is further away is looked at again then. */
const maxTimerMs = 24 * 3_600_000;

/** The host's own certificate, as one connection to another sidecar's store shows it, and whom it found there. */
export class MeshIdentity {
  readonly credentials: Credentials;
  readonly #trust: StoreTrust;
  /** Of the host whose store it is, once that has shown its certificate. */
  serverId: string | undefined;

  constructor(credentials: Credentials, trust: StoreTrust) {
    this.credentials = credentials;
    this.#trust = trust;
  }

  /** E_CONFIG when OpenSSL cannot use them. */
  context(): SecureContext {
    const { chain, key, roots } = this.credentials;
    try {
      return createSecureContext({ minVersion: 'TLSv1.3', cert: chain, key, ca: [...roots] });
    } catch (error) {
      throw new LegateError('E_CONFIG', `this host's certificate cannot be used: ${systemCode(error) ?? 'no PEM'}`, {
        hint: 'legate ca status on this host says more; legate join makes a new one',
      });
    }
  }

  /** Any host of the mesh may have the store: it is known by its SPIFFE name alone. */
  readonly check = (_name: string, { subjectaltname }: PeerCertificate): Error | undefined => {
    const { mesh } = this.credentials;
    const found = hostIdOfNames(subjectaltname, mesh);
    if (typeof found === 'string') return new Error(`certificate refused: ${found}`);
    if (isRevoked(this.#trust.policy.value, found.hostId)) {
      return new Error(`certificate refused: host ${found.hostId} is revoked`);
    }
    this.serverId = found.hostId;
    return undefined;
  };
}

/**
 * Ends a connection that should not go on: at once when the host at its other end is revoked or a root has gone,
 * and some time before its certificate expires when there is a newer one. Where nothing speaks against it, a renewed
 * certificate is for the next connection only.
 */
export function keepIdentity(options: {
  readonly connection: Connection;
  readonly trust: StoreTrust;
  readonly clock: Clock;
  readonly random: () => number;
}): void {
  const { connection, trust, clock, random } = options;
  const { identity } = connection;
  if (identity === undefined) return;
  const { roots, serial, notBeforeMs, notAfterMs } = identity.credentials;
  const leftMs = (notAfterMs - notBeforeMs) * (remakeAt - remakeSpread * random());
  let cancel = (): void => undefined;
  const look = (): void => {
    if (isRevoked(trust.policy.value, identity.serverId ?? '')) {
      connection.end(new EtcdFailure('tls', `host ${identity.serverId} is revoked`));
      return;
    }
    const present = trust.credentials.value;
    if (present === undefined || present.serial === serial) return;
    const isRootGone = roots.some((root) => !present.roots.includes(root));
    const dueMs = notAfterMs - leftMs - clock.nowMs();
    cancel();
    if (isRootGone || dueMs <= 0) void endWhenIdle(connection, clock);
    else cancel = clock.after(Math.min(dueMs, maxTimerMs), look);
  };
  const unsubscribe = [trust.credentials.subscribe(look), trust.policy.subscribe(look)];
  connection.ended.addEventListener(
    'abort',
    () => {
      for (const end of unsubscribe) end();
      cancel();
    },
    { once: true },
  );
  look();
}

/** Its streams are taken up again on the next connection; requests are let finish. */
async function endWhenIdle(connection: Connection, clock: Clock): Promise<void> {
  const untilMs = clock.monotonicMs() + finishMs;
  while (connection.busy && clock.monotonicMs() < untilMs && !connection.ended.aborted) await clock.sleep(pollMs);
  connection.end(new EtcdFailure('unreachable', 'it is made anew with the present certificate'));
}
