/** A tag as the value of a cookie (RFC 6265 section 4.1.1): what has no place in one is written as its code. */
export function cookieText(tag: string): string {
  return tag.replaceAll(/[^A-Za-z0-9._-]/g, (unit) => `%${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** The values of all cookies of a name; clients may send several (RFC 6265 section 5.4). */
export function cookieValues(cookies: string, name: string): string[] {
  const values: string[] = [];
  let at = 0;
  while (at < cookies.length) {
    let end = cookies.indexOf(';', at);
    if (end < 0) end = cookies.length;
    while (cookies.charCodeAt(at) === 0x20) at += 1;
    if (cookies.startsWith(name, at) && cookies.charCodeAt(at + name.length) === 0x3d) {
      values.push(cookies.slice(at + name.length + 1, end).trimEnd());
    }
    at = end + 1;
  }
  return values;
}

/** What keeps a browser on its side for as long as it runs. */
export function sideCookie(name: string, side: string, isSecure: boolean): string {
  return `${name}=${side}; Path=/; HttpOnly; SameSite=Lax${isSecure ? '; Secure' : ''}`;
}
