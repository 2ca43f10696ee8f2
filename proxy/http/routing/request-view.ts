/** What rules look at in the head of a request, whichever version of HTTP it came in. Valid while the head is. */
export interface RequestView {
  readonly method: string;
  /** In lower case, without port and final dot; empty where the request names none. */
  readonly host: string;
  /** As it came, without the query; `*` for a request about the server as a whole (OPTIONS). */
  readonly path: string;
  /** With its `?`; empty where there is none. */
  readonly query: string;
  /** All cookies, as one header has them. */
  readonly cookies: string;
  /** The first header of this name, which is in lower case. */
  first(name: string): string | undefined;
  /** Whether one of the headers of this name has the value, or has it in its list; undefined: any value. */
  has(name: string, value: string | undefined): boolean;
}

/** The host of a `Host` or `:authority`, as a view gives it. */
export function hostOf(authority: string): string {
  const bracket = authority.charCodeAt(0) === 0x5b ? authority.indexOf(']') : -1;
  const colon = authority.indexOf(':', bracket + 1);
  let end = colon < 0 ? authority.length : colon;
  if (authority.charCodeAt(end - 1) === 0x2e) end -= 1;
  return authority.slice(0, end).toLowerCase();
}

/** Whether a header's value is this one, or a list that has it (RFC 9110 section 5.6.1). */
export function isOrLists(header: string, value: string): boolean {
  if (header === value) return true;
  if (!header.includes(',')) return false;
  return header.split(',').some((item) => item.trim() === value);
}
