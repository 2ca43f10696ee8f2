import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';

/** What a test may need of the machine. */
export type Need = 'root' | 'nft' | 'netns' | 'docker' | 'dockerd' | 'busybox' | `command:${string}`;

function has(command: string): boolean {
  return (process.env.PATH ?? '').split(':').some((folder) => existsSync(`${folder}/${command}`));
}

function runs(command: string, ...args: string[]): boolean {
  try {
    execFileSync(command, args, { stdio: 'ignore', timeout: 10_000 });
    return true;
  } catch {
    return false;
  }
}

function missing(need: Need): string | undefined {
  const root = process.getuid?.() === 0;
  switch (need) {
    case 'root':
      return root ? undefined : 'needs root';
    case 'nft':
      return root && has('nft') && runs('nft', 'list', 'tables')
        ? undefined
        : 'needs root and nftables (package nftables)';
    case 'netns':
      return root && has('ip') && runs('ip', 'netns', 'list') ? undefined : 'needs root and iproute2';
    case 'docker':
      return has('docker') && runs('docker', 'version') ? undefined : 'needs a running Docker Engine';
    case 'dockerd':
      return root && has('dockerd') ? undefined : 'needs root and dockerd (package docker.io)';
    case 'busybox':
      return existsSync('/bin/busybox') ? undefined : 'needs /bin/busybox (package busybox-static)';
    default: {
      const command = need.slice('command:'.length);
      return has(command) ? undefined : `needs the command ${command}`;
    }
  }
}

/**
 * For tap's `skip` option: false when everything is there, else the reason, which names what is missing. With CI=true a
 * missing thing is a failure instead: the call throws.
 */
export function unless(...needs: Need[]): false | string {
  const reasons = needs.map(missing).filter((reason) => reason !== undefined);
  if (reasons.length === 0) return false;
  if (process.env.CI === 'true') throw new Error(`with CI=true nothing may be missing: ${reasons.join('; ')}`);
  return reasons.join('; ');
}
