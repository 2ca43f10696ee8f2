import { randomInt } from 'node:crypto';
import type { Clock } from '../src/base/clock.ts';
import type { Observable } from '../src/base/feed.ts';
import type { CounterCell, Metrics } from '../src/base/metrics.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import type { Endpoint, Ipv4Range } from '../src/model/address.ts';
import type { CallerTable } from '../src/model/caller.ts';
import type { DeclaredLink } from '../src/model/link.ts';
import { nameFault } from '../src/model/names.ts';
import type { Topology } from '../src/model/topology.ts';
import { isOneLabel } from './alias-set.ts';
import { type Answer, answerOf } from './answer.ts';
import { AnswerCache } from './answer-cache.ts';
import { type AskerEntry, Askers } from './askers.ts';
import { HeldQuestions } from './held-questions.ts';
import type { Request, Stage } from './stage.ts';
import { encodeOpt, encodeTemplate, isReusable, limitOf, render, type Template } from './template.ts';
import { classIn, headerLength, isMetaType, maxMessage, rcode, rcodeName } from './wire/constants.ts';
import { type Name, nameBytes, readLabels } from './wire/name.ts';
import { QueryScan } from './wire/query.ts';

/** How a packet came. */
export interface Via {
  readonly transport: 'udp' | 'tcp';
  /** The concrete address that was asked. */
  readonly serverAddress: string | undefined;
}

export interface HandlerOptions {
  readonly stages: readonly Stage[];
  readonly snapshots: Observable<Snapshot>;
  readonly topology: Observable<Topology>;
  /** Whose aliases there are; they are single labels, alone or below `apex`. */
  readonly callers: Observable<CallerTable>;
  readonly apex: Name;
  readonly vipsOn: Observable<boolean>;
  readonly vipRange: Ipv4Range;
  readonly listenerOf: (service: string) => Endpoint | undefined;
  /** Whether other zones are forwarded: the RA bit. */
  readonly recursion: boolean;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

/**
 * Turns a packet into the packet that answers it. What was asked before is copied from the encoded answer and patched;
 * the rest goes through the stages. Undefined: no answer is due.
 */
export class PacketHandler {
  readonly #options: HandlerOptions;
  readonly #scan = new QueryScan(randomInt(2 ** 32 - 1) | 0);
  readonly #cache: AnswerCache;
  readonly #askers: Askers;
  readonly #held: HeldQuestions;
  readonly #apex: Buffer;
  readonly #answered = new Map<number, CounterCell>();
  readonly #dropped: CounterCell;
  readonly #cached: CounterCell;
  readonly #stale: CounterCell;
  /** What cached answers have in common, next to their service: they go when one of these changes. */
  #origin: Snapshot['origin'] = 'none';
  #topology: Topology;
  #vipsOn: boolean;

  constructor(options: HandlerOptions) {
    this.#options = options;
    this.#topology = options.topology.value;
    this.#vipsOn = options.vipsOn.value;
    this.#cache = new AnswerCache(options.listenerOf);
    this.#askers = new Askers(options);
    this.#held = new HeldQuestions(options);
    this.#apex = nameBytes(options.apex);
    const { metrics } = options;
    this.#dropped = metrics.counter('legate_dns_dropped_packets_total', 'Packets that are no queries.');
    this.#cached = metrics.counter('legate_dns_encoded_hits_total', 'Answers copied from an encoded one.');
    this.#stale = metrics.counter(
      'legate_dns_stale_answers_total',
      'Answers from a snapshot that no store has confirmed.',
    );
    metrics.gauge('legate_dns_encoded_answers_count', 'Encoded answers that are kept.', [], () => [
      [[], this.#cache.size],
    ]);
  }

  /** Encoded answers that are kept. */
  get cachedAnswers(): number {
    return this.#cache.size;
  }

  /** `address` is the asker's, IPv4 in its own form. */
  handle(packet: Buffer, address: string, via: Via): Buffer | Promise<Buffer> | undefined {
    const scan = this.#scan;
    const verdict = scan.read(packet);
    if (verdict !== 'query') {
      if (verdict !== 'drop') return this.#refuse(packet, rcode[verdictCodes[verdict]]);
      this.#dropped.value += 1;
      return undefined;
    }
    return this.#answer(packet, address, via, true);
  }

  /** Lets everybody go who waits. */
  close(): void {
    this.#held.close();
  }

  /** Answers the scanned question; `mayHold`: it has not waited yet until its asker is known. */
  #answer(packet: Buffer, address: string, via: Via, mayHold: boolean): Buffer | Promise<Buffer> {
    const scan = this.#scan;
    this.#renew();
    const snapshot = this.#options.snapshots.value;
    const asker = this.#askers.of(address);
    const limit = limitOf(scan, via.transport);
    let askerClass = asker.class;
    let alias: DeclaredLink | undefined;
    if (scan.class === classIn) {
      if (asker.aliases !== undefined) {
        alias = this.#aliasOf(packet, scan, asker);
        if (alias !== undefined) askerClass = asker.aliases.class;
      } else if (asker.isUnknown && mayHold) {
        const known = this.#untilKnown(packet, address);
        if (known !== undefined) {
          return known.then(() => {
            // Other packets have been read meanwhile.
            scan.read(packet);
            return this.#answer(packet, address, via, false);
          });
        }
      }
      const entry = this.#cache.find(packet, scan, askerClass, snapshot);
      if (entry !== undefined) {
        this.#cached.value += 1;
        entry.answered.value += 1;
        if (this.#origin === 'disk') this.#stale.value += 1;
        return render(entry.template, packet, scan, limit);
      }
    }
    return this.#ask(packet, asker, alias, askerClass, via, limit);
  }

  /** Asks the stages, without the cache and whatever the length, for one who wants to know more than the packet says. */
  async explain(packet: Buffer, address: string, serverAddress: string | undefined): Promise<Explanation | undefined> {
    const scan = new QueryScan(0);
    if (scan.read(packet) !== 'query' || isMetaType(scan.type)) return undefined;
    const asker = this.#askers.of(address);
    const alias = this.#aliasOf(packet, scan, asker);
    const via: Via = { transport: 'udp', serverAddress };
    const request = this.#request(packet, scan, asker, alias, via, maxMessage);
    const reply = (await this.#firstReply(request)) ?? refused;
    if ('relayed' in reply) return { packet: reply.relayed, upstream: reply.upstream, leftOut: [], note: undefined };
    const template = encodeTemplate(request.name, scan.type, reply, this.#options.recursion);
    const answer = render(template, packet, scan, maxMessage);
    return { packet: answer, upstream: undefined, leftOut: reply.leftOut, note: reply.extended?.text };
  }

  /** The link that the question is for, when it is an alias of the asker's own. */
  #aliasOf(packet: Buffer, scan: QueryScan, { aliases }: AskerEntry): DeclaredLink | undefined {
    const link = aliases?.find(packet);
    return link !== undefined && isOneLabel(packet, scan, this.#apex) ? link : undefined;
  }

  /**
   * Waits until it is known who asks, when that can make a difference: for every name that an alias can have, services'
   * names included, because an alias of the same name goes before them.
   */
  #untilKnown(packet: Buffer, address: string): Promise<void> | undefined {
    if (!isOneLabel(packet, this.#scan, this.#apex)) return undefined;
    const label = packet.toString('latin1', headerLength + 1, headerLength + 1 + (packet[headerLength] ?? 0));
    return nameFault(label.toLowerCase()) === undefined ? this.#held.hold(address) : undefined;
  }

  #ask(
    packet: Buffer,
    asker: AskerEntry,
    alias: DeclaredLink | undefined,
    askerClass: number,
    via: Via,
    limit: number,
  ): Buffer | Promise<Buffer> {
    const scan = this.#scan;
    if (scan.class !== classIn || isMetaType(scan.type)) return this.#refuse(packet, rcode.REFUSED);
    const request = this.#request(packet, scan, asker, alias, via, limit);
    const reply = this.#firstReply(request) ?? refused;
    if (reply instanceof Promise) {
      return reply.then((later) => {
        if ('relayed' in later) return this.#count((later.relayed[3] ?? 0) & 15, later.relayed);
        // Other packets have been read meanwhile.
        scan.read(packet);
        return this.#encode(request, later, askerClass, false);
      });
    }
    return 'relayed' in reply
      ? this.#count((reply.relayed[3] ?? 0) & 15, reply.relayed)
      : this.#encode(request, reply, askerClass, true);
  }

  #firstReply(request: Request): ReturnType<Stage['answer']> {
    for (const stage of this.#options.stages) {
      const reply = stage.answer(request);
      if (reply !== undefined) return reply;
    }
    return undefined;
  }

  #request(
    packet: Buffer,
    scan: QueryScan,
    { asker }: AskerEntry,
    alias: DeclaredLink | undefined,
    via: Via,
    limit: number,
  ): Request {
    return {
      name: readLabels(packet, headerLength),
      type: scan.type,
      asker,
      alias,
      serverAddress: via.serverAddress,
      transport: via.transport,
      recursionDesired: scan.recursionDesired,
      packet,
      id: scan.id,
      questionEnd: scan.questionEnd,
      ednsAt: scan.hasEdns ? scan.ednsAt : 0,
      limit,
    };
  }

  #encode(request: Request, answer: Answer, askerClass: number, keep: boolean): Buffer {
    const scan = this.#scan;
    const template: Template = encodeTemplate(request.name, scan.type, answer, this.#options.recursion);
    const { basis } = answer;
    if (keep && basis !== undefined && isReusable(template)) {
      this.#cache.put(scan, askerClass, this.#options.snapshots.value, template, basis, this.#counterOf(answer.rcode));
    }
    if (this.#origin === 'disk' && answer.authoritative) this.#stale.value += 1;
    return this.#count(answer.rcode, render(template, request.packet, scan, request.limit));
  }

  /** An answer without records: the question if it could be read, and OPT if it was sent. */
  #refuse(packet: Buffer, code: number): Buffer {
    const scan = this.#scan;
    const end = Math.max(headerLength, scan.questionEnd);
    const opt = scan.hasEdns ? encodeOpt(code, undefined) : Buffer.alloc(0);
    const out = Buffer.alloc(end + opt.length);
    packet.copy(out, 0, 0, 2);
    out[2] = 0x80 | ((packet[2] ?? 0) & 0x79);
    out[3] = (this.#options.recursion ? 0x80 : 0) | (code & 15);
    out[5] = scan.questionEnd > 0 ? 1 : 0;
    out[11] = scan.hasEdns ? 1 : 0;
    packet.copy(out, headerLength, headerLength, end);
    opt.copy(out, end);
    return this.#count(code, out);
  }

  #count(code: number, packet: Buffer): Buffer {
    this.#counterOf(code).value += 1;
    return packet;
  }

  #counterOf(code: number): CounterCell {
    let cell = this.#answered.get(code);
    if (cell === undefined) {
      const labels = { rcode: rcodeName(code) };
      cell = this.#options.metrics.counter('legate_dns_answers_total', 'Answers by their code.', labels);
      this.#answered.set(code, cell);
    }
    return cell;
  }

  /** Forgets encoded answers when what all of them rest on has changed. */
  #renew(): void {
    const { snapshots, topology, vipsOn } = this.#options;
    const { origin } = snapshots.value;
    if (origin === this.#origin && topology.value === this.#topology && vipsOn.value === this.#vipsOn) return;
    this.#origin = origin;
    this.#topology = topology.value;
    this.#vipsOn = vipsOn.value;
    this.#cache.clear();
  }
}

export interface Explanation {
  readonly packet: Buffer;
  /** The server that it was forwarded to; undefined when the answer is ours. */
  readonly upstream: string | undefined;
  readonly leftOut: Answer['leftOut'];
  /** The extended error's text. */
  readonly note: string | undefined;
}

const verdictCodes = { formerr: 'FORMERR', notimp: 'NOTIMP', badvers: 'BADVERS' } as const;

/** Other zones, when nobody forwards. */
const refused = answerOf({ rcode: rcode.REFUSED, authoritative: false });
