import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { Findings } from '../sidecar/docker/findings.ts';
import { parseLegateLabels } from '../sidecar/docker/labels.ts';
import { loadConfig } from '../src/config/load.ts';
import { optionsMarkdown } from '../src/config/options-document.ts';
import { Agent, checkout, legateMain, run } from './support/agent.ts';
import { freePort } from './support/faults.ts';

/** README says what is: every form that it shows is tried here. */
const readme = readFileSync(join(checkout, 'README.md'), 'utf8');

/** The text of a section of the second level. */
function section(title: string): string {
  const found = new RegExp(`^## ${title}\n(.*?)(?=^## |$(?![^]))`, 'ms').exec(readme)?.[1];
  if (found === undefined) throw new Error(`README has no section ${title}`);
  return found;
}

/** The first cells of a section's table, without its head. */
function firstCells(title: string): string[] {
  const rows = section(title)
    .split('\n')
    .filter((line) => line.startsWith('|'));
  return rows.slice(2).map((row) => (/^\|((?:\\\||[^|])*)\|/.exec(row)?.[1] ?? '').trim());
}

function codes(text: string): string[] {
  return [...text.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code.replaceAll('\\|', '|'));
}

function blocks(text: string, language: string): string[] {
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, 'gms'))].map(([, block = '']) => block);
}

const legate = (...args: string[]) => run(process.execPath, [legateMain, ...args]);

t.test('the table of options is that of the code', async (t) => {
  const [, between] = /<!-- options: begin [^\n]*-->\n(.*)<!-- options: end -->/s.exec(readme) ?? [];
  t.equal(
    between?.trim(),
    optionsMarkdown().trim(),
    'node build/sidecar/cli/main.js config options --markdown prints it',
  );
  const printed = await legate('config', 'options', '--markdown');
  t.equal(printed.stdout.trim(), optionsMarkdown().trim(), 'the command that the marker names prints it');
});

t.test('every configuration that is shown is one', async (t) => {
  const shown = blocks(readme, 'yaml');
  t.ok(shown.length >= 2);
  for (const text of shown) {
    const file = { path: 'README.md', text };
    const result = loadConfig({
      file,
      env: {},
      flags: {},
      defaults: { hostname: 'web-1', advertise: () => '10.77.0.1' },
    });
    t.same('faults' in result ? result.faults.map((fault) => fault.text) : [], [], text);
  }
});

t.test('every label that is shown is known', async (t) => {
  const written = codes(firstCells('Containers say what they are').join(' '));
  const labels = new Map<string, string>();
  let last = '';
  for (const code of written) {
    const [key = '', value = '1'] = code.split('=');
    // `legate.check.interval` `.timeout`: the second is short for its neighbour.
    last = key.startsWith('.') ? last.replace(/\.[^.]+$/, key) : key;
    labels.set(last, value);
  }
  t.ok(labels.size >= 14, [...labels.keys()].join(' '));
  const findings = new Findings('docker:readme');
  parseLegateLabels(labels, findings);
  t.same(
    findings.notes.map((note) => note.reason).filter((reason) => reason.includes('unknown label')),
    [],
  );
  const wrong = new Findings('docker:readme');
  parseLegateLabels(new Map([['legate.colour', 'red']]), wrong);
  t.match(wrong.notes[0]?.reason, /unknown label/, 'an unknown one would have been noticed');
});

t.test('README and the command line name the same commands', async (t) => {
  const named = new Set<string>();
  for (const cell of firstCells('Commands')) {
    let group = '';
    for (const code of codes(cell)) {
      const words = code
        .replace(/^legate /, '')
        .split(' ')
        .filter((word) => /^[a-z|]+$/.test(word));
      const [first = '', second] = words;
      group = first;
      if (second === undefined) named.add(first);
      else for (const each of second.split('|')) named.add(`${group} ${each}`);
    }
  }
  const commandsOf = async (...path: string[]): Promise<string[]> => {
    const help = await legate(...path, '-h');
    t.equal(help.status, 0, `legate ${path.join(' ')} -h`);
    const list = /^Commands:\n((?: {2,}.*\n?)*)/m.exec(help.stdout)?.[1] ?? '';
    const names = [...list.matchAll(/^ {2}([a-z]+)/gm)].map(([, name = '']) => name).filter((name) => name !== 'help');
    if (names.length === 0) return path.length === 0 ? [] : [path.join(' ')];
    return (await Promise.all(names.map((name) => commandsOf(...path, name)))).flat();
  };
  t.same([...named].sort(), (await commandsOf()).sort());
});

t.test('every path of the admin API answers', async (t) => {
  const agent = new Agent(t, {
    instances: [{ service: 'db', address: '127.0.0.1', port: 5432 }],
    store: { listen: '127.0.0.1:0' },
    tunnel: { listen: `127.0.0.1:${await freePort()}` },
  });
  t.equal((await agent.cli('init', '-c', agent.configFile)).status, 0);
  await agent.start();
  const entry = { service: 'mail', address: '127.0.0.1', port: 25 };
  const bodies: Record<string, unknown> = {
    '/api/instances/web-1/mail': entry,
    '/api/drain': { service: 'db' },
    '/api/kv/a': 'b',
    '/api/services/empty': { port: 80, balance: 'random' },
    '/api/policy': { default: 'deny' },
    '/api/intents/web/db': { action: 'allow' },
    '/api/tokens': {},
    '/api/ca/rotate': {},
    '/api/store/restore?overwrite=1': (await agent.api('GET', '/api/store/backup')).text,
  };
  let asked = 0;
  for (const cell of firstCells('Admin API')) {
    const words = codes(cell).flatMap((code) => code.split(' '));
    const methods = words.filter((word) => /^[A-Z]+$/.test(word)) as ('GET' | 'PUT' | 'POST' | 'DELETE')[];
    // In this order each finds what the one before it made.
    methods.sort((a, b) => 'PUT POST GET DELETE'.indexOf(a) - 'PUT POST GET DELETE'.indexOf(b));
    for (const written of words.filter((word) => word.startsWith('/'))) {
      // Only a service without instances can be forgotten.
      const service = methods.includes('DELETE') ? 'empty' : 'db';
      const known = {
        HOST: 'web-1',
        NAME: written.includes('services') ? service : 'mail',
        KEY: 'a',
        PREFIX: 'a',
        CONSUMER: 'web',
        SERVICE: 'db',
      };
      let path = Object.entries(known).reduce((text, [word, value]) => text.replace(word, value), written);
      path = path.replace('?service=', '?service=db').replace('name=&type=', 'name=db&type=A').replace('?cas=', '');
      for (const method of methods) {
        // They need another store, another host, another sidecar; other tests do that for real.
        if (method === 'POST' && /^\/api\/(store\/copy|hosts\/web-1\/revoke|handover)$/.test(path)) continue;
        asked += 1;
        // A stream of events has no end: that it begins is all there is to see.
        const answer =
          path === '/api/events' || path.includes('watch=')
            ? await firstEvent(agent.socket, path)
            : await agent.api(method, path, bodies[path]);
        t.equal(answer.status, 200, `${method} ${path}: ${answer.text.slice(0, 200)}`);
      }
    }
  }
  t.ok(asked >= 17, `${asked} requests were made`);
  t.match(await agent.json('/api/instances?service=db'), { instances: [{ draining: true }] });
  const fields = /An instance is `\{([^}]*)\}`/.exec(readme)?.[1]?.split(/,\s+/) ?? [];
  const { instances = [] } = await agent.json<{ instances: object[] }>('/api/instances');
  for (const field of fields) t.ok(field in (instances[0] ?? {}), `an instance has ${field}`);
});

async function firstEvent(socketPath: string, path: string): Promise<{ status: number; text: string }> {
  const { request } = await import('node:http');
  return new Promise((resolve, reject) => {
    const asked = request({ socketPath, path, timeout: 5000 }, (response) => {
      response.once('data', (chunk: Buffer) => {
        resolve({ status: response.statusCode ?? 0, text: chunk.toString() });
        asked.destroy();
      });
      response.on('error', () => undefined);
    });
    asked.on('timeout', () => asked.destroy(new Error('no event within 5 s')));
    asked.on('error', reject).end();
  });
}

t.test('scripts, links and dependencies that are named exist', async (t) => {
  const manifest = JSON.parse(readFileSync(join(checkout, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
    dependencies: Record<string, string>;
    devDependencies: Record<string, string>;
  };
  for (const [, script = ''] of readme.matchAll(/npm run ([a-z]+)/g))
    t.ok(script in manifest.scripts, `npm run ${script}`);
  for (const script of ['start', 'test']) t.ok(script in manifest.scripts, `npm ${script}`);
  const packages = { ...manifest.dependencies, ...manifest.devDependencies };
  const used = section('Dependencies')
    .split('\n')
    .filter((line) => line.startsWith('|'));
  const named = used.slice(2).flatMap((row) => codes(row.split('|')[2] ?? ''));
  for (const name of named) t.ok(name in packages, `${name} is a dependency`);
  for (const name of Object.keys(manifest.dependencies)) t.ok(named.includes(name), `${name} is in README's table`);

  const documents = ['README.md', 'examples/services-from-a-file/README.md', 'examples/labelled-containers/README.md'];
  for (const document of documents) {
    const text = readFileSync(join(checkout, document), 'utf8');
    const headings = [...text.matchAll(/^#+ (.*)$/gm)].map(([, title = '']) =>
      title.toLowerCase().replaceAll(' ', '-'),
    );
    for (const [, target = ''] of text.matchAll(/\]\(([^)]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      if (target.startsWith('#')) t.ok(headings.includes(target.slice(1)), `${document}: ${target}`);
      else t.ok(existsSync(join(checkout, dirname(document), target)), `${document}: ${target}`);
    }
  }
});
