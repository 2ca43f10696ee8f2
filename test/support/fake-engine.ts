import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Teardown } from './agent.ts';

/**
 * A stand-in for Docker's engine that answers what a sidecar asks, and misbehaves as told: what a real engine does not
 * do on request.
 */
export class FakeEngine {
  readonly socket: string;
  readonly containers = new Map<string, unknown>();
  /** The API that it speaks, and the oldest. */
  api = { version: '1.41', minimum: '1.12' };
  /** Takes over a request instead of the usual answer; true when it did. */
  misbehave: (request: IncomingMessage, response: ServerResponse) => boolean = () => false;
  /** Open answers to `/events`. */
  readonly streams = new Set<ServerResponse>();
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;

  constructor(t: Teardown, socket: string) {
    this.socket = socket;
    t.teardown(() => this.close());
  }

  async listen(): Promise<this> {
    const server = createServer((request, response) => {
      response.on('error', () => undefined);
      if (!this.misbehave(request, response)) this.#answer(request, response);
    });
    server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => undefined);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    this.#server = server;
    server.listen(this.socket);
    await once(server, 'listening');
    return this;
  }

  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (server === undefined) return;
    const closed = new Promise((resolve) => server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
    rmSync(this.socket, { force: true });
  }

  /** Sockets that are open now. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** What `docker inspect` says of a container on the host's network. */
  container(id: string, name: string, labels: Readonly<Record<string, string>>): unknown {
    return {
      Id: id,
      Name: `/${name}`,
      Image: `sha256:${'a'.repeat(64)}`,
      State: { Running: true, StartedAt: '2024-01-01T00:00:00.000000000Z' },
      Config: { Image: 'fake', Labels: labels },
      HostConfig: { NetworkMode: 'host' },
      NetworkSettings: { Networks: { host: { NetworkID: 'e'.repeat(64), IPAddress: '' } }, Ports: {} },
    };
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = (request.url ?? '').replace(/^\/v[\d.]+/, '').replace(/\?.*$/, '');
    if (path === '/events') {
      response.writeHead(200, { 'content-type': 'application/json' }).flushHeaders();
      this.streams.add(response);
      response.once('close', () => this.streams.delete(response));
      return;
    }
    const document = this.#document(path);
    response.writeHead(document === undefined ? 404 : 200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(document ?? { message: 'no such thing' }));
  }

  #document(path: string): unknown {
    if (path === '/version') {
      return { Version: '20.10.0', ApiVersion: this.api.version, MinAPIVersion: this.api.minimum };
    }
    if (path === '/networks') return [{ Id: 'e'.repeat(64), Name: 'host', Driver: 'host' }];
    if (path === '/containers/json') return [...this.containers.keys()].map((id) => ({ Id: id }));
    if (/^\/images\//.test(path)) return { Config: {} };
    return this.containers.get(/^\/containers\/([0-9a-f]+)\/json$/.exec(path)?.[1] ?? '');
  }
}
