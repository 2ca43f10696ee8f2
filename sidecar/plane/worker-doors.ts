import { rmSync } from 'node:fs';
import type { Server } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import { describeError } from '../../src/base/errors.ts';
import type { Log } from '../../src/base/log.ts';
import { type Endpoint, parseEndpoint } from '../../src/model/address.ts';
import { type Door, doorOf } from './former-workers.ts';
import { type PassedSocket, socketGiver } from './passed-sockets.ts';
import { questionServer } from './questions.ts';

export interface WorkerDoorsOptions {
  /** The file that workers are written down in. */
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  /** Those that all workers share, by the endpoint that each was asked for with. */
  readonly servers: ReadonlyMap<string, Server>;
  readonly answers: Parameters<typeof questionServer>[0];
}

/** Longer ones are cut off by the system, and would be another's (unix(7): `sun_path`). */
const maxPathBytes = 103;

/**
 * What a worker has for the sidecar that comes after its own. Open from the start, since nobody says beforehand when
 * control is killed; the folder is one that only this user enters.
 */
export class WorkerDoors {
  readonly #options: WorkerDoorsOptions;

  constructor(options: WorkerDoorsOptions) {
    const { servers, answers, clock } = options;
    this.#options = options;
    this.#open(
      'sockets',
      socketGiver(() => [...listening(servers)], clock),
    );
    this.#open('questions', questionServer(answers));
  }

  #open(door: Door, server: Server): void {
    const path = doorOf(this.#options.path, process.pid, door);
    // Whoever misses it says what follows from that.
    const tell = (reason: string): void =>
      this.#options.log.debug('a later sidecar cannot ask this worker', { 'plane.door': door, reason });
    if (Buffer.byteLength(path) > maxPathBytes) {
      tell('the path of data_dir is too long');
      return;
    }
    server.on('error', (error) => tell(describeError(error)));
    rmSync(path, { force: true });
    server.listen(path).unref();
    process.once('exit', () => rmSync(path, { force: true }));
  }
}

function* listening(servers: ReadonlyMap<string, Server>): Iterable<PassedSocket> {
  for (const [key, server] of servers) {
    const endpoint: Endpoint | undefined = parseEndpoint(key);
    const handle: unknown = Reflect.get(server, '_handle');
    if (server.listening && endpoint !== undefined && typeof handle === 'object' && handle !== null)
      yield { endpoint, handle };
  }
}
