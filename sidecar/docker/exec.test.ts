import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { waitFor } from '../../test/support/wait.ts';
import { DockerClient } from './client.ts';
import { execThrough } from './exec.ts';
import { ExecOutput } from './exec-output.ts';

const id = 'a'.repeat(64);

function frame(stream: number, text: string): Buffer {
  const body = Buffer.from(text);
  const head = Buffer.from([stream, 0, 0, 0, 0, 0, 0, 0]);
  head.writeUInt32BE(body.length, 4);
  return Buffer.concat([head, body]);
}

t.test('the outputs are taken apart, however the bytes arrive', (t) => {
  const bytes = Buffer.concat([frame(1, '4'), frame(1, '2\none '), frame(2, 'two '), frame(1, ''), frame(1, 'three')]);
  for (let size = 1; size <= bytes.length; size += 1) {
    const output = new ExecOutput(
      () => undefined,
      () => t.fail('a flood'),
    );
    for (let at = 0; at < bytes.length; at += size) output.push(bytes.subarray(at, at + size));
    t.equal(output.pid, 42);
    t.equal(output.text, 'one two three');
  }
  const cases: [what: string, bytes: Buffer, expected: object][] = [
    ['not a pid', frame(1, 'OCI runtime exec failed\n'), { pid: undefined, text: 'OCI runtime exec failed\n' }],
    ['digits without an end', frame(1, '123'), { pid: undefined, text: '123' }],
    ['too many digits', frame(1, '12345678901\n'), { pid: undefined, text: '12345678901\n' }],
    ['no frame', Buffer.from('HTTP/1.1 200 OK\r\n\r\n'), { isBroken: true }],
    ['a pid on the other output', frame(2, '7\nx'), { pid: 7, text: 'x' }],
  ];
  for (const [what, given, expected] of cases) {
    const output = new ExecOutput(
      () => undefined,
      () => undefined,
    );
    output.push(given);
    for (const [key, value] of Object.entries(expected)) t.equal(output[key as keyof ExecOutput], value, what);
  }
  let floods = 0;
  const output = new ExecOutput(
    () => undefined,
    () => {
      floods += 1;
    },
  );
  output.push(frame(1, '9\n'));
  for (let index = 0; index < 40; index += 1) output.push(frame(1, 'x'.repeat(65536)));
  t.equal(floods, 1);
  t.equal(output.text.length, 4096);
  t.end();
});

/** A Docker Engine that answers each path as a test says. */
async function engine(
  t: Test,
  answer: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<DockerClient> {
  const folder = mkdtempSync(`${tmpdir()}/legate-exec-`);
  const server = createServer((request, response) => {
    request.resume();
    answer(request, response);
  });
  await new Promise<void>((resolve) => server.listen(`${folder}/docker.sock`, resolve));
  const client = new DockerClient({ socket: `${folder}/docker.sock`, timeoutMs: 1000 });
  t.teardown(async () => {
    await client.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    rmSync(folder, { recursive: true });
  });
  return client;
}

t.test('an engine that misbehaves harms nobody', async (t) => {
  const created = (response: ServerResponse): unknown => response.writeHead(201).end(JSON.stringify({ Id: id }));
  const cases: [what: string, start: (response: ServerResponse) => void, expected: object][] = [
    [
      'no frames',
      (response) => response.end('hello, this is no stream'),
      { kind: 'refused', reason: /something else/ },
    ],
    ['nothing at all', (response) => response.end(), { kind: 'refused', reason: 'the Docker Engine did not start it' }],
    [
      'a refusal',
      (response) =>
        response.writeHead(500).end('{"message":"OCI runtime exec failed: /bin/sh: no such file or directory"}'),
      { kind: 'refused', reason: 'the container has no /bin/sh to run it with' },
    ],
    [
      'hangs up',
      (response) => response.destroy(),
      { kind: 'away', reason: /the connection to the Docker Engine failed/ },
    ],
    [
      'a good one',
      (response) => response.end(Buffer.concat([frame(1, '8\nfine')])),
      { kind: 'ended', exitStatus: 0, output: 'fine' },
    ],
  ];
  for (const [what, start, expected] of cases) {
    const client = await engine(t, ({ url = '' }, response) => {
      if (url.endsWith('/json')) response.end('{"Running":false,"ExitCode":0}');
      else if (url.endsWith('/start')) start(response);
      else created(response);
    });
    const result = await execThrough(client)('c', 'true', AbortSignal.timeout(5000), () => undefined);
    t.match(result, expected, what);
  }

  const asked: string[] = [];
  const silent = await engine(t, ({ url = '' }) => asked.push(url));
  const started = performance.now();
  t.match(await execThrough(silent)('c', 'true', AbortSignal.timeout(100), () => undefined), { kind: 'refused' });
  t.ok(performance.now() - started < 3000, 'the wait for an engine that is silent ends with the time for the check');
  t.equal(asked.length, 1, 'and nothing is to be killed');

  const commands: string[] = [];
  const endless = await engine(t, (request, response) => {
    if (request.url?.endsWith('/start')) {
      if (commands.length > 1) response.end();
      else response.write(Buffer.concat([frame(1, '77\n'), frame(1, 'so far')]));
      return;
    }
    request.on('data', (chunk: Buffer) => commands.push(chunk.toString()));
    request.on('end', () => created(response));
  });
  const cut = new AbortController();
  let printed = (): string => '';
  const running = execThrough(endless)('c', 'sleep 1000', cut.signal, (given) => {
    printed = given;
  });
  await waitFor('its output', () => printed() === 'so far');
  cut.abort();
  await running;
  t.match(commands, [/sleep 1000/, /kill -KILL -77/]);
});
