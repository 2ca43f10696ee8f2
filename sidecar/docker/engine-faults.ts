import { describeError, LegateError, systemCode } from '../../src/base/errors.ts';
import { printable, truncate } from '../../src/base/text.ts';

export type EngineMethod = 'GET' | 'POST';

/** Something answers at the socket, and it is not a Docker Engine, or not one that can be understood. */
export function foreignAnswer(socket: string, path: string, method: EngineMethod = 'GET'): LegateError {
  return new LegateError(
    'E_DOCKER',
    `the answer at ${socket} to ${request(path, method)} is not that of a Docker Engine`,
    {
      hint: 'Is docker.socket the socket of a Docker Engine?',
    },
  );
}

/** E_DOCKER with the likely cause of a failed request. */
export function engineFault(
  socket: string,
  path: string,
  timeoutMs: number,
  error: unknown,
  method: EngineMethod = 'GET',
): LegateError {
  const { message, hint } = explain(socket, request(path, method), timeoutMs, error);
  return new LegateError('E_DOCKER', message, { hint, cause: error });
}

function explain(socket: string, asked: string, timeoutMs: number, error: unknown): { message: string; hint: string } {
  const otherwise = 'set docker.socket or docker.expose: off';
  switch (systemCode(error)) {
    case 'ENOENT':
      return { message: `no Docker socket at ${socket}`, hint: `Is the Engine running? Otherwise ${otherwise}.` };
    case 'EACCES':
    case 'EPERM':
      return {
        message: `no permission to open the Docker socket ${socket}`,
        hint: `Run as root or in the group docker, or ${otherwise}.`,
      };
    case 'ECONNREFUSED':
    case 'ENOTSOCK':
      return {
        message: `nothing answers at the Docker socket ${socket}`,
        hint: `Is the Engine running? Otherwise ${otherwise}.`,
      };
    default:
      if (isLate(error)) {
        return {
          message: `the Docker Engine did not answer ${asked} at ${socket} within ${timeoutMs / 1000} s`,
          hint: 'Is it overloaded or stuck? Try docker ps; restart it if that hangs too.',
        };
      }
      return {
        message: `the connection to the Docker Engine failed at ${asked}: ${printable(truncate(describeError(error), 200))}`,
        hint: `Does the Engine restart? Is ${socket} its socket?`,
      };
  }
}

function isLate(error: unknown): boolean {
  const codes = ['UND_ERR_HEADERS_TIMEOUT', 'UND_ERR_BODY_TIMEOUT', 'UND_ERR_CONNECT_TIMEOUT'];
  return codes.includes(systemCode(error) ?? '') || (error instanceof Error && error.name === 'TimeoutError');
}

function request(path: string, method: EngineMethod): string {
  return `${method} ${path.split('?', 1)[0] ?? path}`;
}
