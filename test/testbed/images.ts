import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { must } from '../support/agent.ts';

/**
 * `busybox`: busybox with all its applets (use its nc and httpd; a static busybox's wget may crash on names).
 * `node`: that, this machine's node, and what a sidecar calls: ip, nft, nsenter; a base for Legate's own image.
 */
export type ImageName = 'busybox' | 'node';

const programs = ['node', 'ip', 'nft', 'nsenter'];
/** Loaded by glibc when a name is asked for, so that ldd does not know of them. */
const nameServices = ['libnss_dns.so.2', 'libnss_files.so.2'];

/** The image as a tar for `docker import`, made once in a testbed's folder. */
export async function imageTar(folder: string, name: ImageName): Promise<string> {
  const file = join(folder, `${name}.tar`);
  if (existsSync(file)) return file;
  const work = mkdtempSync(join(folder, 'image-'));
  try {
    const root = join(work, 'root');
    for (const made of ['bin', 'tmp', 'etc', 'run', 'var/lib']) mkdirSync(join(root, made), { recursive: true });
    writeFileSync(join(root, 'etc', 'passwd'), 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n');
    writeFileSync(join(root, 'etc', 'group'), 'root:x:0:\nnogroup:x:65534:\n');
    const tar = join(work, 'tar');
    await busyboxInto(root);
    await must('tar', '-cf', tar, '-C', root, '.');
    if (name === 'node') {
      // Debian's static busybox, as a shell, prefers its own ip to the one on the path.
      await must('tar', '--delete', '-f', tar, './bin/sh');
      await must('tar', '-rhf', tar, '-C', '/', '--transform', 's,.*,bin/sh,', realpathSync('/bin/sh').slice(1));
      // Files of the machine go in under their own paths, links as what they lead to.
      await must('tar', '-rhf', tar, '-C', '/', ...(await nodeFiles()).map((path) => path.slice(1)));
    }
    renameSync(tar, file);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return file;
}

async function busyboxInto(root: string): Promise<void> {
  copyFileSync('/bin/busybox', join(root, 'bin', 'busybox'));
  for (const applet of (await must('busybox', '--list')).split('\n')) {
    if (applet !== 'busybox') symlinkSync('busybox', join(root, 'bin', applet));
  }
}

async function nodeFiles(): Promise<readonly string[]> {
  const paths = await Promise.all(programs.map((program) => must('which', program)));
  const linked = (await Promise.all(paths.map((path) => must('ldd', path)))).join('\n');
  const libraries = [...linked.matchAll(/(\/[^ ]+) \(/g)].map(([, path = '']) => path);
  const libc = libraries.find((path) => path.endsWith('/libc.so.6'));
  if (libc === undefined) throw new Error('node is not linked against glibc here');
  return [...new Set([...paths, ...libraries, ...nameServices.map((name) => join(dirname(libc), name))])];
}
