/** The `http-proxy` package as a peer of the HTTP benchmark, before the port in its argument. It ends with its parent. */
import { Agent, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import process from 'node:process';
import httpProxy from 'http-proxy';

const host = '127.0.0.1';
const [, , origin] = process.argv;

if (process.send !== undefined && origin !== undefined) {
  process.on('disconnect', () => process.exit(0));
  // Started with --expose-gc, it collects garbage when told so.
  process.on('message', () => {
    globalThis.gc?.();
    process.send?.([]);
  });
  const agent = new Agent({ keepAlive: true, maxFreeSockets: 1024 });
  const proxy = httpProxy.createProxyServer({ target: `http://${host}:${origin}`, agent, xfwd: true });
  proxy.on('error', (_error, _request, response) => {
    if ('writeHead' in response && !response.headersSent) response.writeHead(502);
    response.end();
  });
  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => proxy.web(request, response));
  server.listen({ host, port: 0, backlog: 4096 }, () => process.send?.([(server.address() as AddressInfo).port]));
}
