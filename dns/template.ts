import { randomInt } from 'node:crypto';
import type { Answer } from './answer.ts';
import { headerLength, maxMessage, maxUdpAnswer } from './wire/constants.ts';
import type { Name } from './wire/name.ts';
import type { QueryScan } from './wire/query.ts';
import { RecordWriter } from './wire/writer.ts';

const optLength = 11;
/** An owner that points at the question (2), type, class, TTL and length (10) are the same in every answer record. */
const sharedOctets = 12;
/** So many places at the front are chosen anew for each answer; what is behind them keeps the order of before. */
const shuffledPlaces = 8;
/** Octets of an extended error's text. */
const maxExtendedText = 120;

/**
 * An answer encoded once: header, question in lower case and records, without OPT. For each asker it is copied and
 * patched. Owners of answers point at the question, so that they have the letters' case of whoever asks.
 */
export interface Template {
  readonly bytes: Buffer;
  readonly questionEnd: number;
  readonly rcode: number;
  readonly answers: number;
  readonly authorities: number;
  /** The offset behind each record, in order. */
  readonly recordEnds: readonly number[];
  /** The length of each answer record when several have the same, so that they can be exchanged in place; else 0. */
  readonly blockLength: number;
  /** The OPT record for askers that sent one. */
  readonly opt: Buffer;
}

/** Encodes an answer. `recursion`: whether we forward other zones (the RA bit). */
export function encodeTemplate(name: Name, type: number, answer: Answer, recursion: boolean): Template {
  const writer = new RecordWriter();
  const header = Buffer.alloc(headerLength);
  header[2] = 0x80 | (answer.authoritative ? 4 : 0);
  header[3] = (recursion ? 0x80 : 0) | (answer.rcode & 15);
  header[5] = 1;
  writer.header(header);
  writer.question(name, type);
  const questionEnd = writer.length;
  const recordEnds: number[] = [];
  const write = (records: Answer['answers'], movable: boolean): number => {
    let count = 0;
    for (const record of records) {
      if (!writer.record(record, movable)) break;
      recordEnds.push(writer.length);
      count += 1;
    }
    return count;
  };
  const answers = write(answer.answers, true);
  const authorities = write(answer.authority, false);
  const additionals = write(answer.additional, false);
  const bytes = writer.bytes();
  bytes.writeUInt16BE(answers, 6);
  bytes.writeUInt16BE(authorities, 8);
  bytes.writeUInt16BE(additionals, 10);
  const blockLength = commonLength(questionEnd, recordEnds.slice(0, answers));
  const opt = encodeOpt(answer.rcode, answer.extended);
  return { bytes, questionEnd, rcode: answer.rcode, answers, authorities, recordEnds, blockLength, opt };
}

/** Whether a template can be given again and again: with several answers only when they can be exchanged in place. */
export function isReusable(template: Template): boolean {
  return template.answers < 2 || template.blockLength > 0;
}

/**
 * The packet for one asker: id, RD and the question as he wrote it, records shuffled, OPT when he sent one, and no
 * longer than `limit`. What does not fit is left out as whole records: additional ones silently (RFC 2181 section 9),
 * answers with the TC bit.
 */
export function render(template: Template, packet: Buffer, scan: QueryScan, limit: number): Buffer {
  if (template.blockLength > 0) shuffle(template);
  const full = template.bytes;
  const optBytes = scan.hasEdns ? template.opt : undefined;
  const length = full.length + (optBytes === undefined ? 0 : optBytes.length);
  if (length > limit) return renderCut(template, packet, scan, limit);
  const out = Buffer.allocUnsafe(length);
  out.set(full, 0);
  personalise(out, packet, scan);
  if (optBytes !== undefined) appendOpt(out, full.length, optBytes, scan);
  return out;
}

/** The largest answer that may go to the asker. */
export function limitOf(scan: QueryScan, transport: 'udp' | 'tcp'): number {
  return transport === 'tcp' ? maxMessage : Math.min(scan.limit, maxUdpAnswer);
}

function renderCut(template: Template, packet: Buffer, scan: QueryScan, limit: number): Buffer {
  const { recordEnds, answers, authorities, questionEnd } = template;
  // Without room for the text, the plain OPT must do; a question of at most 259 octets always leaves room for that.
  let opt = scan.hasEdns ? template.opt : undefined;
  if (opt !== undefined && questionEnd + opt.length > limit) opt = encodeOpt(template.rcode, undefined);
  const room = limit - (opt?.length ?? 0);
  let kept = 0;
  while (kept < recordEnds.length && (recordEnds[kept] ?? 0) <= room) kept += 1;
  const truncated = kept < answers + authorities;
  const keptAnswers = Math.min(kept, answers);
  if (truncated && kept > answers) kept = answers;
  const end = kept === 0 ? questionEnd : (recordEnds[kept - 1] ?? questionEnd);
  const out = Buffer.allocUnsafe(end + (opt?.length ?? 0));
  template.bytes.copy(out, 0, 0, end);
  out.writeUInt16BE(keptAnswers, 6);
  out.writeUInt16BE(truncated ? 0 : authorities, 8);
  out.writeUInt16BE(truncated ? 0 : kept - answers - authorities, 10);
  if (truncated) out[2] = (out[2] ?? 0) | 2;
  personalise(out, packet, scan);
  if (opt !== undefined) appendOpt(out, end, opt, scan);
  return out;
}

function personalise(out: Buffer, packet: Buffer, scan: QueryScan): void {
  out[0] = scan.id >> 8;
  out[1] = scan.id & 255;
  if (scan.recursionDesired) out[2] = (out[2] ?? 0) | 1;
  // CD is copied (RFC 4035 section 3.2.2).
  out[3] = (out[3] ?? 0) | ((packet[3] ?? 0) & 0x10);
  for (let index = headerLength; index < scan.questionEnd; index += 1) out[index] = packet[index] ?? 0;
}

function appendOpt(out: Buffer, at: number, opt: Buffer, scan: QueryScan): void {
  out.set(opt, at);
  if (scan.dnssecOk) out[at + 7] = 0x80;
  const count = ((out[10] ?? 0) << 8) + (out[11] ?? 0) + 1;
  out[10] = count >> 8;
  out[11] = count & 255;
}

/** OPT: our own limit as class, the upper bits of the code and version 0 as TTL, and the extended error. */
export function encodeOpt(code: number, extended: Answer['extended']): Buffer {
  const text = extended === undefined ? Buffer.alloc(0) : cutUtf8(extended.text, maxExtendedText);
  const dataLength = extended === undefined ? 0 : 6 + text.length;
  const opt = Buffer.alloc(optLength + dataLength);
  opt.writeUInt16BE(41, 1);
  opt.writeUInt16BE(maxUdpAnswer, 3);
  opt[5] = code >> 4;
  opt.writeUInt16BE(dataLength, 9);
  if (extended !== undefined) {
    opt.writeUInt16BE(15, 11);
    opt.writeUInt16BE(2 + text.length, 13);
    opt.writeUInt16BE(extended.code, 15);
    text.copy(opt, 17);
  }
  return opt;
}

/** The text in UTF-8, cut between characters to at most `limit` octets. */
export function cutUtf8(text: string, limit: number): Buffer {
  const octets = Buffer.from(text, 'utf8');
  if (octets.length <= limit) return octets;
  let end = limit;
  while (end > 0 && ((octets[end] ?? 0) & 0xc0) === 0x80) end -= 1;
  return octets.subarray(0, end);
}

function commonLength(start: number, ends: readonly number[]): number {
  const length = (ends[0] ?? start) - start;
  if (ends.length < 2) return 0;
  for (let index = 1; index < ends.length; index += 1) {
    if ((ends[index] ?? 0) - (ends[index - 1] ?? 0) !== length) return 0;
  }
  return length;
}

/** The first steps of a Fisher-Yates shuffle, in the template itself: the order of before is as good as any other. */
function shuffle({ bytes, questionEnd, blockLength, answers }: Template): void {
  const places = Math.min(answers - 1, shuffledPlaces);
  for (let place = 0; place < places; place += 1) {
    const other = place + Math.floor(Math.random() * (answers - place));
    if (other === place) continue;
    let a = questionEnd + place * blockLength + sharedOctets;
    let b = questionEnd + other * blockLength + sharedOctets;
    for (const end = a + blockLength - sharedOctets; a < end; a += 1, b += 1) {
      const octet = bytes[a] ?? 0;
      bytes[a] = bytes[b] ?? 0;
      bytes[b] = octet;
    }
  }
}

/** A list in random order; for answers whose records cannot be exchanged in place. */
export function shuffled<T>(items: readonly T[]): T[] {
  const result = [...items];
  for (let place = result.length - 1; place > 0; place -= 1) {
    const other = randomInt(place + 1);
    const item = result[place] as T;
    result[place] = result[other] as T;
    result[other] = item;
  }
  return result;
}
