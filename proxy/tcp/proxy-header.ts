import { isIP, isIPv4 } from 'node:net';
import { type Endpoint, ipv4ToNumber } from '../../src/model/address.ts';

const signature = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');
/** Version 2, and whether the addresses are those of a proxied connection or of nobody. */
const proxied = 0x21;
const local = 0x20;
const tcp4 = 0x11;
const tcp6 = 0x21;

/**
 * The header that tells an application who its client is, in HAProxy's PROXY protocol, version 2
 * (haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2). The destination is the instance's own address; where
 * that is of another family it is left empty. Without a client it says that there is none.
 */
export function proxyHeader(client: Endpoint | undefined, instance: Endpoint): Buffer {
  if (client === undefined || isIP(client.address) === 0) {
    return Buffer.concat([signature, Buffer.from([local, 0x00, 0, 0])]);
  }
  const family = isIPv4(client.address) ? tcp4 : tcp6;
  const size = family === tcp4 ? 4 : 16;
  const header = Buffer.alloc(16 + size * 2 + 4);
  signature.copy(header);
  header[12] = proxied;
  header[13] = family;
  header.writeUInt16BE(size * 2 + 4, 14);
  writeAddress(header, 16, client.address);
  if (isIP(instance.address) === isIP(client.address)) writeAddress(header, 16 + size, instance.address);
  header.writeUInt16BE(client.port, 16 + size * 2);
  header.writeUInt16BE(instance.port, 18 + size * 2);
  return header;
}

function writeAddress(header: Buffer, offset: number, address: string): void {
  if (isIPv4(address)) {
    header.writeUInt32BE(ipv4ToNumber(address), offset);
    return;
  }
  // The URL parser of the runtime knows all spellings, an IPv4 address at the end among them (RFC 4291 section 2.2).
  const [plain = ''] = address.split('%');
  const [head = '', tail] = new URL(`http://[${plain}]`).hostname.slice(1, -1).split('::');
  const before = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups = [...before, ...Array<string>(8 - before.length - after.length).fill('0'), ...after];
  for (const [index, group] of groups.entries()) header.writeUInt16BE(Number.parseInt(group, 16), offset + index * 2);
}
