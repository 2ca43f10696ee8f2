import { headerLength } from './constants.ts';

/** Whether `answer` is an answer to the query: a response of opcode QUERY to the same one question. Ids are the caller's. */
export function isAnswerTo(answer: Buffer, query: Buffer, questionEnd: number): boolean {
  if (answer.length < questionEnd || ((answer[2] ?? 0) & 0xf8) !== 0x80) return false;
  if (answer.readUInt16BE(4) !== 1) return false;
  for (let index = headerLength; index < questionEnd; index += 1) {
    if (lower(answer[index] ?? 0) !== lower(query[index] ?? 0)) return false;
  }
  return true;
}

/** The answer under the id and with the question's letters of the query; changed in place. */
export function addressedTo(query: Buffer, questionEnd: number, answer: Buffer): Buffer {
  query.copy(answer, 0, 0, 2);
  query.copy(answer, headerLength, headerLength, questionEnd);
  return answer;
}

/** An answer that says no more than that it is truncated (TC), with an OPT record if `opt` is one. */
export function truncatedAnswer(answer: Buffer, questionEnd: number, opt: Buffer): Buffer {
  const out = Buffer.alloc(questionEnd + opt.length);
  answer.copy(out, 0, 0, questionEnd);
  out[2] = (out[2] ?? 0) | 2;
  out.fill(0, 6, headerLength);
  out[11] = opt.length > 0 ? 1 : 0;
  opt.copy(out, questionEnd);
  return out;
}

export function isTruncated(answer: Buffer): boolean {
  return ((answer[2] ?? 0) & 2) !== 0;
}

function lower(octet: number): number {
  return octet >= 65 && octet <= 90 ? octet + 32 : octet;
}
