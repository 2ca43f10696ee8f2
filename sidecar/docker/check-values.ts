import { parseDuration } from '../../src/base/duration.ts';
import { type CheckSpec, checkDefaults, type InitialStatus, initialStatuses } from '../../src/model/check.ts';
import { labelFault, quoted } from './label-values.ts';

/** A modifier that does nothing with the check that there is. */
export interface IdleModifier {
  readonly key: string;
  readonly hint: string;
}

/** What to ask of an instance. */
export type CheckWish = { readonly idle: readonly IdleModifier[] } & (
  | { readonly kind: 'none' }
  /** The container's HEALTHCHECK if it has one, else nothing; `modifier` then does nothing, either. */
  | { readonly kind: 'own'; readonly spec: CheckSpec; readonly modifier: string | undefined }
  | {
      readonly kind: 'spec';
      readonly spec: CheckSpec;
      /** The key that asks for it, for a message. */
      readonly key: string;
      /** Whether `$SERVICE_IP` and `$SERVICE_PORT` in the command stand for the instance's own. */
      readonly substitute?: boolean;
    }
);

export type CheckTimes = Pick<CheckSpec, 'intervalMs' | 'timeoutMs' | 'rise' | 'fall'>;

const secondMs = 1000;
const hourMs = 3600 * secondMs;
/** Intervals, timeouts and times to live. */
const durationBounds = { minMs: 100, maxMs: 24 * hourMs, text: '100ms to 24h' };
const deregisterBounds = { minMs: secondMs, maxMs: 30 * 24 * hourMs, text: '1s to 720h' };
const maxStreak = 100;
const maxCommandLength = 4096;
const pathPattern = /^\/[\x21-\x7e]{0,1023}$/;
const grpcServicePattern = /^[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}$/;
const methods = ['GET', 'HEAD', 'OPTIONS', 'POST', 'PUT', 'PATCH', 'DELETE'] as const;

/** Docker applies its own retries before it says unhealthy, so its first word counts; so does that of who refreshes. */
export const promptDefaults: CheckTimes = { ...checkDefaults, rise: 1, fall: 1 };

/** The check that stands for a container's own HEALTHCHECK. */
export const ownCheck: CheckSpec = { kind: 'docker', ...promptDefaults };

export function pathValue(key: string, text: string): string {
  if (pathPattern.test(text)) return text;
  throw labelFault(
    `${key}: ${quoted(text)} is not a path`,
    'Give a path with a leading slash and no blanks, up to 1024 characters.',
  );
}

export function methodValue(key: string, text: string): string {
  const method = methods.find((candidate) => candidate === text.trim().toUpperCase());
  if (method !== undefined) return method;
  throw labelFault(`${key}: ${quoted(text)} is not a method`, `Use one of ${methods.join(', ')}.`);
}

export function grpcServiceValue(key: string, text: string): string {
  if (grpcServicePattern.test(text)) return text;
  throw labelFault(`${key}: ${quoted(text)} is not the name of a gRPC service`, 'Write it as package.Service.');
}

/** What `/bin/sh -c` will get: not empty, bounded, and without control characters, which no shell needs. */
export function commandValue(key: string, text: string): string {
  const command = text.trim();
  if (command === '') throw labelFault(`${key}: the command is empty`, 'Name what to run inside the container.');
  if (command.length > maxCommandLength) {
    throw labelFault(
      `${key}: the command is longer than ${maxCommandLength} characters`,
      'Put it into a script in the image and name that.',
    );
  }
  if (/[\u0000-\u0008\u000b-\u001f\u007f\ud800-\udfff]/u.test(command)) {
    throw labelFault(
      `${key}: ${quoted(command)} has control characters`,
      'Only tabs and line ends may be in a command.',
    );
  }
  return command;
}

export function initialStatusValue(key: string, text: string): InitialStatus {
  const word = text.trim().toLowerCase();
  const status = initialStatuses.find((candidate) => candidate === word);
  if (status !== undefined) return status;
  throw labelFault(`${key}: ${quoted(text)} is not a status`, `Use one of ${initialStatuses.join(', ')}.`);
}

/** Milliseconds of `250ms`, `5s`, `1m30s`, `1.5h`. */
export function durationValue(key: string, text: string): number {
  return boundedDuration(key, text, durationBounds);
}

/** As `durationValue`, with room for the days that something may be down. */
export function deregisterValue(key: string, text: string): number {
  return boundedDuration(key, text, deregisterBounds);
}

function boundedDuration(key: string, text: string, { minMs, maxMs, text: range }: typeof durationBounds): number {
  const durationMs = parseDuration(text);
  if (durationMs !== undefined && durationMs >= minMs && durationMs <= maxMs) return durationMs;
  throw labelFault(`${key}: ${quoted(text)} is not a duration of ${range}`, 'Write it as 250ms, 5s or 1m30s.');
}

export function streakValue(key: string, text: string): number {
  const count = /^\d{1,3}$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (count >= 1 && count <= maxStreak) return count;
  throw labelFault(`${key}: ${quoted(text)} is not a count of 1 to ${maxStreak}`, 'Give a whole number.');
}

export function switchValue(key: string, text: string): boolean {
  const word = text.trim().toLowerCase();
  if (word === 'true' || word === 'false') return word === 'true';
  throw labelFault(`${key}: ${quoted(text)} is neither true nor false`, 'Write true, or leave it out.');
}
