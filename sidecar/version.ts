import { existsSync, readFileSync } from 'node:fs';

/** The version in the nearest package.json above, however deep below it this module was built to. */
export function ownVersion(): string {
  let file = new URL('package.json', import.meta.url);
  while (!existsSync(file) && file.pathname !== '/package.json') file = new URL('../package.json', file);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}
