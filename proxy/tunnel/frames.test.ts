import t from 'tap';
import { FrameParser } from './frame-parser.ts';
import { FrameWriter, GatherBuffers } from './frame-writer.ts';
import { frameTypes, maxControlBytes, maxDataBytes, ProtocolFault } from './frames.ts';
import { FrameRecorder } from './raw-peer.test-support.ts';
import { headFault, parseHead, putHead } from './stream-head.ts';
import { testHead } from './test-support.ts';

const trace = '00112233445566778899aabbccddeeff';
const helloHex = '00000e01 00000000 0001 00100000 01000000 00004000';

function bytesOf(hex: string): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex');
}

/** What a parser makes of the bytes, and the fault at their end if any. */
function parse(bytes: Buffer, cut = bytes.length): string[] {
  const recorder = new FrameRecorder();
  const parser = new FrameParser(recorder);
  try {
    for (let at = 0; at < bytes.length; at += cut) parser.push(bytes.subarray(at, at + cut));
  } catch (error) {
    if (!(error instanceof ProtocolFault)) throw error;
    recorder.lines.push(`fault ${error.kind}`);
  }
  return recorder.lines;
}

function written(write: (writer: FrameWriter) => void): string {
  const parts: Buffer[] = [];
  const writer = new FrameWriter(new GatherBuffers(), (bytes) => parts.push(Buffer.from(bytes)));
  write(writer);
  writer.flush();
  return Buffer.concat(parts).toString('hex');
}

const head = testHead({ traceId: trace, declared: true, client: { address: '10.1.2.3', port: 0x1234 } });
const openPayload = `01 ${trace} 1234 04 0a010203 03 776562 02 6462 07 64622d35343332`;
const hello = { version: 1, streamCredit: 1_048_576, connectionCredit: 16_777_216, maxStreams: 16_384 };

/** Each frame: how it is written, its bytes, and how it is read. */
const frames: readonly (readonly [string, (writer: FrameWriter) => void, string, string[]])[] = [
  ['OPEN', (w) => w.open(1, head), `00002702 00000001 ${openPayload}`, ['open 1 db']],
  ['OPENED', (w) => w.opened(0x01020304), '00000003 01020304', ['opened 16909060']],
  [
    'DATA',
    (w) => {
      w.data(7, 3);
      w.body(Buffer.from('abc'));
    },
    '00000304 00000007 616263',
    ['data 7 3'],
  ],
  ['END', (w) => w.end(7), '00000005 00000007', ['end 7']],
  ['RESET', (w) => w.reset(7, 'unreachable', 'né'), '00000506 00000007 0001 6ec3a9', ['reset 7 unreachable né']],
  ['RESET of lost', (w) => w.reset(7, 'lost', ''), '00000206 00000007 0000', ['reset 7 reset']],
  ['WINDOW', (w) => w.window(0, 65_536), '00000407 00000000 00010000', ['window 0 65536']],
  ['PING', (w) => w.ping(5), '00000808 00000000 0000000000000005', ['ping']],
  ['PONG', (w) => w.pong(Buffer.alloc(8, 9)), '00000809 00000000 0909090909090909', ['pong']],
  ['GOAWAY', (w) => w.goAway({ reason: 'renew', detail: 'x' }), '0000030a 00000000 0001 78', ['goaway renew x']],
];

t.test('each frame has its bytes, however they are cut', async (t) => {
  t.equal(
    written((w) => w.hello(hello)),
    helloHex.replaceAll(' ', ''),
  );
  for (const [name, write, hex, lines] of frames) {
    t.equal(written(write), hex.replaceAll(' ', ''), name);
    const bytes = bytesOf(helloHex + hex);
    for (let cut = 1; cut <= bytes.length; cut += 1) {
      t.same(parse(bytes, cut), ['hello 1 1048576 16777216 16384', ...lines], `${name} in pieces of ${cut}`);
    }
  }
});

t.test('faults', async (t) => {
  const frame = (type: number, stream: number, payload: string, length?: number): string => {
    const bytes = bytesOf(payload);
    const start = Buffer.alloc(8);
    start.writeUIntBE(length ?? bytes.length, 0, 3);
    start[3] = type;
    start.writeUInt32BE(stream, 4);
    return start.toString('hex') + bytes.toString('hex');
  };
  const { open, opened, data, end, reset, window, ping, goAway } = frameTypes;
  const cases: readonly (readonly [string, string, string])[] = [
    ['type 0', frame(0, 1, ''), 'fault malformed'],
    ['an unknown type', frame(0x7f, 1, ''), 'fault malformed'],
    ['a later type', frame(0x80, 1, 'ff'), 'ignored'],
    ['a later type that is too long', frame(0xff, 1, '', maxControlBytes + 1), 'fault malformed'],
    ['a second HELLO', helloHex, 'fault order'],
    ['DATA that is too long', frame(data, 1, '', maxDataBytes + 1), 'fault malformed'],
    ['DATA of the connection', frame(data, 0, '00'), 'fault malformed'],
    ['OPEN of the connection', frame(open, 0, openPayload), 'fault malformed'],
    ['PING of a stream', frame(ping, 1, '0000000000000000'), 'fault malformed'],
    ['PING that is short', frame(ping, 0, '00000000000000'), 'fault malformed'],
    ['OPENED with a payload', frame(opened, 1, '00'), 'fault malformed'],
    ['END with a payload', frame(end, 1, '00'), 'fault malformed'],
    ['RESET without a reason', frame(reset, 1, '00'), 'fault malformed'],
    ['RESET with a long text', frame(reset, 1, '', 203), 'fault malformed'],
    ['RESET with an unknown reason', frame(reset, 1, '0063'), 'reset 1 reset'],
    ['RESET that says lost', frame(reset, 1, '0006'), 'reset 1 reset'],
    ['RESET with control characters', frame(reset, 1, '0002 1b5b41'), 'reset 1 gone \\u001b[A'],
    ['GOAWAY with an unknown reason', frame(goAway, 0, '0063'), 'goaway leaving'],
    ['WINDOW of nothing', frame(window, 1, '00000000'), 'fault malformed'],
    ['OPEN of nothing', frame(open, 1, ''), 'fault malformed'],
    ['OPEN with an empty name', frame(open, 1, openPayload.replace('03 776562', '00')), 'fault malformed'],
    ['OPEN with a blank in a name', frame(open, 1, openPayload.replace('776562', '772062')), 'fault malformed'],
    ['OPEN with a name beyond its end', frame(open, 1, openPayload.replace('07 64', '08 64')), 'fault malformed'],
    ['OPEN with an address of 5 octets', frame(open, 1, openPayload.replace('04 0a', '05 0a')), 'fault malformed'],
    ['OPEN with port 0', frame(open, 1, openPayload.replace('1234', '0000')), 'fault malformed'],
    ['OPEN with more of a later version', frame(open, 1, `${openPayload} ffff`), 'open 1 db'],
  ];
  for (const [name, hex, expected] of cases) t.equal(parse(bytesOf(helloHex + hex)).at(-1), expected, name);
  t.same(parse(bytesOf('00000005 00000001')), ['fault order'], 'END before HELLO');
  t.same(parse(bytesOf('0000020a 00000000 0002')), ['goaway refused'], 'GOAWAY may be all that is said');
  t.same(parse(bytesOf(helloHex.replace('0001 0010', '0000 0010'))), ['fault malformed'], 'version 0');
  t.same(parse(bytesOf(helloHex.replace('00100000', '00000010'))), ['fault malformed'], 'too little credit');
  const longer = '00000f01 00000000 0002 00100000 01000000 00004000 ff';
  t.same(parse(bytesOf(longer)), ['hello 2 1048576 16777216 16384'], 'a later HELLO');
});

t.test('heads', async (t) => {
  const buffer = Buffer.alloc(1024);
  for (const address of ['10.1.2.3', '255.0.255.0', 'fd00::1', '2001:db8::', '::1']) {
    const given = testHead({ client: { address, port: 65_535 }, instance: `${'x'.repeat(126)}:9` });
    t.equal(headFault(given), undefined);
    t.same(parseHead(buffer.subarray(0, putHead(buffer, 0, given))), given, address);
  }
  for (const wrong of [
    { consumer: '' },
    { service: 'a b' },
    { instance: 'x'.repeat(256) },
    { instance: 'é' },
    { traceId: 'AA'.repeat(16) },
    { client: { address: 'localhost', port: 1 } },
    { client: { address: '10.0.0.1', port: 0 } },
  ])
    t.type(headFault(testHead(wrong)), 'string', JSON.stringify(wrong));
});
