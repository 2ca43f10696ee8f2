import { readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { isIP } from 'node:net';
import type { Clock } from '../src/base/clock.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';

const maxFileOctets = 65_536;
const maxUpstreams = 8;
const rereadMs = 2000;
/** How long a server that did not answer is asked last. */
const troubledMs = 10_000;

/** The servers of a resolv.conf(5), on port 53. */
export function parseResolvConf(text: string): Endpoint[] {
  const endpoints: Endpoint[] = [];
  for (const line of text.split('\n')) {
    const address = /^\s*nameserver\s+(\S+)/.exec(line)?.[1] ?? '';
    if (isIP(address) !== 0 && endpoints.length < maxUpstreams) endpoints.push({ address, port: 53 });
  }
  return endpoints;
}

export interface UpstreamsOptions {
  /** `auto`: those of `resolvConf`, read again as it changes. */
  readonly upstream: 'auto' | readonly Endpoint[];
  readonly resolvConf: string;
  /** Whether an address and port is this very name server. */
  readonly isOwn: (endpoint: Endpoint) => boolean;
  readonly clock: Clock;
}

/** The servers that other zones are forwarded to, in the order in which to try them. */
export class Upstreams {
  readonly #options: UpstreamsOptions;
  #listed: readonly Endpoint[];
  #readAtMs: number;
  #reading = false;
  /** By `address:port`: until when it is tried last. */
  readonly #troubled = new Map<string, number>();

  constructor(options: UpstreamsOptions) {
    this.#options = options;
    this.#readAtMs = options.clock.monotonicMs();
    this.#listed = options.upstream === 'auto' ? readNow(options.resolvConf) : options.upstream.slice(0, maxUpstreams);
  }

  /** Without our own addresses, so that no question comes back to us; those in trouble last. */
  inOrder(): readonly Endpoint[] {
    this.#rereadSoon();
    const nowMs = this.#options.clock.monotonicMs();
    const fit = this.#listed.filter((endpoint) => !this.#options.isOwn(endpoint));
    const troubled = (endpoint: Endpoint): boolean => (this.#troubled.get(formatEndpoint(endpoint)) ?? 0) > nowMs;
    if (this.#troubled.size === 0 || !fit.some(troubled)) return fit;
    return [...fit.filter((endpoint) => !troubled(endpoint)), ...fit.filter(troubled)];
  }

  failed(endpoint: Endpoint): void {
    if (this.#troubled.size >= maxUpstreams * 4) this.#troubled.clear();
    this.#troubled.set(formatEndpoint(endpoint), this.#options.clock.monotonicMs() + troubledMs);
  }

  answered(endpoint: Endpoint): void {
    if (this.#troubled.size > 0) this.#troubled.delete(formatEndpoint(endpoint));
  }

  /** The file is read again at most every two seconds, and only while somebody asks. */
  #rereadSoon(): void {
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#options.upstream !== 'auto' || this.#reading || nowMs - this.#readAtMs < rereadMs) return;
    this.#reading = true;
    this.#readAtMs = nowMs;
    readStart(this.#options.resolvConf)
      .then((text) => {
        this.#listed = parseResolvConf(text);
      })
      .catch(() => undefined)
      .finally(() => {
        this.#reading = false;
      });
  }
}

/** An unreadable file means no upstream yet; it is tried again. */
function readNow(path: string): readonly Endpoint[] {
  try {
    return parseResolvConf(readFileSync(path, 'utf8').slice(0, maxFileOctets));
  } catch {
    return [];
  }
}

async function readStart(path: string): Promise<string> {
  const file = await open(path, 'r');
  try {
    const { bytesRead, buffer } = await file.read(Buffer.alloc(maxFileOctets), 0, maxFileOctets, 0);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
}
