import { formatEndpoint, isLoopback } from '../model/address.ts';
import { type Faults, quoted } from './fault.ts';
import type { Values } from './load.ts';
import type { OptionKey } from './options.ts';

/** Options that name a file which somebody else makes. */
const fileOptions = [
  ...(['tls.ca', 'tls.cert', 'tls.key', 'store.tls.ca', 'store.tls.cert', 'store.tls.key'] as const),
  ...(['store.credentials_file', 'authority.passphrase_file'] as const),
] satisfies readonly OptionKey[];

/** Why a file cannot be read, for people; undefined when it can. */
export type FileFault = (path: string) => string | undefined;

/**
 * What a sidecar starts with all the same and what cannot work as it is written: files that are not there, which may come
 * later, and a tunnel that listens where no other host reaches it.
 */
export function checkSurroundings(values: Values, faults: Faults, fileFault: FileFault): void {
  for (const key of fileOptions) {
    const path = values.get(key);
    const fault = path ? fileFault(path) : undefined;
    if (path && fault !== undefined) faults.add(values.placeOf(key), key, `${quoted(path)} cannot be read: ${fault}`);
  }
  for (const { path, tls } of values.get('links') ?? []) {
    for (const file of tls?.value.flatMap(({ cert, key }) => [cert, key]) ?? []) {
      const fault = fileFault(file);
      if (tls !== undefined && fault !== undefined) {
        faults.add(tls.at, `${path}.tls`, `${quoted(file)} cannot be read: ${fault}`);
      }
    }
  }
  const tunnel = values.get('tunnel.listen');
  const advertise = values.get('advertise');
  // What is not written is the default route's, and other hosts need not exist.
  const isWritten = values.placeOf('tunnel.listen').text !== '' && values.placeOf('advertise').text !== '';
  if (!isWritten || tunnel === undefined || advertise === undefined) return;
  if (!isLoopback(tunnel.address) || isLoopback(advertise)) return;
  const text = `${quoted(formatEndpoint(tunnel))} is loopback: no other host reaches it at ${advertise} (advertise)`;
  faults.add(values.placeOf('tunnel.listen'), 'tunnel.listen', text);
}
