/**
 * Requests that two receivers might take apart in two ways, and what Legate has to do with each. A case is the bytes of one
 * connection; `status` is the answer to its first request. Where that is a refusal nothing may reach the instance.
 */
export interface SmugglingCase {
  readonly name: string;
  readonly bytes: string;
  readonly status: number;
  /** How many requests may reach an instance, for those that are no refusal; all others none. */
  readonly requests?: number;
}

/** The request that an attacker wants to hide. */
const hidden = 'GET /smuggled HTTP/1.1\r\nHost: db\r\n\r\n';

/** Those that are refused: by their name the lines behind the request line, and the body. */
function refused(status: number, cases: Readonly<Record<string, string>>): SmugglingCase[] {
  return Object.entries(cases).map(([name, bytes]) => ({ name, bytes, status }));
}

function post(fields: string, body = ''): string {
  return `POST / HTTP/1.1\r\nHost: db\r\n${fields}\r\n\r\n${body}`;
}

function get(fields: string): string {
  return `GET / HTTP/1.1\r\nHost: db\r\n${fields}\r\n\r\n${hidden}`;
}

const chunkedHidden = `0\r\n\r\n${hidden}`;

function chunked(body: string): string {
  return post('Transfer-Encoding: chunked', body);
}

/** Values of Content-Length that are no number that everybody reads alike. */
const lengths = [
  '',
  '+5',
  '-5',
  '-0',
  '0x5',
  '5.0',
  '5e0',
  '5,5',
  '5, 6',
  '5;',
  '5 5',
  '5_0',
  'five',
  '٥',
  '"5"',
  '1'.repeat(16),
  '99999999999999999999',
  '5\t5',
  '0b1',
  '5,',
  ',5',
  '5\u000b',
  '5\u000c',
  '5\u0000',
  '٠',
];

/** Values of Transfer-Encoding that are not the one coding that is known. */
const codings = [
  'xchunked',
  'chunkedx',
  'chunked, identity',
  'identity, chunked',
  'identity',
  'gzip, chunked',
  'chunked, gzip',
  'chunked, chunked',
  'chunked,',
  ',chunked',
  '"chunked"',
  "'chunked'",
  'chunked;q=1',
  'chunked; a=b',
  'chunked chunked',
  'chu nked',
  'chunk',
  'deflate',
  'cow',
  '',
  'chunked\tx',
  'x\tchunked',
  '[chunked]',
  '{chunked}',
  'chunked\u00a0',
  '\u00a0chunked',
  '\u0085chunked',
  'ch\u0169nked',
];

/** Other spellings of the field's name that some receivers take for it. */
const codingFields = [
  'Transfer-Encoding : chunked',
  'Transfer-Encoding\t: chunked',
  ' Transfer-Encoding: chunked',
  '\tTransfer-Encoding: chunked',
  'Transfer-Encoding\u0000: chunked',
  'Transfer-Encoding\u000b: chunked',
  'Transfer-Encoding\r: chunked',
  'Transfer Encoding: chunked',
  'Transfer-Encoding',
  'Transfer-Encoding chunked',
  ': chunked',
  '"Transfer-Encoding": chunked',
  'Transfer-Encoding\u00a0: chunked',
  '(Transfer-Encoding: chunked',
  'X: y\nTransfer-Encoding: chunked',
  'X: y\rTransfer-Encoding: chunked',
  'X: y\r\n\tTransfer-Encoding: chunked',
  'X: y\r\r\nTransfer-Encoding: chunked',
  'X: y\n\rTransfer-Encoding: chunked',
  'Transfer-Encoding:\n chunked',
  'Transfer-Encoding: \u000bchunked',
  'Transfer-Encoding: \u0000chunked',
  'Transfer-Encoding: chunked\u0000',
  'Transfer-Encoding: \u000cchunked',
  'Transfer-Encoding: chunked\r',
  'Transfer-Encoding: \u007fchunked',
  'Transfer-Encoding: chunked\u001b',
];

const requestLines: Readonly<Record<string, string>> = {
  'two spaces before the target': 'GET  / HTTP/1.1',
  'two spaces before the version': 'GET /  HTTP/1.1',
  'a tab for a space': 'GET\t/ HTTP/1.1',
  'a space at the front': ' GET / HTTP/1.1',
  'a space at the end': 'GET / HTTP/1.1 ',
  'no version': 'GET /',
  'a small version': 'GET / http/1.1',
  'a version with a space': 'GET / HTTP /1.1',
  'a version with two digits': 'GET / HTTP/1.10',
  'a version with a sign': 'GET / HTTP/+1.1',
  'a version without a dot': 'GET / HTTP/11',
  'no target': 'GET HTTP/1.1',
  'a fragment': 'GET /#/ HTTP/1.1',
  'a control character in the target': 'GET /\u0001 HTTP/1.1',
  'NUL in the target': 'GET /\u0000 HTTP/1.1',
  'DEL in the target': 'GET /\u007f HTTP/1.1',
  'obs-text in the target': 'GET /é HTTP/1.1',
  'a target without its slash': 'GET index HTTP/1.1',
  'a space in the target': 'GET /a b HTTP/1.1',
  '* with GET': 'GET * HTTP/1.1',
  'another host in the target': 'GET http://other/ HTTP/1.1',
  'the same host with another port': 'GET http://db:81/ HTTP/1.1',
  'user information in the target': 'GET http://user@db/ HTTP/1.1',
  'an empty host in the target': 'GET http:/// HTTP/1.1',
  'another scheme': 'GET ftp://db/ HTTP/1.1',
  'a method with a colon': 'GE:T / HTTP/1.1',
  'a method in quotes': '"GET" / HTTP/1.1',
  'a bare CR': 'GET /\rX HTTP/1.1',
  'a bare LF': 'GET / HTTP/1.1\nX: y',
};

const hosts: Readonly<Record<string, string>> = {
  'two hosts': 'Host: db\r\nHost: other',
  'two equal hosts': 'Host: db\r\nhost: db',
  'an empty host': 'Host:',
  'a host of spaces': 'Host:   ',
  'a list of hosts': 'Host: db, db',
  'a host with a space': 'Host: db other',
  'a host with a path': 'Host: db/admin',
  'a host with user information': 'Host: user@db',
  'a host with a query': 'Host: db?x',
  'a port that is a word': 'Host: db:http',
  'two ports': 'Host: db:80:81',
  'a port with a sign': 'Host: db:+80',
  'a port that is too long': 'Host: db:1234567',
  'brackets that do not close': 'Host: [::1',
  'brackets in the middle': 'Host: a[b]',
  'a folded host': 'Host:\r\n db',
  'a host before a space and a colon': 'Host : db',
  'a host with NUL': 'Host: db\u0000',
  'a host with obs-text': 'Host: dé',
  'no host at all': 'X: y',
};

const chunks: Readonly<Record<string, string>> = {
  'a size with 0x': `0x0\r\n\r\n${hidden}`,
  'a size with a sign': `+0\r\n\r\n${hidden}`,
  'a negative size': `-1\r\n\r\n${hidden}`,
  'a size behind a space': ` 0\r\n\r\n${hidden}`,
  'a size before a space': `0 \r\n\r\n${hidden}`,
  'a size before a tab': `0\t\r\n\r\n${hidden}`,
  'a size before NUL': `0\u0000\r\n\r\n${hidden}`,
  'a size with an underscore': `1_0\r\n\r\n${hidden}`,
  'a size with a dot': `0.0\r\n\r\n${hidden}`,
  'a size in quotes': `"0"\r\n\r\n${hidden}`,
  'no size': `\r\n\r\n${hidden}`,
  'no size but an extension': `;a=b\r\n\r\n${hidden}`,
  'a size that overflows 32 bits': `100000000000000\r\n${hidden}`,
  'a size that overflows 64 bits': `10000000000000000\r\n${hidden}`,
  'a size with many zeros': `${'0'.repeat(64)}\r\n\r\n${hidden}`,
  'a bare LF behind the size': `0\n\r\n${hidden}`,
  'a bare CR behind the size': `0\r\r\n\r\n${hidden}`,
  'a bare LF behind the data': `1\r\nx\n0\r\n\r\n${hidden}`,
  'a bare CR behind the data': `1\r\nx\r0\r\n\r\n${hidden}`,
  'more data than the size says': `1\r\nxy\r\n0\r\n\r\n${hidden}`,
  'two bytes between data and size': `1\r\nxAA0\r\n\r\n${hidden}`,
  'an LF in an extension': `1;a\nb\r\nx\r\n0\r\n\r\n${hidden}`,
  'a CR in an extension': `1;a\rb\r\nx\r\n0\r\n\r\n${hidden}`,
  'NUL in an extension': `1;a\u0000\r\nx\r\n0\r\n\r\n${hidden}`,
  'endless extensions': `1;${'x'.repeat(8192)}\r\nx\r\n0\r\n\r\n${hidden}`,
  'an extension without its semicolon': `1 a=b\r\nx\r\n0\r\n\r\n${hidden}`,
  'a bare LF for the last line': `0\r\n\n${hidden}`,
  'a bare CR for the last line': `0\r\n\r${hidden}`,
  'a length in a trailer': `0\r\nContent-Length: 5\r\n\r\n${hidden}`,
  'a coding in a trailer': `0\r\nTransfer-Encoding: chunked\r\n\r\n${hidden}`,
  'a host in a trailer': `0\r\nHost: other\r\n\r\n${hidden}`,
  'a trailer with a space before its colon': `0\r\nX : y\r\n\r\n${hidden}`,
  'a folded trailer': `0\r\nX: y\r\n z\r\n\r\n${hidden}`,
  'a trailer that is none': `0\r\nGET /smuggled HTTP/1.1\r\n\r\n`,
  'a trailer with an LF': `0\r\nX: y\nZ: a\r\n\r\n${hidden}`,
  'endless trailers': `0\r\nX: ${'y'.repeat(9000)}\r\n\r\n${hidden}`,
};

const connections = [
  'Host',
  'content-length',
  'Transfer-Encoding',
  'X-Forwarded-For',
  'Forwarded',
  'Via',
  'Cookie',
  'close, Host',
  'Expect',
];

/** What looks odd, and everybody reads in one way. */
const accepted: readonly SmugglingCase[] = [
  { name: 'an empty line at the front', bytes: `\r\n${get('X: y').replace(hidden, '')}`, status: 200, requests: 1 },
  { name: 'no space behind the colon', bytes: 'GET / HTTP/1.1\r\nHost:db\r\n\r\n', status: 200, requests: 1 },
  {
    name: 'space around a value',
    bytes: 'GET / HTTP/1.1\r\nHost: db\r\nX: \t y \t \r\n\r\n',
    status: 200,
    requests: 1,
  },
  { name: 'obs-text in a value', bytes: 'GET / HTTP/1.1\r\nHost: db\r\nX: é\r\n\r\n', status: 200, requests: 1 },
  {
    name: 'a field with an underscore',
    bytes: 'GET / HTTP/1.1\r\nHost: db\r\nTransfer_Encoding: chunked\r\n\r\n',
    status: 200,
    requests: 1,
  },
  { name: 'a coding in capitals', bytes: post('TRANSFER-ENCODING: CHUNKED', '0\r\n\r\n'), status: 200, requests: 1 },
  { name: 'a length with zeros in front', bytes: post('Content-Length: 005', 'hello'), status: 200, requests: 1 },
  {
    name: 'a length with GET',
    bytes: `GET / HTTP/1.1\r\nHost: db\r\nContent-Length: ${hidden.length}\r\n\r\n${hidden}`,
    status: 200,
    requests: 1,
  },
  {
    name: 'a body that looks like a request',
    bytes: post(`Content-Length: ${hidden.length}`, hidden),
    status: 200,
    requests: 1,
  },
  {
    name: 'a chunk that looks like a request',
    bytes: chunked(`${hidden.length.toString(16)}\r\n${hidden}\r\n0\r\n\r\n`),
    status: 200,
    requests: 1,
  },
  {
    name: 'a trailer that looks like a request',
    bytes: chunked('0\r\nX: GET /smuggled HTTP/1.1\r\n\r\n'),
    status: 200,
    requests: 1,
  },
  { name: 'an extension that looks like a size', bytes: chunked('1;ffff\r\nx\r\n0\r\n\r\n'), status: 200, requests: 1 },
  { name: 'a size with zeros in front', bytes: chunked('0001\r\nx\r\n0\r\n\r\n'), status: 200, requests: 1 },
  {
    name: 'an upgrade to HTTP/2',
    bytes:
      'GET / HTTP/1.1\r\nHost: db\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n',
    status: 200,
    requests: 1,
  },
  {
    name: 'Connection that names an ordinary field',
    bytes: 'GET / HTTP/1.1\r\nHost: db\r\nConnection: X-Internal\r\nX-Internal: 1\r\n\r\n',
    status: 200,
    requests: 1,
  },
  {
    name: 'two requests, one behind the other',
    bytes: `${post('Content-Length: 5', 'hello')}${post('Content-Length: 5', 'world')}`,
    status: 200,
    requests: 2,
  },
];

export const smugglingCases: readonly SmugglingCase[] = [
  ...lengths.map((value) => ({
    name: `Content-Length: ${JSON.stringify(value)}`,
    bytes: post(`Content-Length: ${value}`, `hello${hidden}`),
    status: 400,
  })),
  ...refused(400, {
    'two equal lengths': post('Content-Length: 5\r\nContent-Length: 5', `hello${hidden}`),
    'two lengths': post('Content-Length: 0\r\nContent-Length: 5', hidden),
    'two lengths in other letters': post('Content-Length: 5\r\ncontent-length: 0', hidden),
    'a length before a coding': post('Content-Length: 5\r\nTransfer-Encoding: chunked', chunkedHidden),
    'a coding before a length': post('Transfer-Encoding: chunked\r\nContent-Length: 5', chunkedHidden),
    'a coding with a length of 0': post('Content-Length: 0\r\nTransfer-Encoding: chunked', chunkedHidden),
    'a coding and a length with GET': get('Content-Length: 5\r\nTransfer-Encoding: chunked'),
    'two codings': post('Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked', chunkedHidden),
    'two codings, the second unknown': post('Transfer-Encoding: chunked\r\nTransfer-Encoding: cow', chunkedHidden),
    'a coding in HTTP/1.0': post('Transfer-Encoding: chunked', chunkedHidden).replace('HTTP/1.1', 'HTTP/1.0'),
    'two empty lines at the front': `\r\n\r\n${get('X: y')}`,
    'an LF at the front': `\n${get('X: y')}`,
    'all lines with LF': `GET / HTTP/1.1\nHost: db\n\n${hidden}`,
    'the last line with LF': `GET / HTTP/1.1\r\nHost: db\r\n\n${hidden}`,
    'a length behind a folded line': post('X: y\r\n Content-Length: 5', hidden),
    'a length before a space and a colon': post('Content-Length : 5', `hello${hidden}`),
  }),
  ...codings.map((value) => {
    // Bytes that no value may have, and codings that are merely unknown.
    const status = 501;
    return {
      name: `Transfer-Encoding: ${JSON.stringify(value)}`,
      bytes: post(`Transfer-Encoding: ${value}`, chunkedHidden),
      status,
    };
  }),
  ...codingFields.map((field) => ({ name: JSON.stringify(field), bytes: post(field, chunkedHidden), status: 400 })),
  ...Object.entries(requestLines).map(([name, line]) => ({
    name,
    bytes: `${line}\r\nHost: db\r\n\r\n${hidden}`,
    status: 400,
  })),
  ...refused(501, { 'a coding on a folded line': post('Transfer-Encoding:\r\n chunked', chunkedHidden) }),
  ...refused(505, {
    'HTTP/0.9': `GET / HTTP/0.9\r\nHost: db\r\n\r\n${hidden}`,
    'HTTP/1.2': `GET / HTTP/1.2\r\nHost: db\r\n\r\n${hidden}`,
    'HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    'HTTP/3': `GET / HTTP/3.0\r\nHost: db\r\n\r\n${hidden}`,
  }),
  ...Object.entries(hosts).map(([name, field]) => ({
    name,
    bytes: `GET / HTTP/1.1\r\n${field}\r\n\r\n${hidden}`,
    status: 400,
  })),
  ...Object.entries(chunks).map(([name, body]) => ({ name: `chunks: ${name}`, bytes: chunked(body), status: 400 })),
  ...connections.map((value) => ({ name: `Connection: ${value}`, bytes: get(`Connection: ${value}`), status: 400 })),
  ...refused(405, {
    CONNECT: `CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n\r\n${hidden}`,
    TRACE: `TRACE / HTTP/1.1\r\nHost: db\r\n\r\n${hidden}`,
  }),
  ...refused(417, { 'an unknown expectation': post('Expect: 200-ok\r\nContent-Length: 5', `hello${hidden}`) }),
  ...refused(414, { 'a target without end': `GET /${'a'.repeat(20_000)} HTTP/1.1\r\nHost: db\r\n\r\n${hidden}` }),
  ...refused(431, {
    'a field without end': get(`X: ${'a'.repeat(40_000)}`),
    'fields without end': get('X: y\r\n'.repeat(200).trimEnd()),
  }),
  ...accepted,
];
