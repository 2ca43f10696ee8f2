import { constants } from 'node:os';

export const sigterm = 15;
export const sigkill = 9;

/** The real-time signals as Docker counts them, whatever the C library. */
const realTimeFirst = 34;
const realTimeLast = 64;

/**
 * The number of a signal that is given as Docker takes it: `15`, `TERM`, `SIGTERM`, `SIGRTMIN+3`, `RTMAX-1`. Undefined
 * when it is none.
 */
export function signalNumber(text: string): number | undefined {
  const word = text.trim().toUpperCase();
  if (/^\d{1,2}$/.test(word)) return inRange(Number(word));
  const name = word.startsWith('SIG') ? word : `SIG${word}`;
  const realTime = /^SIGRT(?:MIN(?:\+(\d{1,2}))?|MAX(?:-(\d{1,2}))?)$/.exec(name);
  if (realTime !== null) {
    const fromFirst = name.startsWith('SIGRTMIN');
    const number = fromFirst ? realTimeFirst + Number(realTime[1] ?? 0) : realTimeLast - Number(realTime[2] ?? 0);
    return number >= realTimeFirst && number <= realTimeLast ? number : undefined;
  }
  const numbers: Readonly<Record<string, number>> = constants.signals;
  return Object.hasOwn(numbers, name) ? numbers[name] : undefined;
}

function inRange(number: number): number | undefined {
  return number >= 1 && number <= realTimeLast ? number : undefined;
}
