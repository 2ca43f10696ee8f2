import { parseSticky, type Sticky, type Weights } from '../../src/model/routes.ts';
import { type Forwarding, type FurtherSettings, httpDefaults } from '../../src/model/service-settings.ts';

/** How requests to a service are treated, with what holds where nobody chose; made once for each change of the service. */
export interface HttpSettings {
  /** From a request to the end of its answer; 0: as long as it takes. */
  readonly timeoutMs: number;
  /** From a try's beginning to the head of its answer. */
  readonly tryTimeoutMs: number;
  /** The same for calls of gRPC, which may have nothing to say for long; 0, where nobody chose: as long as it takes. */
  readonly callTryTimeoutMs: number;
  readonly retries: number;
  /** 0: never. */
  readonly hedgeAfterMs: number;
  /** 0: any number. */
  readonly maxBodyBytes: number;
  /** Requests at a time; 0: any number. */
  readonly maxRequests: number;
  readonly maxQueue: number;
  readonly queueTimeoutMs: number;
  readonly forwarding: Forwarding;
  readonly upgrade: boolean;
  readonly connect: boolean;
  /** Undefined where requests are not divided by tag. */
  readonly split: Weights | undefined;
  readonly sticky: Sticky | undefined;
}

export function httpSettingsOf(service: FurtherSettings): HttpSettings {
  const { split, sticky, ...chosen } = service;
  const values = { ...httpDefaults, ...chosen };
  return {
    timeoutMs: values.timeoutMs,
    tryTimeoutMs: values.tryTimeoutMs,
    callTryTimeoutMs: chosen.tryTimeoutMs ?? 0,
    retries: values.retries,
    hedgeAfterMs: values.hedgeAfterMs,
    maxBodyBytes: values.maxBodyBytes,
    maxRequests: values.maxRequests,
    maxQueue: values.maxQueue,
    queueTimeoutMs: values.queueTimeoutMs,
    forwarding: values.forwarding,
    upgrade: values.upgrade === 'on',
    connect: values.connect === 'on',
    split: split !== undefined && Object.keys(split).length > 0 ? split : undefined,
    sticky: sticky === undefined ? undefined : parseSticky(sticky),
  };
}
