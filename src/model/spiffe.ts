import { nameFault } from './names.ts';

/** The identity of a host's sidecar in its certificate: a URI name, `spiffe://<mesh>/host/<id>` (SPIFFE-ID, section 2). */
export function spiffeIdOf(mesh: string, hostId: string): string {
  return `spiffe://${mesh}/host/${hostId}`;
}

const hostUri = /^spiffe:\/\/([^/]*)\/host\/([0-9a-f]{16})$/;

/** The host that a certificate names, or, for people, why it names none of this mesh. */
export function hostIdOfNames(subjectAltName: string | undefined, mesh: string): { readonly hostId: string } | string {
  // A name with characters of this list's own grammar is quoted there, and so begins otherwise.
  const uris = (subjectAltName ?? '').split(', ').filter((name) => name.startsWith('URI:'));
  const [uri] = uris;
  // X509-SVID, section 2: exactly one URI name.
  if (uri === undefined || uris.length > 1) return 'its certificate has not exactly one SPIFFE name';
  const match = hostUri.exec(uri.slice('URI:'.length));
  const [, trustDomain = '', hostId = ''] = match ?? [];
  if (match === null || nameFault(trustDomain) !== undefined) return 'its certificate names no host of a mesh';
  return trustDomain === mesh ? { hostId } : `its certificate is of mesh ${trustDomain}, not ${mesh}`;
}
