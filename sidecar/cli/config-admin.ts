import { LegateError } from '../../src/base/errors.ts';
import { printable } from '../../src/base/text.ts';
import { formatEndpoint } from '../../src/model/address.ts';
import { readConfig } from './commands/mesh.ts';
import type { Session } from './session.ts';

/**
 * Where the sidecar of a configuration has its admin API, and its token where that is needed: the socket, where there is
 * one. E_CONFIG when the file has faults, which are printed, or when there is none.
 */
export function adminOf(
  session: Session,
  file: string,
): { readonly address: string; readonly tokenFile: string | undefined } {
  const config = readConfig(session, file, 'nothing was asked.');
  const listens = config?.admin.listen ?? [];
  const listen = listens.find(({ kind }) => kind === 'unix') ?? listens[0];
  if (config === undefined || listen === undefined) {
    const message = `${printable(file)} does not say where the admin API is`;
    throw new LegateError('E_CONFIG', message, { hint: 'correct it, or name the API with --admin' });
  }
  if (listen.kind === 'unix') return { address: `unix:${listen.path}`, tokenFile: undefined };
  return { address: formatEndpoint(listen), tokenFile: config.admin.tokenFile };
}
