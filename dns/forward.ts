import type { Conditions } from '../src/base/conditions.ts';
import type { CounterCell, Metrics } from '../src/base/metrics.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';
import { type Answer, answerOf } from './answer.ts';
import type { Reply, Request, Stage } from './stage.ts';
import { TcpExchange } from './tcp-exchange.ts';
import { encodeOpt } from './template.ts';
import { type NoAnswer, UdpExchange } from './udp-exchange.ts';
import { Upstreams, type UpstreamsOptions } from './upstreams.ts';
import { extendedCode, maxUdpAnswer, rcode } from './wire/constants.ts';
import { isTruncated, truncatedAnswer } from './wire/exchange.ts';

/** Questions that wait for an upstream, all together. */
export const maxInFlight = 1000;
/** Of these, over TCP. */
const maxTcpInFlight = 100;
const tryMs = 2000;
const maxTries = 3;
/** Questions in a row that no upstream answered, until that is a condition. */
const failuresUntilCondition = 3;
const silentCondition = 'dns.upstream.silent';
const loopCondition = 'dns.upstream.loop';

export interface ForwardStageOptions extends UpstreamsOptions {
  readonly conditions: Conditions;
  readonly metrics: Metrics;
}

/** Forwards to the first upstream that answers, each tried for two seconds. The last stage: it answers everything. */
export class ForwardStage implements Stage {
  readonly #conditions: Conditions;
  readonly #upstreams: Upstreams;
  readonly #udp: UdpExchange;
  readonly #tcp: TcpExchange;
  readonly #results: Readonly<Record<'answered' | 'unanswered' | 'refused' | 'loop', CounterCell>>;
  #inFlight = 0;
  #failuresInRow = 0;

  constructor(options: ForwardStageOptions) {
    const { clock, metrics } = options;
    this.#conditions = options.conditions;
    this.#upstreams = new Upstreams(options);
    this.#udp = new UdpExchange(clock);
    this.#tcp = new TcpExchange(clock);
    const counter = (result: string): CounterCell =>
      metrics.counter('legate_dns_forwards_total', 'Questions for other zones, by what became of them.', { result });
    this.#results = {
      answered: counter('answered'),
      unanswered: counter('unanswered'),
      refused: counter('too_many'),
      loop: counter('loop'),
    };
    const help = 'Questions that wait for an upstream.';
    metrics.gauge('legate_dns_forwards_in_flight_count', help, [], () => [[[], this.#inFlight]]);
  }

  /** Questions that wait for an upstream. */
  get inFlight(): number {
    return this.#inFlight;
  }

  answer(request: Request): Reply | Promise<Reply> {
    if (!request.recursionDesired) return refusal('recursion was not desired');
    if (this.#udp.isOwn(request.id, request.packet, request.questionEnd)) return this.#loop();
    if (this.#inFlight >= maxInFlight || (request.transport === 'tcp' && this.#tcp.size >= maxTcpInFlight)) {
      this.#results.refused.value += 1;
      return failure(`more than ${maxInFlight} questions wait for an upstream`);
    }
    this.#inFlight += 1;
    return this.#forward(request).finally(() => {
      this.#inFlight -= 1;
    });
  }

  close(): void {
    this.#udp.close();
    this.#tcp.close();
  }

  async #forward(request: Request): Promise<Reply> {
    const outgoing = outgoingPacket(request);
    const servers = this.#upstreams.inOrder();
    // A lone server is tried twice: a packet may be lost.
    const tries = servers.length === 1 ? [...servers, ...servers] : servers.slice(0, maxTries);
    let unwilling: Reply | undefined;
    for (const server of tries) {
      const result = await this.#ask(server, outgoing, request);
      if (result === 'closed') break;
      if (typeof result === 'string') {
        this.#upstreams.failed(server);
        continue;
      }
      const reply = { relayed: result, upstream: formatEndpoint(server) };
      const code = (result[3] ?? 0) & 15;
      if (code === rcode.SERVFAIL || code === rcode.REFUSED) {
        unwilling = reply;
        continue;
      }
      this.#answered(server);
      return reply;
    }
    if (unwilling === undefined) this.#unanswered(servers);
    return unwilling ?? failure(servers.length === 0 ? 'there is no upstream' : 'no upstream answered');
  }

  /** One server's answer, no longer than the asker can take. */
  async #ask(server: Endpoint, outgoing: Buffer, request: Request): Promise<Buffer | NoAnswer> {
    const { questionEnd, limit, transport } = request;
    if (transport === 'tcp') return this.#tcp.ask(server, outgoing, questionEnd, tryMs);
    const answer = await this.#udp.ask(server, outgoing, questionEnd, tryMs);
    if (typeof answer === 'string') return answer;
    const whole = isTruncated(answer) && this.#tcp.size < maxTcpInFlight;
    const better = whole ? await this.#tcp.ask(server, outgoing, questionEnd, tryMs) : answer;
    if (typeof better !== 'string' && better.length <= limit) return better;
    const opt = request.ednsAt > 0 ? encodeOpt(rcode.NOERROR, undefined) : Buffer.alloc(0);
    return answer.length <= limit ? answer : truncatedAnswer(answer, questionEnd, opt);
  }

  #answered(server: Endpoint): void {
    this.#results.answered.value += 1;
    this.#upstreams.answered(server);
    this.#conditions.clear(loopCondition);
    if (this.#failuresInRow >= failuresUntilCondition) this.#conditions.clear(silentCondition);
    this.#failuresInRow = 0;
  }

  #unanswered(servers: readonly Endpoint[]): void {
    this.#results.unanswered.value += 1;
    this.#failuresInRow += 1;
    if (this.#failuresInRow < failuresUntilCondition) return;
    const names = servers.map(formatEndpoint).join(', ');
    const message = names === '' ? 'there is no upstream name server' : `no upstream name server answers: ${names}`;
    const hint = 'Names of other zones fail. Set dns.upstream to servers that this host reaches, or to off.';
    this.#conditions.raise(silentCondition, 'warning', message, hint);
  }

  /** A question of ours has come back: whoever sent it forwards to us. Refused, it tries elsewhere or gives up. */
  #loop(): Answer {
    this.#results.loop.value += 1;
    const message = 'an upstream name server sends our own questions back to us';
    const hint = 'Set dns.upstream to servers that do not forward to this one.';
    this.#conditions.raise(loopCondition, 'warning', message, hint);
    return refusal('forwarding loop');
  }
}

/** The asker's packet; what it says of his limit is cut to ours, so that nothing longer comes than we may pass on. */
function outgoingPacket({ packet, ednsAt }: Request): Buffer {
  if (ednsAt === 0 || packet.readUInt16BE(ednsAt) <= maxUdpAnswer) return packet;
  const outgoing = Buffer.from(packet);
  outgoing.writeUInt16BE(maxUdpAnswer, ednsAt);
  return outgoing;
}

function failure(text: string): Answer {
  const extended = { code: extendedCode.NO_REACHABLE_AUTHORITY, text };
  return answerOf({ rcode: rcode.SERVFAIL, authoritative: false, extended });
}

function refusal(text: string): Answer {
  return answerOf({ rcode: rcode.REFUSED, authoritative: false, extended: { code: extendedCode.OTHER, text } });
}
