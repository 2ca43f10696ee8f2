/**
 * Puts the command with all that it needs into a few files in place of hundreds, which node finds and loads faster:
 * build/sidecar/cli/main.js and what it loads later, beside it in bundle/. The modules that tsc made stay for tests.
 */
import { rm } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('.', import.meta.url));
const folder = `${root}build/sidecar/cli`;

await rm(`${folder}/bundle`, { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: ['sidecar/cli/main.ts'],
  outdir: folder,
  chunkNames: 'bundle/[name]-[hash]',
  bundle: true,
  splitting: true,
  platform: 'node',
  format: 'esm',
  target: 'node20.19',
  sourcemap: true,
  sourcesContent: false,
  // It brings a binary module, which it looks for beside itself.
  external: ['classic-level'],
  // Bundled CommonJS asks for node's own modules in its way, which modules have not.
  banner: {
    js: "import { createRequire as requireFrom } from 'node:module';\nconst require = requireFrom(import.meta.url);",
  },
  logLevel: 'warning',
});
