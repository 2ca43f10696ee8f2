import t from 'tap';
import { SlabReader } from '../tcp/slab-reader.ts';
import { headerBytes } from './frames.ts';
import { RecordReader } from './record-reader.ts';
import { Slabs } from './slabs.ts';

/** The byte at each place of what is read: no two places near each other have the same sequence. */
function fill(room: Uint8Array, bytes: number, at: number): void {
  for (let index = 0; index < bytes; index += 1) room[index] = (at + index) % 251;
}

function isRight(chunk: Buffer, at: number): boolean {
  return chunk.every((byte, index) => byte === (at + index) % 251);
}

t.test('records come in order and stay as they are until they are consumed', async (t) => {
  const reader = new RecordReader();
  const kept: { readonly chunk: Buffer; readonly at: number }[] = [];
  let heard = 0;
  let wrong = 0;
  let calls = 0;
  reader.attach((chunk) => {
    calls += 1;
    if (!isRight(chunk, heard)) wrong += 1;
    const consumes = calls % 3 !== 0;
    if (!consumes) kept.push({ chunk, at: heard });
    heard += chunk.length;
    return consumes;
  });
  let sent = 0;
  let room = reader.onread.buffer();
  for (let count = 0; count < 400; count += 1) {
    const bytes = count % 7 === 3 ? 1 + ((count * 37) % 9000) : 16_384;
    t.ok(room.length >= bytes);
    fill(room, bytes, sent);
    sent += bytes;
    reader.onread.callback(bytes);
    room = reader.onread.buffer();
    // Full records are handed on at the end of the turn at the latest.
    if (count % 5 === 4) await new Promise((resolve) => setImmediate(resolve));
  }
  reader.flush();
  t.equal(heard, sent);
  t.equal(wrong, 0);
  t.ok(calls < 250, 'full records are handed on together');
  t.ok(kept.every(({ chunk, at }) => isRight(chunk, at)));
});

t.test('slabs: large reads have room for a header, and are used anew only when they have left', async (t) => {
  const slabs = new Slabs();
  const reader = new SlabReader(slabs);
  const waiting: { readonly chunk: Buffer; readonly at: number }[] = [];
  const memories = new Set<ArrayBufferLike>();
  let sent = 0;
  let whole = 0;
  for (let count = 0; count < 300; count += 1) {
    const room = reader.room();
    const bytes = count % 11 === 5 ? Math.ceil(room.length / 3) : room.length;
    fill(room, bytes, sent);
    const chunk = reader.take(bytes);
    waiting.push({ chunk, at: sent });
    sent += bytes;
    const first = waiting.length > 3 ? waiting.shift() : undefined;
    if (first === undefined) continue;
    if (!isRight(first.chunk, first.at)) t.fail('bytes were overwritten');
    const slab = slabs.of(first.chunk);
    if (slab === undefined) continue;
    whole += 1;
    memories.add(slab.buffer);
    t.equal(first.chunk.byteOffset, headerBytes);
    if (count % 50 === 0) slabs.giveUp(slab);
    else slabs.release(slab);
  }
  t.ok(whole > 200, `${whole} slabs left`);
  t.ok(memories.size < 20, `in ${memories.size} places`);
});

t.test('slabs: those that wait for a read are bounded', async (t) => {
  const slabs = new Slabs();
  const taken = Array.from({ length: Slabs.maxWaiting }, () => slabs.take());
  t.notOk(taken.includes(undefined));
  t.equal(slabs.take(), undefined);
  const [first] = taken;
  if (first !== undefined) slabs.unread(first);
  t.equal(slabs.take(), first);
});
