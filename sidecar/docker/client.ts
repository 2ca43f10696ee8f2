import { LegateError } from '../../src/base/errors.ts';
import { printable, truncate } from '../../src/base/text.ts';
import { type Container, type Declarations, isContainerId, parseContainer, parseDeclarations } from './container.ts';
import { foreignAnswer } from './engine-faults.ts';
import { EngineHttp } from './engine-http.ts';
import {
  containerActions,
  type DockerEvent,
  LineSplitter,
  maxEventLineBytes,
  networkActions,
  parseEvent,
} from './events.ts';
import { type DockerNetwork, parseNetworks } from './network.ts';
import { rawField, rawList, rawRecord, rawText } from './raw.ts';

/** The newest API that this code was written for, and the oldest that has all it needs (Docker 17.05). */
const newestApi = '1.47';
const oldestApi = '1.29';
const maxListBytes = 64 * 1024 * 1024;
const maxDocumentBytes = 8 * 1024 * 1024;

export interface EngineVersion {
  /** `20.10.24`. */
  readonly engine: string;
  /** The API version that is used: `1.41`. */
  readonly api: string;
  /** The engine's own time when it answered, in milliseconds, to the second; 0 when it does not say. */
  readonly nowMs: number;
}

export interface DockerClientOptions {
  /** Path of the engine's unix socket. */
  readonly socket: string;
  /** How long any one request may take, the opening of the events stream included; default 10 s. */
  readonly timeoutMs?: number;
}

export interface EventSink {
  readonly onEvent: (event: DockerEvent) => void;
  /** A line that is not an event, or is too long to be one: something may have been missed. */
  readonly onGarbage: () => void;
}

/**
 * The few requests to the Docker Engine that a source needs. Every one is bounded in time and size and fails with
 * E_DOCKER, whose hint names the likely cause; when the given signal is aborted, with the signal's reason.
 */
export class DockerClient {
  readonly #http: EngineHttp;

  constructor({ socket, timeoutMs = 10_000 }: DockerClientOptions) {
    this.#http = new EngineHttp(socket, timeoutMs);
  }

  /** Asks which API versions the engine speaks, and uses the newest that both know from then on. */
  async negotiate(signal?: AbortSignal): Promise<EngineVersion> {
    const { document, date } = await this.#http.get('/version', maxDocumentBytes, signal);
    const raw = rawRecord(document);
    const engine = printable(truncate(rawText(rawField(raw, 'Version')), 64)) || 'unknown';
    const minimum = rawText(rawField(raw, 'MinAPIVersion')) || '1.12';
    const api = agreedApi(engine, rawText(rawField(raw, 'ApiVersion')), minimum, this.#http.socket);
    this.#http.speak(api);
    const nowMs = Date.parse(date ?? '');
    return { engine, api, nowMs: Number.isFinite(nowMs) ? nowMs : 0 };
  }

  /** The ids of all running containers, paused ones included. */
  async runningContainers(signal?: AbortSignal): Promise<readonly string[]> {
    const list = await this.#list('/containers/json', signal);
    return list.map((entry) => rawText(rawField(rawRecord(entry), 'Id'))).filter(isContainerId);
  }

  /** Undefined when there is no such container. */
  async inspectContainer(id: string, signal?: AbortSignal): Promise<Container | undefined> {
    const path = `/containers/${encodeURIComponent(id)}/json`;
    const document = await this.#http.getIfExists(path, maxDocumentBytes, signal);
    if (document === undefined) return undefined;
    const container = parseContainer(document);
    if (container === undefined || container.id !== id) throw foreignAnswer(this.#http.socket, path);
    return container;
  }

  /** What the image declares; undefined when there is no such image any more. */
  async inspectImage(id: string, signal?: AbortSignal): Promise<Declarations | undefined> {
    const path = `/images/${encodeURIComponent(id)}/json`;
    const document = await this.#http.getIfExists(path, maxDocumentBytes, signal);
    if (document === undefined) return undefined;
    return parseDeclarations(rawRecord(rawField(rawRecord(document), 'Config')));
  }

  async networks(signal?: AbortSignal): Promise<readonly DockerNetwork[]> {
    return parseNetworks(await this.#list('/networks', signal));
  }

  /**
   * Opens the stream of events that happened after `sinceNano` (the engine's time in nanoseconds) and resolves when the
   * engine has begun to answer; `ended` rejects when the stream is over, for whatever reason. Each event is handed over
   * in the same turn in which its bytes arrive.
   */
  async openEvents(sinceNano: bigint, sink: EventSink, signal: AbortSignal): Promise<{ ended: Promise<never> }> {
    const since = `${sinceNano / 1_000_000_000n}.${String(sinceNano % 1_000_000_000n).padStart(9, '0')}`;
    const event = [...new Set([...containerActions, ...networkActions])];
    const filters = encodeURIComponent(JSON.stringify({ type: ['container', 'network'], event }));
    const onLine = (line: string): void => {
      const parsed = parseEvent(line);
      if (parsed === undefined) sink.onGarbage();
      else sink.onEvent(parsed);
    };
    const splitter = new LineSplitter(maxEventLineBytes, onLine, sink.onGarbage);
    return this.#http.stream(`/events?since=${since}&filters=${filters}`, (bytes) => splitter.push(bytes), signal);
  }

  /** Prepares a command inside a running container, with both of its outputs; gives the id of what was prepared. */
  async createExec(container: string, command: readonly string[], signal?: AbortSignal): Promise<string> {
    const path = `/containers/${encodeURIComponent(container)}/exec`;
    const wanted = { AttachStdout: true, AttachStderr: true, Cmd: command };
    const { document } = await this.#http.post(path, wanted, maxDocumentBytes, signal);
    const id = rawText(rawField(rawRecord(document), 'Id'));
    if (!isContainerId(id)) throw foreignAnswer(this.#http.socket, path, 'POST');
    return id;
  }

  /** Starts it; its outputs arrive in the engine's own framing, and `ended` resolves when there is no more of them. */
  startExec(
    id: string,
    onBytes: (bytes: Buffer) => void,
    signal: AbortSignal,
  ): Promise<{ readonly ended: Promise<void> }> {
    return this.#http.postStream(`/exec/${id}/start`, { Detach: false, Tty: false }, onBytes, signal);
  }

  /** Starts it without waiting for anything that it says or does. */
  async startExecDetached(id: string, signal?: AbortSignal): Promise<void> {
    await this.#http.post(`/exec/${id}/start`, { Detach: true, Tty: false }, maxDocumentBytes, signal);
  }

  /** The exit status; undefined while it runs. */
  async exitStatusOf(id: string, signal?: AbortSignal): Promise<number | undefined> {
    const path = `/exec/${id}/json`;
    const raw = rawRecord((await this.#http.get(path, maxDocumentBytes, signal)).document);
    if (rawField(raw, 'Running') === true) return undefined;
    const status = rawField(raw, 'ExitCode');
    if (typeof status !== 'number' || !Number.isInteger(status)) throw foreignAnswer(this.#http.socket, path);
    return status;
  }

  close(): Promise<void> {
    return this.#http.close();
  }

  async #list(path: string, signal: AbortSignal | undefined): Promise<readonly unknown[]> {
    const { document } = await this.#http.get(path, maxListBytes, signal);
    if (!Array.isArray(document)) throw foreignAnswer(this.#http.socket, path);
    return rawList(document);
  }
}

/** min(ours, theirs), or E_DOCKER when there is no common version. */
function agreedApi(engine: string, theirs: string, minimum: string, socket: string): string {
  if (!/^\d+\.\d+$/.test(theirs) || !/^\d+\.\d+$/.test(minimum)) throw foreignAnswer(socket, '/version');
  if (compareVersions(minimum, newestApi) > 0) {
    const message = `Docker Engine ${engine} wants API ${minimum} or newer, this Legate speaks up to ${newestApi}`;
    throw new LegateError('E_DOCKER', message, { hint: 'Use a newer Legate.' });
  }
  if (compareVersions(theirs, oldestApi) < 0) {
    const message = `Docker Engine ${engine} speaks API ${theirs}, Legate needs ${oldestApi} or newer`;
    throw new LegateError('E_DOCKER', message, { hint: 'Use a newer Docker Engine.' });
  }
  return compareVersions(theirs, newestApi) < 0 ? theirs : newestApi;
}

function compareVersions(a: string, b: string): number {
  const [aMajor = 0, aMinor = 0] = a.split('.').map(Number);
  const [bMajor = 0, bMinor = 0] = b.split('.').map(Number);
  return aMajor - bMajor || aMinor - bMinor;
}
