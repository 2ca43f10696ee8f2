import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, request, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import type { Service } from '../../../src/catalog/snapshot.ts';
import type { Instance } from '../../../src/model/instance.ts';
import { type Bed, instanceOf, serviceOf } from '../../link-plane.fixture.ts';

export interface Got {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** An instance that says its name, and remembers what it got. */
export class Named {
  readonly name: string;
  readonly got: Got[] = [];
  readonly #server: Server;

  constructor(t: Test, name: string, status: () => number = () => 200) {
    this.name = name;
    this.#server = createServer((incoming, response) => {
      const chunks: Buffer[] = [];
      incoming.on('data', (chunk: Buffer) => chunks.push(chunk));
      incoming.on('end', () => {
        const { method = '', url = '', headers } = incoming;
        this.got.push({ method, url, headers, body: Buffer.concat(chunks).toString() });
        response.setHeader('X-From', name);
        response.statusCode = status();
        response.end(name);
      });
      incoming.on('error', () => undefined);
    });
    this.#server.keepAliveTimeout = 60_000;
    t.teardown(() => this.close());
  }

  async start(): Promise<this> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return this;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  as(service: string, fields: Partial<Instance> = {}): Instance {
    return instanceOf({ name: this.name, service, port: this.port, protocol: 'http', ...fields });
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}

export function http(name: string, instances: readonly Instance[], fields: Partial<Service> = {}): Service {
  return serviceOf(instances, { name, protocol: 'http', ...fields });
}

export interface Answer {
  readonly status: number;
  readonly body: string;
  readonly headers: IncomingHttpHeaders;
}

/** One request over the listener for `db`. */
export function ask(
  bed: Bed,
  path = '/',
  {
    method = 'GET',
    headers = {},
    body = '',
  }: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const up = request(
      { port: bed.port, path, method, agent: false, headers: { Host: 'db', ...headers } },
      (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            body: Buffer.concat(chunks).toString(),
            headers: response.headers,
          }),
        );
      },
    );
    up.on('error', reject);
    up.end(body);
  });
}
