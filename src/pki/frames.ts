import type { Duplex } from 'node:stream';
import { LegateError } from '../base/errors.ts';
import { maxDeskBytes } from './desk.ts';

const lengthBytes = 4;

/** A message as it goes over 7711: its length as 4 bytes, big endian, then its bytes. */
export function frameOf(message: Uint8Array): Buffer {
  if (message.byteLength > maxDeskBytes) {
    throw new LegateError('E_TOO_LARGE', `a message of ${message.byteLength} bytes is more than ${maxDeskBytes}`);
  }
  const frame = Buffer.allocUnsafe(lengthBytes + message.byteLength);
  frame.writeUInt32BE(message.byteLength);
  frame.set(message, lengthBytes);
  return frame;
}

/** The one message that the other side sends. E_UNREACHABLE when it ends before, E_TOO_LARGE, and what aborts. */
export function readFrame(stream: Duplex, signal: AbortSignal): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    let length = 0;
    const end = (settle: () => void): void => {
      stream.off('data', onData).off('end', onEnd).off('close', onEnd).off('error', onError);
      signal.removeEventListener('abort', onAbort);
      stream.pause();
      settle();
    };
    const onData = (chunk: Buffer): void => {
      parts.push(chunk);
      length += chunk.length;
      if (length < lengthBytes) return;
      const [first = chunk] = parts.length === 1 ? parts : parts.splice(0, parts.length, Buffer.concat(parts));
      const wanted = first.readUInt32BE(0);
      if (wanted > maxDeskBytes) {
        end(() => reject(new LegateError('E_TOO_LARGE', `the other side sends ${wanted} bytes`)));
      } else if (length >= lengthBytes + wanted) {
        end(() => resolve(Buffer.from(first.subarray(lengthBytes, lengthBytes + wanted))));
      }
    };
    const onEnd = (): void =>
      end(() => reject(new LegateError('E_UNREACHABLE', 'the other side closed the connection without an answer')));
    const onError = (error: Error): void => end(() => reject(error));
    const onAbort = (): void => end(() => reject(signal.reason));
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    stream.on('data', onData).on('end', onEnd).on('close', onEnd).on('error', onError);
    signal.addEventListener('abort', onAbort, { once: true });
  });
}
