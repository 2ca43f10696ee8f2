import type { DeclaredLink } from '../src/model/link.ts';
import type { Asker } from '../src/model/topology.ts';
import type { Answer } from './answer.ts';
import type { Name } from './wire/name.ts';

/** A well-formed question of class IN. */
export interface Request {
  readonly name: Name;
  readonly type: number;
  readonly asker: Asker;
  /** The link of the asker's own that the name is an alias of: the name means that, and nothing else. */
  readonly alias: DeclaredLink | undefined;
  /** The concrete address that was asked; undefined when nobody was asked over the network. */
  readonly serverAddress: string | undefined;
  readonly transport: 'udp' | 'tcp';
  readonly recursionDesired: boolean;
  /** The packet as it came; nobody changes it while the request lasts. */
  readonly packet: Buffer;
  readonly id: number;
  /** The offset behind the question. */
  readonly questionEnd: number;
  /** The offset of the class field of the OPT record; 0 when there is none. */
  readonly ednsAt: number;
  /** The largest answer that may go back. */
  readonly limit: number;
}

/** Another server's answer, checked, with the asker's id, at most `Request.limit` long. */
export interface Relayed {
  readonly relayed: Buffer;
  readonly upstream: string;
}

export type Reply = Answer | Relayed;

/**
 * One step of the chain that answers questions: the first stage that does not return undefined has answered. A stage
 * never throws for what a packet says, bounds its own memory and waits, and closes what it opened in its own `close`.
 */
export interface Stage {
  answer(request: Request): Reply | Promise<Reply> | undefined;
}
