import { connect, createServer, type Server, type Socket } from 'node:net';
import type { Clock } from '../../src/base/clock.ts';
import { describeError, LegateError } from '../../src/base/errors.ts';

const maxQuestionCharacters = 65_536;
const maxAnswerCharacters = 64 * 1_048_576;
/** A question for each of many instances comes at once. */
const maxQuestioners = 1024;
const questionLimitMs = 5000;

/**
 * Answers whoever connects, once it listens on a path that only this user reaches: a line of JSON, `[name, ...arguments]`,
 * is answered with the JSON of what that function resolves with, and with nothing when it fails.
 */
export function questionServer(answers: Readonly<Record<string, (...args: never[]) => Promise<unknown>>>): Server {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    let text = '';
    socket.setEncoding('utf8').setTimeout(questionLimitMs, () => socket.destroy());
    socket.on('error', () => socket.destroy());
    socket.on('data', (part: string) => {
      text += part;
      if (text.length > maxQuestionCharacters) socket.destroy();
    });
    socket.on('end', () => void answer(socket, text, answers));
    socket.unref();
  });
  server.maxConnections = maxQuestioners;
  return server;
}

async function answer(
  socket: Socket,
  text: string,
  answers: Readonly<Record<string, (...args: never[]) => Promise<unknown>>>,
): Promise<void> {
  try {
    const question: unknown = JSON.parse(text);
    if (!Array.isArray(question)) throw new Error('no question');
    const [name, ...args] = question as unknown[];
    const known = typeof name === 'string' && Object.hasOwn(answers, name) ? answers[name] : undefined;
    if (known === undefined) throw new Error('not known here');
    socket.end(JSON.stringify(await Reflect.apply(known, undefined, args)));
  } catch {
    socket.destroy();
  }
}

/** Asks the process at `path`; what it answers may be of another version. Rejects with E_UNREACHABLE or E_TIMEOUT. */
export function askQuestion(
  path: string,
  question: readonly [string, ...unknown[]],
  { clock, timeoutMs }: { readonly clock: Clock; readonly timeoutMs: number },
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path, allowHalfOpen: true });
    const fail = (code: 'E_UNREACHABLE' | 'E_TIMEOUT', why: string): void => {
      cancel();
      socket.destroy();
      reject(new LegateError(code, why));
    };
    const cancel = clock.after(timeoutMs, () => fail('E_TIMEOUT', `no answer in ${timeoutMs} ms`));
    let text = '';
    socket.setEncoding('utf8');
    socket.on('error', (error) => fail('E_UNREACHABLE', describeError(error)));
    socket.on('data', (part: string) => {
      text += part;
      if (text.length > maxAnswerCharacters) fail('E_UNREACHABLE', 'the answer is too long');
    });
    socket.on('end', () => {
      try {
        resolve(JSON.parse(text));
        cancel();
        socket.destroy();
      } catch {
        fail('E_UNREACHABLE', 'there is no answer');
      }
    });
    socket.end(JSON.stringify(question));
  });
}
