import { LegateError } from '../../../src/base/errors.ts';
import type { Fault } from '../../../src/config/fault.ts';

/** As much as a value of the store may have, and a configuration file. */
const maxInputBytes = 1024 * 1024;

/** All of standard input, bounded. */
export async function readInputBytes(
  stdin: AsyncIterable<Uint8Array | string>,
  maxBytes = maxInputBytes,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of stdin) {
    const part = Buffer.from(chunk as Uint8Array);
    length += part.length;
    if (length > maxBytes) {
      throw new LegateError('E_TOO_LARGE', `standard input has more than ${maxBytes} bytes`);
    }
    chunks.push(part);
  }
  return Buffer.concat(chunks);
}

export async function readInput(stdin: AsyncIterable<Uint8Array | string>): Promise<string> {
  return (await readInputBytes(stdin)).toString('utf8');
}

/** Every fault on its line, then how many and what follows from that. */
export function printFaults(
  print: (line: string) => void,
  faults: readonly Fault[],
  count: number,
  consequence: string,
): void {
  for (const fault of faults) print(fault.text);
  if (count > faults.length) print(`and ${count - faults.length} more`);
  print(`${count} ${count === 1 ? 'fault' : 'faults'}, ${consequence}`);
}
