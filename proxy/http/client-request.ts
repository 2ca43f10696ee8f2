import type { Endpoint } from '../../src/model/address.ts';
import type { Account } from '../tcp/carried.ts';
import { BodyReader, chunkedBody } from './body.ts';
import type { HttpEnvironment } from './environment.ts';
import { type Head, isIdempotent, type Method, methods } from './head.ts';
import { KeptBody } from './kept-body.ts';
import { bodyTooLarge } from './refusals.ts';
import type { Lane } from './routing/lane.ts';
import type { Copy } from './routing/mirrors.ts';

export interface ClientRequestUser {
  /** A piece of the body has come, and may be kept. */
  bodyCame(piece: Buffer): void;
}

/** As whom instances are sent copies. */
interface CopyAsker {
  readonly environment: HttpEnvironment;
  readonly account: Account;
  readonly peer: Endpoint | undefined;
}

const nothing = Buffer.alloc(0);

/** One request as it leaves, while its body comes and as long as it may be needed again; used again for the next one. */
export class ClientRequest {
  method: Method = methods.get;
  /** The head as it leaves. */
  head: Buffer = nothing;
  /** How long its body may be, in bytes; 0: as long as it likes. */
  #maxBodyBytes = 0;
  readonly kept = new KeptBody();
  readonly #user: ClientRequestUser;
  readonly #body = new BodyReader();
  /** For whom a route wants it copied, while its body comes. */
  #copy: Copy | undefined;

  constructor(user: ClientRequestUser) {
    this.#user = user;
  }

  /** Another one has come. */
  begin(method: Method, maxBodyBytes: number): void {
    this.method = method;
    this.#maxBodyBytes = maxBodyBytes;
    this.kept.reset();
  }

  /** Its body is to be read. */
  beginBody(head: Head): void {
    this.#body.begin(head.chunked ? chunkedBody : { kind: 'length', bytes: head.contentLength ?? 0 });
  }

  /** Whether all of it has come. */
  get done(): boolean {
    return this.#body.done;
  }

  /** Whether an instance may be asked what another one has perhaps heard: RFC 9110 section 9.2.2. */
  get isIdempotent(): boolean {
    return isIdempotent(this.method);
  }

  /** How long all is that has come so far, in bytes. */
  get bytes(): number {
    return this.head.length + this.kept.bytes;
  }

  /** All that has come so far, as far as it is there. */
  whole(): Buffer {
    const { pieces } = this.kept;
    return pieces === undefined ? this.head : Buffer.concat([this.head, ...pieces]);
  }

  /** Reads more of the body; gives where it ends in `chunk`. Throws an HttpFault. */
  read(chunk: Buffer, at: number): number {
    return this.#body.read(chunk, at, this.#onBody);
  }

  readonly #onBody = (buffer: Buffer, start: number, end: number): void => {
    const maxBodyBytes = this.#maxBodyBytes;
    if (maxBodyBytes > 0 && this.#body.contentBytes > maxBodyBytes) throw bodyTooLarge(maxBodyBytes);
    const piece = start === 0 && end === buffer.length ? buffer : buffer.subarray(start, end);
    this.#copy?.add(piece);
    this.#user.bodyCame(piece);
  };

  /** Has it copied to `lane`, where there is room for that. */
  beginCopy(lane: Lane, contentLength: number | undefined, of: CopyAsker): void {
    const { environment, account, peer } = of;
    const { method, head } = this;
    this.#copy = environment.mirrors.begin({ lane, method, head, contentLength, account, peer });
  }

  /** The copy goes once the request is whole, and never before it. */
  sendCopy(): void {
    if (this.#copy === undefined || !this.done) return;
    this.#copy.send();
    this.#copy = undefined;
  }

  /** Nobody is asked it any more. */
  forget(): void {
    this.head = nothing;
    this.#copy?.drop();
    this.#copy = undefined;
    this.kept.forget();
  }
}
