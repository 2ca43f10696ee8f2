/** What is wrong with what one side said; a label of metrics and the reason in logs, hence short and fixed. */
export type HttpFaultKind =
  | 'request-line'
  | 'status-line'
  | 'version'
  | 'target'
  | 'host'
  | 'field'
  | 'framing'
  | 'chunk'
  | 'trailer'
  | 'too-large'
  | 'method'
  | 'upgrade'
  | 'body-too-large'
  | 'connection'
  | 'loop';

/** A message that is not passed on. `status` is what the client is told when it was a request. */
export class HttpFault extends Error {
  readonly kind: HttpFaultKind;
  readonly status: number;

  constructor(kind: HttpFaultKind, message: string, status = 400) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}
