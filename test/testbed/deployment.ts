import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { checkout, type Teardown, temporaryFolder } from '../support/agent.ts';
import type { TestbedHost } from './host.ts';

const readHere = (path: string): string => readFileSync(join(checkout, path), 'utf8');

/** The capabilities that the service's unit leaves, as `net_admin`. */
export function unitCapabilities(): string[] {
  const [, line = ''] = /^CapabilityBoundingSet=(.*)$/m.exec(readHere('deploy/legate.service')) ?? [];
  return line.split(' ').map((name) => name.replace(/^CAP_/, '').toLowerCase());
}

/** What to put in front of a command so that it has these capabilities and can get no others, as under the unit. */
export function limitedTo(capabilities: readonly string[]): readonly string[] {
  const set = ['-all', ...capabilities.map((name) => `+${name}`)].join(',');
  return ['setpriv', '--bounding-set', set, '--inh-caps', '-all', '--no-new-privs'];
}

/** The words of the `docker run` that deploy/README.md shows, from `run` on. */
export function documentedRun(): string[] {
  const [, text = ''] = /^docker (run -d --name legate (?:.*\\\n)*.*)$/m.exec(readHere('deploy/README.md')) ?? [];
  return text.replaceAll('\\\n', ' ').split(/\s+/).filter(Boolean);
}

/**
 * What `docker build .` sends of a checkout, as .dockerignore says, in a folder of its own: in a worktree, node_modules may
 * be a link, which Docker does not follow.
 */
function buildContext(t: Teardown): string {
  const folder = temporaryFolder(t, 'legate-context-');
  const bundle = 'build/sidecar/cli/bundle';
  if (!existsSync(join(checkout, bundle))) throw new Error('there is no bundle to make an image of: npm run build');
  const sent = readHere('.dockerignore')
    .split('\n')
    .filter((line) => line.startsWith('!'))
    .map((line) => line.slice(1).replace(/\/\*\.js$/, ''));
  for (const path of ['Dockerfile', '.dockerignore', ...sent]) {
    mkdirSync(join(folder, dirname(path)), { recursive: true });
    cpSync(join(checkout, path), join(folder, path), { recursive: true, dereference: true });
  }
  return folder;
}

/** Builds the image on a host from what is there, without a registry. */
export async function buildImage(t: Teardown, host: TestbedHost): Promise<void> {
  const base = await host.image('node');
  const build = ['docker', 'build', '--quiet', '--build-arg', `BASE=${base}`, '-t', 'legate', buildContext(t)];
  await host.run('env', 'DOCKER_BUILDKIT=0', ...build);
}
