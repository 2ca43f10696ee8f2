import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { errorCodes } from '../src/base/errors.ts';

/** The checkout, seen from the compiled test. */
const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Rooms from the foundation upwards: a file imports only from its own room and from rooms with a smaller number. */
const tiers: readonly (readonly [folder: string, tier: number])[] = [
  ['src/base', 0],
  ['src/model', 1],
  ['src/config', 2],
  ['src/store', 2],
  ['src/health', 2],
  ['src/pki', 2],
  ['src/catalog', 3],
  ['src/registrar', 3],
  ['dns', 4],
  ['proxy', 4],
  ['sidecar', 5],
  ['examples', 6],
  ['test', 7],
];

function roomOf(file: string): readonly [string, number] | undefined {
  return tiers.find(([folder]) => file.startsWith(`${folder}/`));
}

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.ts$/.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

const files = ['src', 'dns', 'proxy', 'sidecar', 'test', 'examples'].flatMap(sources);

function importsOf(file: string): { readonly target: string; readonly typeOnly: boolean }[] {
  const text = readFileSync(join(root, file), 'utf8');
  const found = text.matchAll(/^(?:import|export)\s+(type\s)?[^;'"]*?from\s+'([^']+)'|import\('([^']+)'\)/gm);
  return [...found].map(([, type, from, dynamic]) => ({ target: from ?? dynamic ?? '', typeOnly: type !== undefined }));
}

t.test('imports go one way', async (t) => {
  t.ok(files.length > 30, 'the sources were found');
  for (const file of files) {
    const room = roomOf(file);
    if (room === undefined) {
      t.fail(`${file} is in no room`);
      continue;
    }
    for (const { target, typeOnly } of importsOf(file)) {
      if (!target.startsWith('.')) continue;
      const other = roomOf(relative(root, resolve(root, dirname(file), target)));
      if (other === undefined) {
        if (!target.endsWith('.json')) t.fail(`${file} imports ${target}, which is in no room`);
        continue;
      }
      if (other[0] === room[0]) continue;
      // Tests beside their source may use the tests' own helpers.
      if (/\.(test|netns|fixture|child)\.ts$|test-support\.ts$/.test(file) && other[0] === 'test') continue;
      // What the catalog is made of is read by the registrar; both stand on the same floor.
      if (room[0] === 'src/registrar' && other[0] === 'src/catalog') continue;
      // The registrar is handed the health runner and the configuration's types by the sidecar.
      if (other[1] < room[1]) continue;
      if (typeOnly && other[0] === 'src/config' && room[1] >= 2) continue;
      t.fail(`${file} (${room[0]}) imports ${target} (${other[0]})`);
    }
  }
});

t.test('only backends.ts names the stores', async (t) => {
  for (const file of files) {
    if (file.startsWith('src/store/') || file.endsWith('.test.ts') || file.startsWith('test/')) continue;
    for (const { target } of importsOf(file)) {
      t.notMatch(target, /store\/(embedded|etcd|consul)\//, file);
    }
  }
});

t.test('error codes in the sources are those of the table', async (t) => {
  for (const file of files) {
    const text = readFileSync(join(root, file), 'utf8');
    for (const [, code = ''] of text.matchAll(/'(E_[A-Z_]+)'/g)) {
      if (code !== 'E_INTERNAL') t.ok(code in errorCodes, `${code} in ${file}`);
    }
  }
  const all = files.map((file) => readFileSync(join(root, file), 'utf8')).join('\n');
  for (const code of Object.keys(errorCodes)) t.match(all, `'${code}'`, `${code} is used`);
});

t.test('metric names have the form legate_<part>_<what>_<unit>', async (t) => {
  const parts = new Set([
    'agent',
    'store',
    'catalog',
    'registrar',
    'health',
    'docker',
    'dns',
    'link',
    'http',
    'http2',
    'tunnel',
    'callers',
    'vip',
    'admin',
    'process',
    'network',
    'policy',
    'pki',
  ]);
  const units =
    /_(total|count|bytes|seconds|ratio|bool|version|revision|revisions|records|keys|transactions|connections)$/;
  const names = new Set<string>();
  for (const file of files) {
    if (file.endsWith('.test.ts')) continue;
    for (const [, name = ''] of readFileSync(join(root, file), 'utf8').matchAll(/'(legate_[a-z0-9_]+)'/g))
      if (!name.endsWith('_')) names.add(name);
  }
  t.ok(names.size > 5);
  for (const name of names) {
    t.match(name, units, `${name} ends in its unit`);
    t.ok(parts.has(name.split('_')[1] ?? ''), `${name} names a part`);
  }
});
