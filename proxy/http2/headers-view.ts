import type { IncomingHttpHeaders } from 'node:http2';
import { hostOf, isOrLists, type RequestView } from '../http/routing/request-view.ts';

/** The head of a request of HTTP/2, whose pseudo fields are valid. */
export class HeadersView implements RequestView {
  readonly #headers: IncomingHttpHeaders;
  readonly #queryAt: number;
  readonly #target: string;

  constructor(headers: IncomingHttpHeaders) {
    this.#headers = headers;
    this.#target = headers[':path'] ?? '';
    const at = this.#target.indexOf('?');
    this.#queryAt = at < 0 ? this.#target.length : at;
  }

  get method(): string {
    return this.#headers[':method'] ?? '';
  }

  get host(): string {
    return hostOf(this.first('host') ?? '');
  }

  get path(): string {
    return this.#target.slice(0, this.#queryAt);
  }

  get query(): string {
    return this.#target.slice(this.#queryAt);
  }

  get cookies(): string {
    return this.first('cookie') ?? '';
  }

  first(name: string): string | undefined {
    const value = name === 'host' ? (this.#headers[':authority'] ?? this.#headers.host) : this.#headers[name];
    return Array.isArray(value) ? value[0] : value;
  }

  /** The runtime has joined what came in several fields (RFC 9110 section 5.3). */
  has(name: string, value: string | undefined): boolean {
    const given = name === 'host' ? this.first(name) : this.#headers[name];
    if (given === undefined || value === undefined) return given !== undefined;
    return Array.isArray(given) ? given.some((each) => isOrLists(each, value)) : isOrLists(given, value);
  }
}
