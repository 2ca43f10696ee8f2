import type { Endpoint } from '../../src/model/address.ts';
import type { Backend } from '../balance/backend.ts';
import type { Account } from '../tcp/carried.ts';
import type { Route } from '../tcp/route.ts';
import { type OwnAnswer, refusalAnswer } from './answers.ts';
import type { HttpEnvironment } from './environment.ts';
import { HttpFault } from './fault.ts';
import { type Head, methods } from './head.ts';
import { type ClientLines, clientLines } from './outgoing.ts';
import type { Response } from './response.ts';
import type { HeaderEdits } from './routing/header-edits.ts';
import type { Lane } from './routing/lane.ts';
import { Choice, type LinkRouting } from './routing/link-routing.ts';
import type { HttpSettings } from './settings.ts';

export interface DestinationOptions {
  readonly environment: HttpEnvironment;
  readonly account: Account;
  readonly peer: Endpoint | undefined;
  readonly scheme: 'http' | 'https';
  /** The link that the client has connected to. */
  readonly route: Route;
}

/** Where one client's requests go, one after another, and how they are treated. */
export class Destination {
  /** Where the present one goes. */
  route: Route;
  /** What held for the service when it came. */
  settings: HttpSettings;
  readonly #options: DestinationOptions;
  /** What routes make of it; undefined as long as its link has had none. */
  #choice: Choice | undefined;
  #lines: ClientLines;

  constructor(options: DestinationOptions) {
    const { route, peer, scheme } = options;
    this.#options = options;
    this.route = route;
    this.settings = route.http;
    this.#lines = clientLines(peer, scheme, route.http.forwarding);
  }

  /** For a request whose head was just read; gives what to answer it with where it goes nowhere. */
  choose(head: Head): OwnAnswer | undefined {
    const { route } = this.#options;
    this.route = route;
    this.#choice?.reset();
    // A CONNECT names no resource that a route could be about.
    const routing = head.method === methods.connect ? undefined : route.routing;
    const ownAnswer = routing === undefined ? undefined : this.#follow(routing);
    this.settings = this.route.http;
    return ownAnswer;
  }

  #follow(routing: LinkRouting): OwnAnswer | undefined {
    const { environment, account } = this.#options;
    const choice = this.#choice ?? new Choice();
    try {
      routing.choose(environment.view.reset(), account, 'http/1.1', choice);
    } catch (error) {
      if (!(error instanceof HttpFault)) throw error;
      environment.metrics.refused(error.kind);
      return { status: error.status, reason: error.message };
    }
    this.#choice = choice;
    const { lane, redirect, refusal } = choice;
    if (redirect !== undefined) return { ...redirect, reason: 'a route redirects it' };
    if (refusal !== undefined) return refusalAnswer(refusal);
    if (lane !== undefined) this.route = lane;
    return undefined;
  }

  /** Where a route or a split has led it; undefined where it goes to the link's own service as it is. */
  get lane(): Lane | undefined {
    return this.#choice?.lane;
  }

  /** What its target becomes; undefined: it stays. */
  get target(): string | undefined {
    return this.#choice?.target;
  }

  /** What a route does to its head. */
  get edits(): HeaderEdits | undefined {
    return this.#choice?.rule?.request;
  }

  /** Where a copy of it goes. */
  get mirror(): Lane | undefined {
    return this.#choice?.mirror;
  }

  /** What it tells instances of its client. Who comes over TLS is a stranger, and not believed about whom it speaks for. */
  get lines(): ClientLines {
    const { scheme, peer, route } = this.#options;
    const forwarding = scheme === 'https' ? 'set' : route.http.forwarding;
    if (forwarding !== this.#lines.forwarding) this.#lines = clientLines(peer, scheme, forwarding);
    return this.#lines;
  }

  /** Has a route do to the head of the answer what it does, before that leaves. */
  edit(response: Response, backend: Backend | undefined): void {
    const choice = this.#choice;
    if (choice === undefined) return;
    response.edits = choice.rule?.response;
    response.cookie = choice.setCookie(backend, this.#options.scheme === 'https');
  }
}
