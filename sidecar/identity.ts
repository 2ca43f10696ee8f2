import { createPublicKey, X509Certificate } from 'node:crypto';
import { Backoff } from '../src/base/backoff.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { span } from '../src/base/duration.ts';
import { describeError, isLegateError, LegateError, systemCode } from '../src/base/errors.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import { within } from '../src/base/within.ts';
import type { Endpoint } from '../src/model/address.ts';
import type { Credentials } from '../src/model/credentials.ts';
import {
  comeBackHint,
  isAuthorityElsewhere,
  isRevoked,
  joinAgainHint,
  type Policy,
  revokedText,
} from '../src/model/policy.ts';
import { spiffeIdOf } from '../src/model/spiffe.ts';
import type { Authority } from '../src/pki/authority.ts';
import { certificatesOf, fingerprintOf, fingerprintOfPem, rootOfChain, timeProblem, toPem } from '../src/pki/chain.ts';
import { askDesk, shownCertificate } from '../src/pki/desk-client.ts';
import { credentialsOf, type HostFiles, replaceHostCertificate, replaceRoots } from '../src/pki/host-files.ts';
import { backdatedMs, makeRequest } from '../src/pki/issue.ts';
import { newKey } from '../src/pki/key-files.ts';
import { decodeAdmission, encodeRenew } from '../src/pki/messages.ts';
import type { IdentityDocument } from './admin/documents.ts';

const firstRetryMs = 1000;
const retryCeilingMs = 10 * 60_000;
/** A clock may be set, and the store may refuse this host: what is due is looked at at least so often. */
const lookEveryMs = 20_000;
/** Renewal comes at half of the life, this part of it earlier or later: hosts let in together renew apart. */
const renewalSpread = 0.05;
/** After the root was replaced, or the authority has moved, all hosts ask, each at some moment within this time. */
const replacementSpreadMs = 2000;
/** Of the certificate's life: with less left something is to be done by people. */
const warningShare = 1 / 3;
const servedCheckEveryMs = 10 * 60_000;
const servedCheckLimitMs = 5000;

const certificateId = 'pki.certificate';
const servedId = 'pki.served';

export interface IdentityOptions {
  readonly files: HostFiles;
  /** As it is on disk. */
  readonly credentials: Credentials;
  readonly hostName: string;
  /** Where other hosts reach this one. */
  readonly reached: Endpoint;
  /** Where this host's own listener can be asked what it shows. */
  readonly served: Endpoint;
  readonly version: string;
  readonly policy: Observable<Policy | undefined>;
  /** Where the authority's host may be reached, the likeliest first. */
  readonly authorityAt: () => readonly Endpoint[];
  /** Whether the store does not answer. */
  readonly isCutOff?: () => boolean;
  /** The authority itself, on its own host. */
  readonly issuer?: { readonly authority: Authority; readonly addresses: readonly string[] };
  /** What a renewal brought besides the certificate. */
  readonly onAdmission?: (news: { readonly sealedPolicy: Uint8Array; readonly store: string }) => void;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
  readonly random?: () => number;
}

/**
 * Who this host is to others: its certificate, renewed at half of its life by the authority, and the roots that it believes,
 * which are the policy's. What is wrong is a condition; what holds until then goes on being used.
 */
export class Identity {
  readonly credentials: Latest<Credentials | undefined>;
  readonly #options: IdentityOptions;
  readonly #random: () => number;
  readonly #backoff: Backoff;
  #current: Credentials;
  /** Part of the life after which it renews. */
  #renewAt: number;
  /** What the authority, and which, knows this host to believe. */
  #reported = '';
  /** The authority's host by the last policy. */
  #authority: string | undefined;
  /** Monotonic, of the last answer. */
  #askedAtMs = Number.NEGATIVE_INFINITY;
  #problem: { readonly message: string; readonly hint: string; readonly isRefusal: boolean } | undefined;
  #wake = new AbortController();

  constructor(options: IdentityOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#backoff = new Backoff(firstRetryMs, retryCeilingMs, this.#random);
    this.#current = options.credentials;
    this.credentials = new Latest<Credentials | undefined>(this.#withPolicyRoots(this.#current));
    this.#renewAt = this.#drawRenewal();
    options.metrics.gauge(
      'legate_pki_certificate_remaining_seconds',
      "How long this host's certificate holds; negative once it has ended.",
      [],
      () => [[[], (this.#current.notAfterMs - options.clock.nowMs()) / 1000]],
    );
  }

  /** Runs until aborted. */
  async run(signal: AbortSignal): Promise<void> {
    const end = this.#options.policy.subscribe(() => this.#onPolicy());
    this.#onPolicy();
    try {
      await Promise.all([this.#renewals(signal), this.#servedChecks(signal)]);
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      end();
    }
  }

  document(): IdentityDocument {
    const { notAfterMs, roots, serial } = this.#current;
    return {
      role: this.#issuer === undefined ? 'member' : 'authority',
      certificateUntil: new Date(notAfterMs).toISOString(),
      serial,
      roots: (this.credentials.value?.roots ?? roots).map((root) => fingerprintOfPem(root) ?? ''),
      problem: this.#problem?.message ?? null,
    };
  }

  async #renewals(signal: AbortSignal): Promise<void> {
    const { log } = this.#options;
    while (!signal.aborted) {
      const dueInMs = this.#dueInMs();
      const mustReport = this.#issuer === undefined && (this.#reported !== this.#report() || this.#mustAskWhy());
      let waitMs = Math.min(lookEveryMs, Math.max(0, dueInMs));
      if ((dueInMs <= 0 || mustReport) && !this.#isRevoked()) {
        try {
          await this.#ask(dueInMs <= 0, signal);
          this.#askedAtMs = this.#options.clock.monotonicMs();
          this.#backoff.reset();
          this.#problem = undefined;
          waitMs = 0;
        } catch (error) {
          if (signal.aborted) throw error;
          // A lost report is only asked for again; a lost certificate is told, and that one side refuses the other.
          const isRefused = isLegateError(error, 'E_UNAUTHORIZED') && this.#backoff.failures > 0;
          if (dueInMs <= 0 || isRefused) this.#failed(error);
          else log.debug('the authority could not be told', { 'pki.reason': describeError(error) });
          waitMs = Math.min(this.#backoff.nextMs(), retryCeilingFor(this.#lifeMs()));
        }
      }
      this.#tell();
      await this.#sleep(Math.max(waitMs, 1), signal);
    }
  }

  /** Without the store nobody tells this host that it was revoked; the authority does. */
  #mustAskWhy(): boolean {
    const { clock, isCutOff } = this.#options;
    return isCutOff?.() === true && clock.monotonicMs() - this.#askedAtMs >= lookEveryMs;
  }

  async #sleep(ms: number, signal: AbortSignal): Promise<void> {
    this.#wake = new AbortController();
    await this.#options.clock.sleep(ms, AbortSignal.any([signal, this.#wake.signal])).catch(() => undefined);
    signal.throwIfAborted();
  }

  #dueInMs(): number {
    const { clock } = this.#options;
    if (this.#isOfOldRoot()) return 0;
    return this.#current.notBeforeMs + backdatedMs + this.#lifeMs() * this.#renewAt - clock.nowMs();
  }

  /** From when it was issued; it counts from a little before. */
  #lifeMs(): number {
    const { notBeforeMs, notAfterMs } = this.#current;
    return Math.max(1000, notAfterMs - notBeforeMs - backdatedMs);
  }

  #drawRenewal(): number {
    return 0.5 + renewalSpread * (2 * this.#random() - 1);
  }

  /** Whether the root that issues now, the policy's first, is another than ours. */
  #isOfOldRoot(): boolean {
    const [issuing] = this.#options.policy.value?.roots ?? [];
    const [root] = issuing === undefined ? [] : (certificatesOf(issuing) ?? []);
    if (root === undefined) return false;
    return 'problem' in rootOfChain(certificatesOf(this.#current.chain) ?? [], [root]);
  }

  /** The authority, unless it has moved to another host. */
  get #issuer(): IdentityOptions['issuer'] {
    const { issuer, policy } = this.#options;
    return isAuthorityElsewhere(policy.value, this.#current.hostId) ? undefined : issuer;
  }

  #isRevoked(): boolean {
    return isRevoked(this.#options.policy.value, this.#current.hostId);
  }

  #trusted(): readonly string[] {
    const { roots } = this.#withPolicyRoots(this.#current);
    return roots.map((root) => fingerprintOfPem(root) ?? '').sort();
  }

  #report(): string {
    return [this.#options.policy.value?.authority, ...this.#trusted()].join();
  }

  #withPolicyRoots(credentials: Credentials): Credentials {
    const { policy } = this.#options;
    const roots = policy.value?.roots ?? [];
    return roots.length === 0 ? credentials : { ...credentials, roots };
  }

  #onPolicy(): void {
    const { files, log, policy } = this.#options;
    const next = this.#withPolicyRoots(this.#current);
    const hasMoved = this.#authority !== undefined && this.#authority !== policy.value?.authority;
    this.#authority = policy.value?.authority;
    if (next.roots.join('') !== this.#current.roots.join('')) {
      const isReplaced = this.#isOfOldRoot();
      this.#current = next;
      this.credentials.set(next);
      replaceRoots(files, next.roots).catch((error: unknown) =>
        log.warn('the roots could not be written', { 'pki.reason': describeError(error) }),
      );
      this.#askSoon(isReplaced || hasMoved);
    } else {
      if (this.credentials.value !== this.#current) this.credentials.set(this.#current);
      if (hasMoved) this.#askSoon(true);
    }
  }

  /** `spread`: all hosts do so now. */
  #askSoon(spread: boolean): void {
    this.#backoff.reset();
    const spreadMs = spread && this.#issuer === undefined ? replacementSpreadMs * this.#random() : 0;
    this.#options.clock.after(spreadMs, () => this.#wake.abort());
  }

  /** Asks the authority for a certificate, or only tells it what this host believes. */
  async #ask(forCertificate: boolean, signal: AbortSignal): Promise<void> {
    const issuer = this.#issuer;
    if (issuer !== undefined) return this.#issueOwn(issuer);
    const { hostName, reached, version, policy, clock } = this.#options;
    const authority = policy.value?.authority ?? '';
    const key = newKey();
    const uri = spiffeIdOf(this.#current.mesh, this.#current.hostId);
    const trusts = this.#trusted();
    const reported = this.#report();
    const request = encodeRenew({
      address: reached.address,
      port: reached.port,
      ...(forCertificate && { request: await makeRequest(key, hostName, uri) }),
      version,
      trusts,
      policyVersion: policy.value?.version ?? 0,
    });
    const credentials = this.#withPolicyRoots(this.#current);
    const visit = { kind: 'renew', credentials, authority } as const;
    const answer = decodeAdmission(await this.#visit(visit, request, signal));
    if (forCertificate) {
      const roots = answer.roots.flatMap((each) => certificatesOf(each) ?? []);
      await this.#take(answer.chain ?? '', key, roots.length === 0 ? credentials.roots : roots.map(toPem));
    }
    this.#reported = reported;
    this.#options.onAdmission?.({ sealedPolicy: Buffer.from(answer.policy, 'base64'), store: answer.store });
    this.#options.log.debug('the authority was asked', {
      'pki.certificate': forCertificate,
      'pki.clock_ms': clock.nowMs(),
    });
  }

  async #visit(visit: Parameters<typeof askDesk>[1], request: Uint8Array, signal: AbortSignal): Promise<Uint8Array> {
    let failure: unknown = new LegateError('E_UNREACHABLE', "it is not known where the authority's host is", {
      hint: 'the store tells it, once it answers',
    });
    for (const endpoint of this.#options.authorityAt()) {
      try {
        return await askDesk(endpoint, visit, request, { nowMs: this.#options.clock.nowMs(), signal });
      } catch (error) {
        if (signal.aborted) throw error;
        failure = error;
      }
    }
    throw failure;
  }

  async #issueOwn({ authority, addresses }: { authority: Authority; addresses: readonly string[] }): Promise<void> {
    const { hostName: name, reached } = this.#options;
    const key = newKey();
    const { hostId } = this.#current;
    const trusts = authority.roots.map((root) => fingerprintOfPem(root) ?? '').sort();
    const issued = await authority.issue({ hostId, name, ...reached, addresses, trusts }, createPublicKey(key));
    await this.#take(issued.certificate + issued.root, key, authority.roots);
  }

  /** Checks a certificate that was issued for `key`, and puts it in the place of the present one. */
  async #take(chain: string, key: ReturnType<typeof newKey>, roots: readonly string[]): Promise<void> {
    const { files, clock, log } = this.#options;
    const { mesh, hostId, serial } = this.#current;
    const parsed = certificatesOf(chain) ?? [];
    const believed = roots.map((each) => new X509Certificate(each));
    const next = credentialsOf({ chain, key, roots: believed, mesh });
    const strange = (what: string): LegateError =>
      new LegateError('E_INVALID', `the certificate that the authority gave cannot be used: ${what}`, {
        hint: "look into the log of the authority's host, and at the clocks of both",
      });
    if (next instanceof LegateError) throw strange(next.message);
    if (next.hostId !== hostId || next.serial === serial) throw strange('it is not a new one of this host');
    const found = rootOfChain(parsed, believed);
    if ('problem' in found) throw strange(found.problem);
    const [certificate] = parsed;
    const problem = certificate === undefined ? undefined : timeProblem(certificate, clock.nowMs(), 'the new');
    if (problem !== undefined) throw strange(problem);
    await replaceHostCertificate(files, next);
    this.#current = this.#withPolicyRoots(next);
    this.#renewAt = this.#drawRenewal();
    this.credentials.set(this.#current);
    log.info('this host has a new certificate', {
      'pki.serial': next.serial,
      'pki.until': new Date(next.notAfterMs).toISOString(),
      'pki.root': fingerprintOf(found.root).slice(0, 16),
    });
  }

  #failed(error: unknown): void {
    // The disk's and OpenSSL's errors have codes, too.
    if (systemCode(error) === undefined && !isLegateError(error)) throw error;
    const hint = (isLegateError(error) ? error.hint : undefined) ?? 'it is tried again';
    this.#problem = { message: describeError(error), hint, isRefusal: isLegateError(error, 'E_UNAUTHORIZED') };
  }

  /** Says what is wrong with the certificate, the more the less is left of it. */
  #tell(): void {
    const { conditions, clock } = this.#options;
    const nowMs = clock.nowMs();
    const { notAfterMs, notBeforeMs } = this.#current;
    const leftMs = notAfterMs - nowMs;
    const reason = this.#problem === undefined ? '' : `: ${this.#problem.message}`;
    const hint = this.#problem?.hint ?? 'legate ca status tells more';
    if (this.#isRevoked()) {
      conditions.raise(certificateId, 'error', revokedText, comeBackHint);
    } else if (nowMs < notBeforeMs) {
      const text = `this host's certificate holds only from ${new Date(notBeforeMs).toISOString()}, and its clock says ${new Date(nowMs).toISOString()}`;
      conditions.raise(certificateId, 'error', text, 'set the clock, for instance with chronyc makestep');
    } else if (leftMs <= 0) {
      const text = `this host's certificate has ended ${span(-leftMs)} ago: other hosts refuse it${reason}`;
      const comesBack = hint.includes('--again') ? hint : `${hint}; if the clock is right, ${joinAgainHint}`;
      conditions.raise(certificateId, 'error', text, comesBack);
    } else if (leftMs < this.#lifeMs() * warningShare) {
      const text = `this host's certificate ends in ${span(leftMs)} and could not be renewed${reason}`;
      conditions.raise(certificateId, 'warning', text, hint);
    } else if (this.#problem?.isRefusal === true) {
      conditions.raise(certificateId, 'warning', `this host cannot renew its certificate${reason}`, hint);
    } else if (this.#problem !== undefined) {
      const text = `this host's certificate could not be renewed yet${reason}; it holds for ${span(leftMs)}`;
      conditions.raise(certificateId, 'note', text, hint);
    } else conditions.clear(certificateId);
  }

  /** Compares what this host's listener shows with what was issued; a listener that is not there is told elsewhere. */
  async #servedChecks(signal: AbortSignal): Promise<void> {
    const { clock } = this.#options;
    for (;;) {
      await clock.sleep(Math.min(servedCheckEveryMs, this.#lifeMs() / 4), signal);
      await this.checkServed(signal);
    }
  }

  /** Whether the listener shows the present certificate; undefined when nobody listens. */
  async checkServed(signal: AbortSignal): Promise<boolean | undefined> {
    const { served, conditions } = this.#options;
    const issued = this.#current;
    const look = (until: AbortSignal): Promise<X509Certificate | undefined> => shownCertificate(served, issued, until);
    const shown = await within(servedCheckLimitMs, signal, look).catch(() => undefined);
    // One that was renewed meanwhile is looked at the next time.
    if (shown === undefined || issued !== this.#current) return undefined;
    const isSame = toPem(shown) === toPem(new X509Certificate(issued.chain));
    if (isSame) conditions.clear(servedId);
    else {
      const text = `the listener at port ${served.port} shows certificate ${shown.serialNumber.toLowerCase()}, not ${issued.serial}, which this host was given`;
      conditions.raise(servedId, 'warning', text, 'restart this sidecar; if another program listens there, stop it');
    }
    return isSame;
  }
}

/** With a short life there is no time for long pauses. */
function retryCeilingFor(lifeMs: number): number {
  return Math.min(retryCeilingMs, Math.max(firstRetryMs, lifeMs / 20));
}
