// What `npm start` runs: needs nothing but Node, so that it works in a fresh clone. Installs and builds where that is
// still to be done, then runs the demonstration in this process.
import { spawnSync } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`Node ${process.versions.node} is too old: Legate needs 20.19 or newer.`);
  process.exit(1);
}

/** Runs npm where the checkout is; its output is shown only when it fails. */
function npm(what, ...args) {
  const beganAt = performance.now();
  const ran = spawnSync('npm', args, { cwd: root, encoding: 'utf8', shell: process.platform === 'win32' });
  if (ran.status !== 0) {
    console.error(`${ran.stdout ?? ''}${ran.stderr ?? ''}\n${what} failed; the lines above say why.`);
    process.exit(1);
  }
  console.log(` ✔ ${what}`.padEnd(92) + `${((performance.now() - beganAt) / 1000).toFixed(1)} s`);
}

const lockfile = join(root, 'package-lock.json');
const installed = join(root, 'node_modules', '.package-lock.json');
if (!existsSync(installed) || statSync(installed).mtimeMs < statSync(lockfile).mtimeMs - 1000) {
  npm('installed the dependencies', 'ci', '--ignore-scripts');
}
npm('built', 'run', '--silent', 'build');
await import(pathToFileURL(join(root, 'build', 'examples', 'demo', 'demo.js')).href);
