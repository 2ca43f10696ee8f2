// What `npm start` runs: needs nothing but Node, so that it works in a fresh clone. Installs and builds where that is
// still to be done, then runs the demonstration in this process.
import { spawnSync } from 'node:child_process';
import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`Node ${process.versions.node} is too old: Legate needs 20.19 or newer.`);
  process.exit(1);
}

/** Runs npm where the checkout is; its output is shown only when it fails. */
function npm(doing, done, ...args) {
  const beganAt = performance.now();
  if (process.stdout.isTTY) process.stdout.write(`   ${doing} …\r`);
  const ran = spawnSync('npm', args, { cwd: root, encoding: 'utf8', shell: process.platform === 'win32' });
  if (ran.status !== 0) {
    console.error(`${ran.stdout ?? ''}${ran.stderr ?? ''}\n${doing} failed; the lines above say why.`);
    process.exit(1);
  }
  console.log(`${` ✔ ${done}`.padEnd(92)}${((performance.now() - beganAt) / 1000).toFixed(1)} s`);
}

/** Whether what is installed is what the lockfile says. Times prove nothing: a checkout gives old files new ones. */
function isInstalled() {
  const folder = join(root, 'node_modules');
  // A link leads to somebody else's modules, which are not ours to replace.
  if (lstatSync(folder, { throwIfNoEntry: false })?.isSymbolicLink()) return true;
  const list = join(folder, '.package-lock.json');
  if (!existsSync(list)) return false;
  const wanted = packagesOf(join(root, 'package-lock.json'));
  const present = packagesOf(list);
  return Object.entries(wanted).every(([path, { version, optional }]) => {
    const found = present[path]?.version;
    return path === '' || found === version || (found === undefined && optional === true);
  });
}

function packagesOf(file) {
  return JSON.parse(readFileSync(file, 'utf8')).packages ?? {};
}

/** Whether the last output of the compiler is newer than all that it reads; then running tests are not disturbed. */
function isBuilt() {
  const built = statSync(join(root, 'build', 'examples', 'demo', 'demo.js'), { throwIfNoEntry: false });
  if (built === undefined) return false;
  const folders = ['src', 'dns', 'proxy', 'sidecar', 'test', 'examples'];
  const sources = folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
      .map((entry) => join(entry.parentPath, entry.name)),
  );
  return [join(root, 'tsconfig.json'), ...sources].every((file) => statSync(file).mtimeMs <= built.mtimeMs);
}

if (!isInstalled())
  npm('installing the dependencies', 'installed the dependencies', 'install', '--ignore-scripts', '--no-save');
if (!isBuilt()) npm('building', 'built', 'run', '--silent', 'build');
await import(pathToFileURL(join(root, 'build', 'examples', 'demo', 'demo.js')).href);
