import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer as createHttp2Server, createSecureServer } from 'node:http2';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer as createTlsServer } from 'node:tls';
import {
  Server as GrpcServer,
  ServerCredentials,
  type ServerUnaryCall,
  type ServiceDefinition,
  type sendUnaryData,
} from '@grpc/grpc-js';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { unless } from '../../test/support/needs.ts';
import { waitFor } from '../../test/support/wait.ts';
import { type CheckSpec, checkDefaults } from '../model/check.ts';
import { grpcProbe } from './grpc.ts';
import { decodeAnswer, encodeRequest } from './grpc-health.ts';
import { httpProbe } from './http.ts';
import type { ProbeResult } from './probe.ts';
import { Trust } from './trust.ts';

const check = (over: Partial<CheckSpec> = {}): CheckSpec => ({ kind: 'grpc', ...checkDefaults, ...over });
const soon = (): AbortSignal => AbortSignal.timeout(5000);
const certified = unless('command:openssl');
const probe = grpcProbe(new Trust());

const tool = 'openssl';

/** A certificate for 127.0.0.1 that is its own authority, and another one of the kind. */
function certificates(t: Test): { key: Buffer; cert: Buffer; file: string; others: string } {
  const folder = mkdtempSync(join(tmpdir(), 'legate-checks-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const make = (name: string, subject: string): Buffer => {
    const file = (suffix: string): string => join(folder, `${name}.${suffix}`);
    const names = ['-subj', '/CN=legate test', '-addext', subject];
    const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
    execFileSync(tool, ['req', ...kind, ...names, '-keyout', file('key'), '-out', file('pem')], { stdio: 'ignore' });
    return readFileSync(file('pem'));
  };
  const cert = make('own', 'subjectAltName=IP:127.0.0.1');
  make('other', 'subjectAltName=IP:127.0.0.1');
  const key = readFileSync(join(folder, 'own.key'));
  return { key, cert, file: join(folder, 'own.pem'), others: join(folder, 'other.pem') };
}

/** Listens on loopback; its sockets are known, so that a test can see that none is left. */
async function listening(t: Test, server: Server): Promise<{ address: string; port: number; sockets: Set<Socket> }> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    return new Promise((resolve) => server.close(resolve));
  });
  return { address: '127.0.0.1', port: (server.address() as AddressInfo).port, sockets };
}

type Answer = Buffer | { readonly code: number; readonly details: string } | undefined;

/** A real gRPC server; `answer` has the service asked for and gives the message, a refusal, or nothing at all. */
async function grpcServer(
  t: Test,
  answer: ((service: string) => Answer) | undefined,
  credentials = ServerCredentials.createInsecure(),
): Promise<{ address: string; port: number }> {
  const server = new GrpcServer();
  const pass = (bytes: Buffer): Buffer => bytes;
  const definition: ServiceDefinition = {
    Check: {
      path: '/grpc.health.v1.Health/Check',
      requestStream: false,
      responseStream: false,
      requestSerialize: pass,
      requestDeserialize: pass,
      responseSerialize: pass,
      responseDeserialize: pass,
    },
  };
  if (answer !== undefined) {
    server.addService(definition, {
      Check(call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>) {
        const said = answer(call.request.subarray(2).toString('utf8'));
        if (Buffer.isBuffer(said)) done(null, said);
        else if (said !== undefined) done(said);
      },
    });
  }
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error ? reject(error) : resolve(bound))),
  );
  t.teardown(() => server.forceShutdown());
  return { address: '127.0.0.1', port };
}

const serving = Buffer.from([0x08, 1]);

t.test('grpc: the standard health service of a real server', async (t) => {
  const answers: Readonly<Record<string, Answer>> = {
    '': serving,
    up: serving,
    down: Buffer.from([0x08, 2]),
    unknown: Buffer.alloc(0),
    'no-such': Buffer.from([0x08, 3]),
    'of the future': Buffer.from([0x08, 9]),
    more: Buffer.from([0x12, 1, 65, 0x1d, 1, 2, 3, 4, 0x08, 1]),
    missing: { code: 5, details: 'unknown service' },
    refused: { code: 16, details: 'who are you? ä\u001b[31m' },
    garbage: Buffer.from([0x0a, 200, 1]),
    large: Buffer.alloc(5000, 0x08),
  };
  const at = await grpcServer(t, (service) => answers[service]);
  const cases: [service: string, verdict: ProbeResult['verdict'], output: string | RegExp][] = [
    ['', 'pass', 'grpc: SERVING'],
    ['up', 'pass', 'grpc up: SERVING'],
    ['down', 'fail', 'grpc down: NOT_SERVING'],
    ['unknown', 'fail', 'grpc unknown: UNKNOWN'],
    ['no-such', 'fail', 'grpc no-such: SERVICE_UNKNOWN'],
    ['of the future', 'fail', 'grpc of the future: status 9'],
    ['more', 'pass', 'grpc more: SERVING'],
    ['missing', 'fail', 'grpc missing: its health service does not know missing (NOT_FOUND)'],
    ['refused', 'fail', 'grpc refused: UNAUTHENTICATED: who are you? ä\\u001b[31m'],
    ['garbage', 'fail', 'grpc garbage: its answer is not a HealthCheckResponse'],
    ['large', 'fail', /its answer has more than 1024 bytes/],
  ];
  for (const [service, verdict, output] of cases) {
    const asked = service === '' ? check() : check({ grpcService: service });
    t.match(await probe(at, asked, soon()), { verdict, output }, service);
  }
  t.match(await probe(await grpcServer(t, undefined), check(), soon()), {
    verdict: 'fail',
    output: 'grpc: the server has no health service (UNIMPLEMENTED)',
  });
});

t.test('grpc: what is no gRPC server fails in words, and nothing is left behind', { skip: certified }, async (t) => {
  const { key, cert } = certificates(t);
  const flood = (socket: Socket): void => {
    socket.resume();
    const write = (): void => {
      while (!socket.destroyed && socket.write(Buffer.alloc(65536, 0x41)));
      if (!socket.destroyed) socket.once('drain', write);
    };
    write();
  };
  const http2 = createHttp2Server();
  http2.on('stream', (stream) => {
    stream.respond({ ':status': 200, 'content-type': 'text/html' });
    stream.end('hello');
  });
  const noStatus = createHttp2Server();
  noStatus.on('stream', (stream) => {
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' });
    stream.end(Buffer.from([0, 0, 0, 0, 2, 8, 1]));
  });
  const lost = createHttp2Server();
  lost.on('stream', (stream) => {
    stream.respond({ ':status': 404 });
    stream.end();
  });
  const cases: [what: string, server: Server, over: Partial<CheckSpec>, output: RegExp][] = [
    ['HTTP/1.1', createHttpServer((_, response) => response.end('x')), {}, /is not a gRPC server/],
    ['an echo', createServer((socket) => socket.pipe(socket)), {}, /is not a gRPC server/],
    [
      'garbage',
      createServer((socket) => socket.resume().end('\u0000nothing like it\r\n'.repeat(100))),
      {},
      /is not a gRPC server/,
    ],
    ['garbage without end', createServer(flood), {}, /is not a gRPC server/],
    ['hangs up', createServer((socket) => socket.destroy()), {}, /hung up|reset/],
    ['HTTP/2 without gRPC', http2, {}, /is not a gRPC server \(its answer is text\/html\)/],
    ['HTTP/2 without the path', lost, {}, /is not a gRPC server \(HTTP status 404\)/],
    ['an answer without a status', noStatus, {}, /without a status/],
    [
      'TLS to one without',
      createServer((socket) => socket.pipe(socket)),
      { tls: 'any-certificate' },
      /no TLS connection/,
    ],
    [
      'TLS without HTTP/2',
      createTlsServer({ key, cert }, (socket) => socket.on('error', () => undefined)),
      { tls: 'any-certificate' },
      /TLS but not HTTP\/2|no TLS connection/,
    ],
  ];
  for (const [what, server, over, output] of cases) {
    const { sockets, ...at } = await listening(t, server);
    const result = await probe(at, check(over), soon());
    t.match(result, { verdict: 'fail', output }, what);
    t.notMatch(result.output, /cut off/, `${what}: ended by itself`);
    t.same(await probe(at, check(over), soon()), result, `${what}: the same again`);
    await waitFor(`${what} to be left`, () => sockets.size === 0);
  }
  for (const tls of [undefined, 'any-certificate'] as const) {
    const silent = await listening(
      t,
      createServer((socket) => socket.resume()),
    );
    const cut = new AbortController();
    const asked = probe(silent, check(tls && { tls }), cut.signal);
    await waitFor('the connection', () => silent.sockets.size === 1);
    cut.abort();
    t.match(await asked, { verdict: 'fail', output: 'grpc: cut off' });
    await waitFor('a silent one to be left', () => silent.sockets.size === 0);
  }
  const mute = await grpcServer(t, () => undefined);
  t.match(await probe(mute, check(), AbortSignal.timeout(200)), { verdict: 'fail', output: 'grpc: cut off' });
  const closed = createServer();
  await new Promise<void>((resolve) => closed.listen(0, '127.0.0.1', resolve));
  const { port } = closed.address() as AddressInfo;
  await new Promise((resolve) => closed.close(resolve));
  t.match(await probe({ address: '127.0.0.1', port }, check(), soon()), {
    verdict: 'fail',
    output: `grpc: connection refused at 127.0.0.1:${port}`,
  });
});

t.test(
  'over TLS certificates are verified, and one that is not accepted comes with the way out',
  { skip: certified },
  async (t) => {
    const { key, cert, file, others } = certificates(t);
    const web = await listening(
      t,
      createHttpsServer({ key, cert }, (_, response) => response.end('ok')),
    );
    const rpc = await grpcServer(
      t,
      () => serving,
      ServerCredentials.createSsl(null, [{ private_key: key, cert_chain: cert }]),
    );
    const plainH2 = await listening(t, createSecureServer({ key, cert }));
    const trusting = new Trust([file]);
    const foreign = new Trust(['/nowhere', others]);
    const http = (over: Partial<CheckSpec>): CheckSpec => check({ kind: 'http', path: '/', ...over });
    for (const [tls, trust, expected] of [
      ['verify', trusting, { verdict: 'pass' }],
      ['any-certificate', foreign, { verdict: 'pass' }],
      [
        'verify',
        foreign,
        { verdict: 'fail', output: /certificate .* is not accepted \(.*\); tls_skip_verify accepts it/ },
      ],
    ] as const) {
      t.match(await httpProbe(trust)(web, http({ tls }), soon()), expected, `https ${tls}`);
      t.match(await grpcProbe(trust)(rpc, check({ tls }), soon()), expected, `grpc ${tls}`);
    }
    const elsewhere = { ...web, address: '127.0.0.2' };
    const wide = await listening(t, createHttpsServer({ key, cert }));
    t.match(await httpProbe(trusting)({ ...elsewhere, port: wide.port }, http({ tls: 'verify' }), soon()), {
      verdict: 'fail',
    });
    t.match(await httpProbe(trusting)(web, http({}), soon()), { verdict: 'fail' }, 'without TLS to one with it');
    const plain = await listening(
      t,
      createHttpServer((_, response) => response.end('x')),
    );
    t.match(await httpProbe(trusting)(plain, http({ tls: 'verify' }), soon()), {
      verdict: 'fail',
      output: /GET \/: no TLS connection to .*does it speak TLS there\?/,
    });
    t.match(await grpcProbe(trusting)(plainH2, check({ tls: 'verify' }), AbortSignal.timeout(300)), {
      verdict: 'fail',
    });
    await waitFor('all to be left', () => web.sockets.size + plainH2.sockets.size === 0);
    writeFileSync(others, cert);
    t.match(
      await httpProbe(foreign)(web, http({ tls: 'verify' }), soon()),
      { verdict: 'pass' },
      'the file is read anew',
    );
  },
);

t.test('the messages of grpc.health.v1 are read strictly', async (t) => {
  t.same([...encodeRequest('')], [0, 0, 0, 0, 0]);
  t.same([...encodeRequest('db')], [0, 0, 0, 0, 4, 0x0a, 2, 0x64, 0x62]);
  t.equal(encodeRequest('x'.repeat(300)).length, 5 + 3 + 300, 'a length of two bytes');
  const framed = (...bytes: number[]): Buffer => Buffer.from([0, 0, 0, 0, bytes.length, ...bytes]);
  const cases: [bytes: Buffer, expected: object][] = [
    [framed(8, 1), { status: 'SERVING' }],
    [framed(), { status: 'UNKNOWN' }],
    [framed(8, 2, 8, 1), { status: 'SERVING' }],
    [framed(8, 0x81, 0), { status: 'SERVING' }],
    [Buffer.from([]), { fault: 'has no message' }],
    [Buffer.from([1, 0, 0, 0, 0]), { fault: /compressed/ }],
    [Buffer.from([0, 0, 0, 0, 3, 8, 1]), { fault: /one message/ }],
    [framed(8), { fault: /HealthCheckResponse/ }],
    [framed(0, 1), { fault: /HealthCheckResponse/ }],
    [framed(0x0d, 1, 0, 0, 0), { fault: /HealthCheckResponse/ }],
    [framed(0x13), { fault: /HealthCheckResponse/ }],
    [framed(0x12, 9, 1), { fault: /HealthCheckResponse/ }],
    [framed(8, ...Array(11).fill(0x80)), { fault: /HealthCheckResponse/ }],
  ];
  for (const [bytes, expected] of cases) t.match(decodeAnswer(bytes), expected, bytes.toString('hex'));
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
      const answer = decodeAnswer(Buffer.from([0, 0, 0, 0, bytes.length, ...bytes]));
      return 'status' in answer || 'fault' in answer;
    }),
  );
});
