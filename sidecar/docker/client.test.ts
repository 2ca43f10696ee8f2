import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { isLegateError } from '../../src/base/errors.ts';
import { waitFor } from '../../test/support/wait.ts';
import { DockerClient } from './client.ts';
import { engineFault } from './engine-faults.ts';
import { type DockerEvent, LineSplitter, parseEvent, SeenEvents } from './events.ts';
import { signalNumber } from './signals.ts';

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

/** Something that listens on a unix socket and answers as `handler` says. */
async function engine(t: Test, handler: Handler): Promise<string> {
  const folder = mkdtempSync(`${tmpdir()}/legate-docker-`);
  const socket = `${folder}/docker.sock`;
  const server = createServer(handler);
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  t.teardown(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    rmSync(folder, { recursive: true });
  });
  return socket;
}

function client(t: Test, socket: string, timeoutMs = 5000): DockerClient {
  const made = new DockerClient({ socket, timeoutMs });
  t.teardown(() => made.close());
  return made;
}

const json =
  (value: unknown): Handler =>
  (_, response) =>
    response.end(JSON.stringify(value));
const neverAborted = new AbortController().signal;

t.test('the API version is the newest that both know', async (t) => {
  for (const [theirs, minimum, expected] of [
    ['1.41', '1.12', '1.41'],
    ['1.47', '1.24', '1.47'],
    ['1.51', '1.24', '1.47'],
    ['1.52', '1.44', '1.47'],
    ['1.100', '1.44', '1.47'],
    ['1.41', undefined, '1.41'],
  ] as const) {
    const paths: string[] = [];
    const socket = await engine(t, (request, response) => {
      paths.push(request.url ?? '');
      const answer = { Version: '29.0.0', ApiVersion: theirs, MinAPIVersion: minimum };
      response.end(JSON.stringify(request.url === '/version' ? answer : []));
    });
    const docker = client(t, socket);
    const version = await docker.negotiate();
    t.match(version, { engine: '29.0.0', api: expected });
    t.ok(Math.abs(version.nowMs - Date.now()) < 5000);
    await docker.runningContainers();
    await docker.negotiate();
    t.same(paths, ['/version', `/v${expected}/containers/json`, '/version']);
  }
  const refused = (answer: unknown) => async (): Promise<unknown> =>
    client(t, await engine(t, json(answer))).negotiate();
  await t.rejects(refused({ Version: '40', ApiVersion: '1.90', MinAPIVersion: '1.60' }), {
    code: 'E_DOCKER',
    message: /wants API 1\.60 or newer/,
  });
  await t.rejects(refused({ Version: '1.9', ApiVersion: '1.21', MinAPIVersion: '1.12' }), {
    code: 'E_DOCKER',
    message: /speaks API 1\.21/,
  });
  await t.rejects(refused({ hello: 'world' }), { code: 'E_DOCKER', message: /is not that of a Docker Engine/ });
});

t.test('whatever goes wrong has a likely cause and a hint', async (t) => {
  const fault = async (socket: string, timeoutMs = 5000): Promise<unknown> => {
    const docker = client(t, socket, timeoutMs);
    return docker.runningContainers().then(
      () => undefined,
      (error: unknown) =>
        isLegateError(error) ? { code: error.code, message: error.message, hint: error.hint } : error,
    );
  };
  t.match(await fault('/nowhere/docker.sock'), {
    code: 'E_DOCKER',
    message: 'no Docker socket at /nowhere/docker.sock',
    hint: 'Is the Engine running? Otherwise set docker.socket or docker.expose: off.',
  });
  t.match(await fault('/etc/hostname'), { message: /nothing answers at the Docker socket/ });
  const denied = engineFault('/s', '/version', 1000, Object.assign(new Error('x'), { code: 'EACCES' }));
  t.match(denied, { code: 'E_DOCKER', message: 'no permission to open the Docker socket /s', hint: /group docker/ });
  const startedMs = performance.now();
  t.match(await fault(await engine(t, () => undefined), 150), {
    code: 'E_DOCKER',
    message: /did not answer GET \/containers\/json .* within 0\.15 s/,
  });
  const drip: Handler = (_, response) => {
    const timer = setInterval(() => response.write(' '), 20);
    response.on('close', () => clearInterval(timer));
  };
  t.match(await fault(await engine(t, drip), 150), { message: /did not answer/ }, 'also when it drips');
  t.ok(performance.now() - startedMs < 3000);
  t.match(await fault(await engine(t, (_, response) => response.end('<html>'))), {
    code: 'E_DOCKER',
    message: /is not that of a Docker Engine/,
  });
  t.match(await fault(await engine(t, json({ no: 'list' }))), { message: /is not that of a Docker Engine/ });
  const angry: Handler = (_, response) => response.writeHead(500).end('{"message":"it \\u001b[31mhurts"}');
  t.match(await fault(await engine(t, angry)), {
    message: 'the Docker Engine answers 500 to GET /containers/json: it \\u001b[31mhurts',
  });
  t.match(await fault(await engine(t, (request) => request.socket.destroy())), {
    code: 'E_DOCKER',
    message: /the connection to the Docker Engine failed/,
  });
  const flood: Handler = (_, response) => {
    const chunk = Buffer.alloc(1 << 20, 32);
    const more = (): void => {
      while (!response.destroyed && response.write(chunk));
      response.once('drain', more);
    };
    more();
  };
  t.match(await fault(await engine(t, flood), 20_000), { message: /is larger than \d+ bytes/ });
});

t.test('one container, and one that is not there', async (t) => {
  const id = 'b'.repeat(64);
  const socket = await engine(t, (request, response) => {
    if (request.url?.includes(id)) response.end(JSON.stringify({ Id: id, Name: '/x' }));
    else response.writeHead(404).end('{"message":"No such container"}');
  });
  const docker = client(t, socket);
  t.match(await docker.inspectContainer(id), { id, name: 'x', running: false });
  t.equal(await docker.inspectContainer('c'.repeat(64)), undefined);
  t.equal(await docker.inspectImage('sha256:5'), undefined);
  await t.rejects(docker.networks(), { code: 'E_NOT_FOUND' });
});

t.test('a request ends when its owner gives up', async (t) => {
  const docker = client(t, await engine(t, () => undefined));
  const controller = new AbortController();
  const asked = docker.runningContainers(controller.signal);
  controller.abort(new Error('enough'));
  await t.rejects(asked, { message: 'enough' });
});

const kill = {
  Type: 'container',
  Action: 'kill',
  Actor: { ID: 'd'.repeat(64), Attributes: { signal: '15' } },
  timeNano: 1_700_000_000_000_000_000,
};

t.test('events come as they happen, however the stream is cut', async (t) => {
  let respond: ServerResponse | undefined;
  let url = '';
  const socket = await engine(t, (request, response) => {
    url = decodeURIComponent(request.url ?? '');
    respond = response;
    response.flushHeaders();
  });
  const events: DockerEvent[] = [];
  let garbage = 0;
  const sink = { onEvent: (event: DockerEvent) => events.push(event), onGarbage: () => (garbage += 1) };
  const stream = await client(t, socket).openEvents(1_700_000_000_000_000_001n, sink, neverAborted);
  t.match(url, /since=1700000000\.000000001&/);
  t.match(url, /"kill"/);
  const line = `${JSON.stringify(kill)}\n`;
  respond?.write(line.slice(0, 30));
  respond?.write(`${line.slice(30)}rubbish\n\n{"Type":"container"}\n`);
  respond?.write(`${'x'.repeat(600_000)}\n${line}`);
  await waitFor('all lines', () => events.length === 2);
  t.same(events[0], { type: 'container', action: 'kill', id: 'd'.repeat(64), timeNano: kill.timeNano, signal: 15 });
  t.equal(garbage, 3);
  respond?.end();
  await t.rejects(stream.ended, { code: 'E_DOCKER', message: /closed the stream of events/ });
  const cut = await client(t, socket).openEvents(0n, sink, neverAborted);
  respond?.destroy();
  await t.rejects(cut.ended, { code: 'E_DOCKER' });
});

t.test('lines of events are hostile', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.string({ maxLength: 12 }).map((text) => text.replaceAll('\n', ' '))),
      fc.array(fc.nat(9)),
      (texts, cuts) => {
        const lines: string[] = [];
        const splitter = new LineSplitter(
          1000,
          (line) => lines.push(line),
          () => lines.push('too long'),
        );
        let bytes = Buffer.from(texts.map((text) => `${text}\n`).join(''));
        for (const cut of cuts) {
          splitter.push(bytes.subarray(0, cut));
          bytes = bytes.subarray(cut);
        }
        splitter.push(bytes);
        const expected = texts.filter((text) => text.trim() !== '');
        return lines.length === expected.length && lines.every((line, index) => line === expected[index]);
      },
    ),
  );
  const junk = fc.oneof(
    fc.json(),
    fc.string({ unit: 'binary' }),
    fc
      .record({
        Type: fc.constantFrom('container', 'network', 'image'),
        Action: fc.oneof(fc.constantFrom('kill', 'die'), fc.anything()),
        Actor: fc.oneof(fc.anything(), fc.record({ ID: fc.anything(), Attributes: fc.anything() })),
        timeNano: fc.oneof(fc.double(), fc.anything()),
      })
      .map((event) => JSON.stringify(event) ?? ''),
  );
  fc.assert(
    fc.property(junk, (line) => {
      const event = parseEvent(line);
      return (
        event === undefined || (event.action.length <= 128 && event.id.length <= 64 && Number.isFinite(event.timeNano))
      );
    }),
    { numRuns: 3000 },
  );
  const seen = new SeenEvents();
  const event = parseEvent(JSON.stringify(kill));
  if (event === undefined) throw new Error('the sample is not an event');
  t.equal(seen.add(event), true);
  t.equal(seen.add(event), false);
  t.equal(seen.lastNano, kill.timeNano);
});

t.test('signals as Docker writes them', async (t) => {
  for (const [text, number] of [
    ['15', 15],
    ['TERM', 15],
    ['SIGTERM', 15],
    ['sigquit', 3],
    ['9', 9],
    ['SIGRTMIN+3', 37],
    ['RTMAX-1', 63],
    ['RTMIN', 34],
    ['', undefined],
    ['0', undefined],
    ['65', undefined],
    ['SIGRTMIN+31', undefined],
    ['SIGNONE', undefined],
    ['constructor', undefined],
  ] as const)
    t.equal(signalNumber(text), number, text);
});
