import { type ErrorCode, errorCodes, LegateError } from '../base/errors.ts';
import { FieldFault, Fields } from '../base/fields.ts';
import { printable, truncate } from '../base/text.ts';
import { nameFault } from '../model/names.ts';

/** What is said on 7711 beyond links, in JSON. Both sides treat what they read as a stranger's. */
const version = 1;
const limits = { pem: 32 * 1024, sealed: 245 * 1024, roots: 8, store: 16 * 1024, text: 300 } as const;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

/** A new host asks to be let in. */
export interface EnrolRequest {
  /** The token's secret, base64url. */
  readonly secret: string;
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly request: string;
  readonly version: string;
  /** The id under which this sidecar ran: before there was an authority, or in this mesh, with the key that it asks with. */
  readonly previousId?: string;
}

/** A host asks for its next certificate, or, without a request, only says what it believes and hears the policy. */
export interface RenewRequest {
  readonly address: string;
  readonly port: number;
  readonly request?: string;
  readonly version: string;
  /** Fingerprints of the roots that it believes. */
  readonly trusts: readonly string[];
  /** Of the policy that it knows; 0: none. */
  readonly policyVersion: number;
}

/** What a host gets. Without a chain only what it should know. */
export interface Admission {
  readonly hostId: string;
  readonly name: string;
  readonly chain?: string;
  readonly roots: readonly string[];
  /** The sealed policy, base64. */
  readonly policy: string;
  /** PEM: what policies are signed with. */
  readonly policyKey: string;
  readonly mesh: string;
  readonly meshId: string;
  /** Where the mesh's store is, as a move's marker has it. */
  readonly store: string;
  readonly authority: { readonly hostId: string; readonly address: string; readonly port: number };
}

export function encodeEnrol(request: EnrolRequest): Uint8Array {
  return encode(request);
}

export function encodeRenew(request: RenewRequest): Uint8Array {
  return encode(request);
}

export function encodeAdmission(admission: Admission): Uint8Array {
  return encode({ admission });
}

/** A refusal, as far as the caller may know. */
export function encodeRefusal({ code, message, hint }: LegateError): Uint8Array {
  return encode({ refused: { code, message, hint: hint ?? '' } });
}

function encode(document: object): Uint8Array {
  return encoder.encode(JSON.stringify({ v: version, ...document }));
}

/** E_INVALID when the bytes are no request. */
export function decodeEnrol(bytes: Uint8Array): EnrolRequest {
  return decode(bytes, 'request', (fields) => ({
    secret: fields.name('secret', (text) => (/^[A-Za-z0-9_-]{43}$/.test(text) ? undefined : 'is no secret')),
    name: fields.name('name', nameFault),
    address: fields.address('address'),
    port: fields.integer('port', 1, 65535),
    request: pemOf(fields, 'request'),
    version: fields.text('version', 60),
    ...(fields.has('previousId') && { previousId: fields.name('previousId', hostIdFault) }),
  }));
}

/** E_INVALID when the bytes are no request. */
export function decodeRenew(bytes: Uint8Array): RenewRequest {
  return decode(bytes, 'request', (fields) => ({
    address: fields.address('address'),
    port: fields.integer('port', 1, 65535),
    ...(fields.has('request') && { request: pemOf(fields, 'request') }),
    version: fields.text('version', 60),
    trusts: fields.texts('trusts', limits.roots, 64),
    policyVersion: fields.integer('policyVersion', 0, Number.MAX_SAFE_INTEGER),
  }));
}

/** What the authority gave. A refusal is thrown as it was said; E_INVALID when the bytes are no answer. */
export function decodeAdmission(bytes: Uint8Array): Admission {
  const answer = decode(bytes, 'answer', (fields) => {
    if (fields.has('refused')) return refusalOf(fields.fields('refused'));
    const admission = fields.fields('admission');
    const authority = admission.fields('authority');
    return {
      hostId: admission.name('hostId', hostIdFault),
      name: admission.name('name', nameFault),
      ...(admission.has('chain') && { chain: pemOf(admission, 'chain') }),
      roots: admission.list('roots', limits.roots).map((_, index) => pemAt(admission, 'roots', index)),
      policy: longText(admission, 'policy', limits.sealed, /^[A-Za-z0-9+/]*={0,2}$/),
      policyKey: pemOf(admission, 'policyKey'),
      mesh: admission.name('mesh', nameFault),
      meshId: admission.name('meshId', (id) => (/^[0-9a-f]{32}$/.test(id) ? undefined : 'is no id of a mesh')),
      store: longText(admission, 'store', limits.store, /^[\x20-\x7e]*$/),
      authority: {
        hostId: authority.name('hostId', hostIdFault),
        address: authority.address('address'),
        port: authority.integer('port', 1, 65535),
      },
    } satisfies Admission;
  });
  if (answer instanceof LegateError) throw answer;
  return answer;
}

function decode<T>(bytes: Uint8Array, what: string, read: (fields: Fields) => T): T {
  try {
    const fields = new Fields(JSON.parse(decoder.decode(bytes)));
    const found = fields.integer('v', 1, Number.MAX_SAFE_INTEGER);
    if (found !== version) throw new FieldFault(`it is of version ${found}, and this Legate speaks ${version}`);
    return read(fields);
  } catch (error) {
    if (!(error instanceof FieldFault) && !(error instanceof SyntaxError) && !(error instanceof TypeError)) throw error;
    const reason = error instanceof FieldFault ? error.message : 'it is not JSON';
    throw new LegateError('E_INVALID', `the ${what} cannot be read: ${reason}`, {
      hint: 'install the same version of Legate on both hosts',
    });
  }
}

function refusalOf(fields: Fields): LegateError {
  const code = fields.text('code', 40);
  const hint = fields.text('hint', limits.text * 2);
  const known: ErrorCode = Object.hasOwn(errorCodes, code) ? (code as ErrorCode) : 'E_INVALID';
  return new LegateError(known, fields.text('message', limits.text * 2, 1), hint === '' ? {} : { hint });
}

const pem = /^(?:-----BEGIN [A-Z ]{1,40}-----\n(?:[A-Za-z0-9+/=]{1,76}\n)+-----END [A-Z ]{1,40}-----\n?)+$/;

function pemOf(fields: Fields, name: string): string {
  return longText(fields, name, limits.pem, pem);
}

function pemAt(fields: Fields, name: string, index: number): string {
  const value = fields.list(name, limits.roots)[index];
  if (typeof value === 'string' && value.length <= limits.pem && pem.test(value)) return value;
  throw new FieldFault(`${name}[${index}] is not PEM`);
}

/** Text with lines, which is no text for people. */
function longText(fields: Fields, name: string, max: number, form: RegExp): string {
  const value = fields.raw(name);
  if (typeof value === 'string' && value.length <= max && form.test(value)) return value;
  throw new FieldFault(`${truncate(printable(name), 40)} does not have its form`);
}

function hostIdFault(id: string): string | undefined {
  return /^[0-9a-f]{16}$/.test(id) ? undefined : 'is not 16 hexadecimal digits';
}
