import type { Backend } from './balance/backend.ts';
import type { Admission } from './http/admission.ts';
import type { HashKey } from './http/hash-key.ts';
import type { HttpSettings } from './http/settings.ts';
import type { LinkTarget } from './link-target.ts';

/** What of a route is its service's, whichever way leads there: a link, or a lane that a link's routes have chosen. */
export abstract class TargetRoute {
  readonly target: LinkTarget;

  constructor(target: LinkTarget) {
    this.target = target;
  }

  get service(): string {
    return this.target.name;
  }

  get http(): HttpSettings {
    return this.target.http;
  }

  get admission(): Admission {
    return this.target.admission;
  }

  get hashKey(): HashKey | undefined {
    return this.target.hashKey;
  }

  get announcesClient(): boolean {
    return this.target.service?.proxyProtocol === 'v2';
  }

  get problemToPick(): string | undefined {
    return this.target.problem;
  }

  get holdMs(): number {
    return this.target.holdMs;
  }

  hold(resume: () => void): (() => void) | undefined {
    return this.target.hold(resume);
  }

  answered(backend: Backend, isError: boolean, ms: number | undefined): void {
    this.target.backends.answered(backend, isError, ms);
  }

  ended(backend: Backend): void {
    this.target.backends.ended(backend);
  }
}
