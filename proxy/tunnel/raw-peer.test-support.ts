import { connect, type TLSSocket } from 'node:tls';
import type { Credentials } from '../../src/model/credentials.ts';
import { applicationProtocols } from '../../src/pki/desk.ts';
import { FrameParser, type FrameSink } from './frame-parser.ts';
import { FrameWriter, GatherBuffers } from './frame-writer.ts';

/** What came in, a line a frame: `open 1 db`, `data 5`, `reset 1 gone …`. */
export class FrameRecorder implements FrameSink {
  readonly lines: string[] = [];
  bytes = 0;
  hello({ version, streamCredit, connectionCredit, maxStreams }: Parameters<FrameSink['hello']>[0]): void {
    this.lines.push(`hello ${version} ${streamCredit} ${connectionCredit} ${maxStreams}`);
  }
  open(stream: number, head: Parameters<FrameSink['open']>[1]): void {
    this.lines.push(`open ${stream} ${head.service}`);
  }
  opened(stream: number): void {
    this.lines.push(`opened ${stream}`);
  }
  dataBegins(stream: number, bytes: number): void {
    this.lines.push(`data ${stream} ${bytes}`);
  }
  data(piece: Buffer): void {
    this.bytes += piece.length;
  }
  end(stream: number): void {
    this.lines.push(`end ${stream}`);
  }
  reset(stream: number, reason: string, detail: string): void {
    this.lines.push(`reset ${stream} ${reason} ${detail}`.trimEnd());
  }
  window(stream: number, bytes: number): void {
    this.lines.push(`window ${stream} ${bytes}`);
  }
  ping(): void {
    this.lines.push('ping');
  }
  pong(): void {
    this.lines.push('pong');
  }
  goAway({ reason, detail }: Parameters<FrameSink['goAway']>[0]): void {
    this.lines.push(`goaway ${reason} ${detail}`.trimEnd());
  }
  ignored(): void {
    this.lines.push('ignored');
  }
}

/** A peer that does as a test says: it writes any frames, and answers nothing by itself. */
export interface RawPeer {
  readonly socket: TLSSocket;
  readonly received: FrameRecorder;
  readonly writer: FrameWriter;
  /** Why it could not connect, or how it ended. */
  readonly problem: string | undefined;
  readonly closed: boolean;
}

export interface RawPeerOptions {
  readonly port: number;
  readonly credentials: Pick<Credentials, 'chain' | 'key' | 'roots'> | undefined;
  readonly protocols?: readonly string[];
  readonly maxVersion?: 'TLSv1.2';
}

/** Resolves when the handshake is done or has failed. */
export function connectRaw({ port, credentials, protocols, maxVersion }: RawPeerOptions): Promise<RawPeer> {
  return new Promise((resolve) => {
    const received = new FrameRecorder();
    const parser = new FrameParser(received);
    const own = credentials && { cert: credentials.chain, key: credentials.key, ca: [...credentials.roots] };
    const socket = connect({
      ...{ host: '127.0.0.1', port, rejectUnauthorized: false, checkServerIdentity: () => undefined, ...own },
      ALPNProtocols: [...(protocols ?? [applicationProtocols.tunnel])],
      ...(maxVersion && { maxVersion }),
    });
    const peer = {
      ...{ socket, received, problem: undefined as string | undefined, closed: false },
      writer: new FrameWriter(new GatherBuffers(), (bytes) => socket.write(Buffer.from(bytes))),
    };
    socket.on('data', (chunk: Buffer) => parser.push(chunk));
    socket.once('secureConnect', () => resolve(peer));
    socket.on('error', (error) => {
      peer.problem = String((error as { code?: unknown }).code ?? error.message);
      resolve(peer);
    });
    socket.once('close', () => {
      peer.closed = true;
      resolve(peer);
    });
  });
}
