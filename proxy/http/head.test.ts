import fc from 'fast-check';
import t from 'tap';
import { HttpFault } from './fault.ts';
import { fields } from './fields.ts';
import { Head, maxFields, maxHeadBytes, maxTargetBytes, methods } from './head.ts';

const host = 'Host: web\r\n';

function read(text: string | Buffer, kind: 'request' | 'response' = 'request'): Head {
  const head = new Head();
  const bytes = typeof text === 'string' ? Buffer.from(text, 'latin1') : text;
  const end = kind === 'request' ? head.readRequest(bytes, 0) : head.readResponse(bytes, 0);
  if (end < 0) throw new Error('the head is not all there');
  return head;
}

function faultOf(text: string, kind: 'request' | 'response' = 'request'): string {
  try {
    read(text, kind);
    return 'none';
  } catch (error) {
    if (!(error instanceof HttpFault)) return String(error);
    return `${error.status} ${error.kind}`;
  }
}

t.test('what a request says', (t) => {
  const text = `\r\nPOST /a?b=1 HTTP/1.1\r\n${host}Content-Length: 12\r\nConnection: close , X-Private\r\nx-private:\t1 \t\r\nTE: trailers\r\nExpect: 100-Continue\r\n\r\n`;
  const head = read(`${text}body`);
  t.match(head, { method: methods.post, minor: 1, contentLength: 12, chunked: false, closes: true, count: 6 });
  t.match(head, {
    expectsContinue: true,
    takesTrailers: true,
    upgrades: false,
    start: 2,
    end: text.length,
  });
  t.equal(head.text(head.targetStart, head.targetEnd), '/a?b=1');
  t.equal(head.value(head.find(fields.host)), 'web');
  t.equal(head.value(3), '1', 'without the space around it');
  t.ok(head.isNamed(3), 'the field that Connection names');
  t.notOk(head.isNamed(0));
  t.match(read(`GET / HTTP/1.1\r\n${host}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`), { upgrades: true });
  t.match(read(`GET / HTTP/1.1\r\n${host}Upgrade: websocket\r\n\r\n`), { upgrades: false });
  t.match(read(`PURGE / HTTP/1.1\r\n${host}Transfer-Encoding: CHUNKED\r\n\r\n`), {
    method: methods.other,
    chunked: true,
  });
  t.match(read('GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n'), { minor: 0, keepsAlive: true, hostAt: -1 });
  const whole = read('GET http://web:80/x HTTP/1.1\r\nhost: WEB:80\r\n\r\n');
  t.equal(whole.text(whole.pathStart, whole.targetEnd), '/x', 'the path of a whole URI');
  t.match(read(`OPTIONS * HTTP/1.1\r\n${host}\r\n`), { method: methods.options });
  t.match(read('CONNECT web:443 HTTP/1.1\r\nHost: web:443\r\n\r\n'), { method: methods.connect });
  t.equal(faultOf('CONNECT web HTTP/1.1\r\nHost: web\r\n\r\n'), '400 target', 'no port');
  t.equal(faultOf('CONNECT web: HTTP/1.1\r\nHost: web:\r\n\r\n'), '400 target');
  t.match(read('GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n'), { hostAt: 0 });
  t.end();
});

t.test('what a response says', (t) => {
  t.match(read('HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n', 'response'), { status: 200, contentLength: 3 });
  t.match(read('HTTP/1.1 204 \r\n\r\n', 'response'), { status: 204 });
  t.match(read('HTTP/1.0 404\r\n\r\n', 'response'), { status: 404, minor: 0 });
  const expected: Record<string, string> = {
    'HTTP/1.1 20 OK\r\n\r\n': '400 status-line',
    'HTTP/1.1 099 OK\r\n\r\n': '400 status-line',
    'HTTP/1.1 600 OK\r\n\r\n': '400 status-line',
    'HTTP/1.1 2000 OK\r\n\r\n': '400 status-line',
    'HTTP/1.1  200 OK\r\n\r\n': '400 status-line',
    'HTTP/1.1 200 O\u0001K\r\n\r\n': '400 status-line',
    'HTTP/1.1 200 OK\n\n': '400 status-line',
    'HTTP/2.0 200 OK\r\n\r\n': '505 version',
    'ICY 200 OK\r\n\r\n': '400 version',
    'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n': '400 framing',
    'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n': '400 framing',
    'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n': '400 framing',
    'HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n': '400 field',
  };
  for (const [text, fault] of Object.entries(expected)) t.equal(faultOf(text, 'response'), fault, JSON.stringify(text));
  t.end();
});

t.test('empty lines before a request: one is passed over', (t) => {
  const request = `GET / HTTP/1.1\r\n${host}\r\n`;
  t.match(read(`\r\n${request}`), { start: 2, end: request.length + 2 });
  const cases: [before: string, fault: string][] = [
    ['\r\n', 'none'],
    ['\r\n\r\n', '400 request-line'],
    ['\r\n\r\n\r\n', '400 request-line'],
    ['\n', '400 request-line'],
    ['\r', '400 request-line'],
    ['\r\n\n', '400 request-line'],
  ];
  for (const [before, fault] of cases) t.equal(faultOf(before + request), fault, JSON.stringify(before));
  for (const part of ['', '\r', '\r\n']) t.equal(new Head().readRequest(Buffer.from(part), 0), -1, 'more is to come');
  t.equal(faultOf('\r\n\r'), '400 request-line', 'a second one is refused as soon as it begins');
  t.end();
});

t.test('bounds', (t) => {
  const many = (count: number): string => `GET / HTTP/1.1\r\n${host}${'a: b\r\n'.repeat(count)}\r\n`;
  t.equal(faultOf(many(maxFields - 1)), 'none');
  t.equal(faultOf(many(maxFields)), '431 too-large');
  t.equal(faultOf(`GET / HTTP/1.1\r\n${host}a: ${'b'.repeat(maxHeadBytes)}\r\n\r\n`), '431 too-large');
  t.equal(
    faultOf(`GET / HTTP/1.1\r\n${host}a: ${'b'.repeat(maxHeadBytes)}`),
    '431 too-large',
    'also when it has not ended',
  );
  t.equal(faultOf(`GET /${'a'.repeat(maxTargetBytes)} HTTP/1.1\r\n${host}\r\n`), '414 too-large');
  t.equal(faultOf(`GET /${'a'.repeat(maxTargetBytes)}`), '414 too-large');
  t.equal(faultOf('G'.repeat(33)), '501 request-line');
  t.end();
});

t.test('a head may be cut anywhere', (t) => {
  const text = `PUT http://web/a HTTP/1.1\r\n${host}content-length: 5\r\nConnection: keep-alive\r\nCookie: a=b; c=d\r\n\r\n`;
  const bytes = Buffer.from(`${text}hello`, 'latin1');
  for (let cut = 0; cut < text.length; cut += 1) {
    const head = new Head();
    if (head.readRequest(bytes.subarray(0, cut), 0) !== -1) t.fail(`the first ${cut} bytes are no head`);
  }
  t.equal(new Head().readRequest(bytes, 0), text.length);
  t.end();
});

t.test('no input makes it do anything but refuse', (t) => {
  const piece = fc.constantFrom(
    'GET',
    ' ',
    '/',
    'HTTP/1.1',
    '\r\n',
    '\n',
    '\r',
    ':',
    'Host: a',
    'Content-Length: 1',
    ',',
    'chunked',
    'Connection: ',
    '\0',
    'é',
  );
  fc.assert(
    fc.property(
      fc.array(fc.oneof(piece, fc.string({ maxLength: 5 })), { maxLength: 20 }),
      fc.boolean(),
      (parts, isRequest) => {
        const buffer = Buffer.from(parts.join(''), 'latin1');
        const head = new Head();
        try {
          const end = isRequest ? head.readRequest(buffer, 0) : head.readResponse(buffer, 0);
          return end === -1 || (end > 3 && end <= buffer.length && buffer.toString('latin1', end - 2, end) === '\r\n');
        } catch (error) {
          return error instanceof HttpFault;
        }
      },
    ),
    { numRuns: 20_000 },
  );
  t.end();
});
