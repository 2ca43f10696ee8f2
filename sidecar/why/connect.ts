import { connect } from 'node:net';
import { describeError, systemCode } from '../../src/base/errors.ts';
import type { Endpoint } from '../../src/model/address.ts';
import type { ProbeFacts } from './facts.ts';

/** How long an instance may take to accept. */
const limitMs = 1000;

/** Connects and hangs up at once. Never rejects. */
export function tryToConnect(endpoint: Endpoint): Promise<ProbeFacts> {
  return new Promise((resolve) => {
    const beganMs = performance.now();
    const socket = connect({ host: endpoint.address, port: endpoint.port });
    const end = (probe: ProbeFacts): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(probe);
    };
    const timer = setTimeout(() => {
      end({ ok: false, code: 'ETIMEDOUT', problem: `no answer within ${limitMs / 1000} s` });
    }, limitMs);
    socket.on('error', (error) => {
      const code = systemCode(error) ?? '';
      const problem = code === 'ECONNREFUSED' ? 'connection refused' : describeError(error);
      end({ ok: false, code, problem });
    });
    socket.once('connect', () => end({ ok: true, elapsedMs: performance.now() - beganMs }));
  });
}
