import { describeError } from '../base/errors.ts';
import { nearest } from '../base/text.ts';
import { hostNameOf } from '../model/names.ts';
import { assemble } from './assemble.ts';
import type { Config } from './config.ts';
import { type Fault, Faults, joinPath, type Place, quoted } from './fault.ts';
import { mapFields, unknownKey } from './fields.ts';
import {
  flagOf,
  isOptionKey,
  type Option,
  type OptionKey,
  type OptionValue,
  optionKeys,
  options,
  variableOf,
} from './options.ts';
import { checkSurroundings, type FileFault } from './surroundings.ts';
import { parseTree, type Tree } from './tree.ts';

/** A file that was read: `path` is only for messages. */
export interface ConfigFile {
  readonly path: string;
  readonly text: string;
}

export interface ConfigSources {
  /** The YAML file, where there is one. */
  readonly file?: ConfigFile;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** By option key: `{'dns.listen': '127.0.0.1:0'}`. */
  readonly flags: Readonly<Record<string, string | undefined>>;
  readonly defaults: {
    readonly hostname: string;
    /** The address of the default route; a throw becomes a fault that asks for `advertise`. */
    advertise(): string;
  };
  /** To have what would start, and not work as it is written, among the faults. */
  readonly fileFault?: FileFault;
}

export type LoadResult = { readonly config: Config } | { readonly faults: readonly Fault[]; readonly count: number };

/** Variables with our prefix that are no options: the command line reads them. */
const otherVariables: ReadonlySet<string> = new Set(['LEGATE_ADMIN', 'LEGATE_TOKEN_FILE']);

const variableOrder = 1e9;
const flagOrder = 2e9;
const defaultPlace: Place = { text: '', order: 3e9 };

/**
 * Reads the configuration: a flag wins over a variable, that over the file, that over the default. Every source is
 * checked as a whole, also where another one wins. Gives either a complete configuration or all faults, in the order in
 * which they were written; `count` counts also those beyond the bound on faults kept. Never throws for any input.
 */
export function loadConfig(sources: ConfigSources): LoadResult {
  const faults = new Faults();
  const values = new Values(sources, faults);
  if (sources.file !== undefined) readFile(sources.file, values, faults);
  readVariables(sources.env, values, faults);
  readFlags(sources.flags, values, faults);
  values.fillDefaults();
  // What depends on several values is checked on what was read, so that these faults come with the others.
  const config = assemble(values, faults);
  if (sources.fileFault !== undefined) checkSurroundings(values, faults, sources.fileFault);
  if (config === undefined || faults.count > 0) return { faults: faults.list(), count: faults.count };
  return { config };
}

/** Values by option key, with the place of the one that wins. */
export class Values {
  readonly #values = new Map<OptionKey, { value: unknown; at: Place }>();
  readonly #faulty = new Set<OptionKey>();
  readonly #sources: ConfigSources;
  readonly #faults: Faults;

  constructor(sources: ConfigSources, faults: Faults) {
    this.#sources = sources;
    this.#faults = faults;
  }

  /** Undefined only when it had a fault. */
  get<K extends OptionKey>(key: K): OptionValue<K> | undefined {
    // The table's parser for this very key made the value.
    return this.#values.get(key)?.value as OptionValue<K> | undefined;
  }

  placeOf(key: OptionKey): Place {
    return this.#values.get(key)?.at ?? defaultPlace;
  }

  /** Parses and takes a value; later ones win. */
  set(key: OptionKey, tree: Tree): void {
    const option: Option<unknown> = options[key];
    const value = option.type.parse(tree, key, this.#faults);
    if (value === undefined) {
      this.#faulty.add(key);
      return;
    }
    if (option.notYet === true && !sameText(value, option)) {
      const shown = tree.kind === 'scalar' ? `${quoted(tree.text)} ` : '';
      const wanted = option.default === '' ? 'leave it out' : `leave it at ${quoted(option.default)}`;
      this.#faults.add(tree.at, key, `${shown}is not yet in this version; ${wanted}`);
      this.#faulty.add(key);
      return;
    }
    this.#values.set(key, { value, at: tree.at });
  }

  fillDefaults(): void {
    for (const key of optionKeys) {
      if (this.#values.has(key) || this.#faulty.has(key)) continue;
      const option: Option<unknown> = options[key];
      if (option.computed === true) this.#compute(key);
      else this.#values.set(key, { value: defaultValue(option), at: defaultPlace });
    }
  }

  #compute(key: OptionKey): void {
    const { hostname, advertise } = this.#sources.defaults;
    if (key === 'host') {
      const name = hostNameOf(hostname);
      if (name !== undefined) this.#values.set(key, { value: name, at: defaultPlace });
      else this.#faults.add(defaultPlace, key, `the hostname ${quoted(hostname)} gives no name; set \`host\``);
      return;
    }
    try {
      this.set(key, { kind: 'scalar', text: advertise(), at: defaultPlace });
    } catch (error) {
      this.#faults.add(defaultPlace, key, `${describeError(error)}; set \`advertise\` to an address of this host`);
    }
  }
}

/** The parsed default of an option that has one as text. */
export function defaultValue(option: Option<unknown>): unknown {
  const faults = new Faults();
  const tree = textTree(option, option.default, defaultPlace, faults);
  const value = tree === undefined ? undefined : option.type.parse(tree, 'default', faults);
  if (value === undefined) throw new Error(`the option table has an impossible default: ${faults.list()[0]?.text}`);
  return value;
}

function sameText(value: unknown, option: Option<unknown>): boolean {
  const plain = (part: unknown): string =>
    JSON.stringify(part, (key, inner: unknown) => (key === 'at' ? undefined : inner));
  return plain(value) === plain(defaultValue(option));
}

/** The text of a flag or variable as a tree: YAML for maps and lists of maps, else one scalar. */
function textTree(option: Option<unknown>, text: string, at: Place, faults: Faults): Tree | undefined {
  if (option.type.form === 'text') return { kind: 'scalar', text, at };
  return parseTree(text, at.text, () => at, faults);
}

function readFile(file: ConfigFile, values: Values, faults: Faults): void {
  const tree = readTree(file, faults);
  if (tree !== undefined) readGroup(tree, '', values, faults);
}

/** What is written where in a configuration file; undefined where it is no YAML, which is a fault then. */
export function readTree(file: ConfigFile, faults: Faults): Tree | undefined {
  const placeAt = (line: number, column: number, offset: number): Place => ({
    text: `${file.path}:${line}:${column}`,
    order: offset,
  });
  return parseTree(file.text, file.path, placeAt, faults);
}

/** Reads the keys below `prefix`: each is an option or a group of options. */
function readGroup(tree: Tree, prefix: string, values: Values, faults: Faults): void {
  for (const [name, entry] of mapFields(tree, prefix, faults, keysBelow(prefix)) ?? []) {
    const key = joinPath(prefix, name);
    if (isOptionKey(key)) values.set(key, entry.value);
    else readGroup(entry.value, key, values, faults);
  }
}

/** The names of options and groups directly below a prefix. */
function keysBelow(prefix: string): ReadonlySet<string> {
  const start = prefix === '' ? '' : `${prefix}.`;
  const below = optionKeys.filter((key) => key.startsWith(start));
  return new Set(below.map((key) => key.slice(start.length).split('.', 1)[0] ?? ''));
}

/** A variable that is set to nothing counts as not set: compose files and unit files write that for "none". */
function readVariables(env: ConfigSources['env'], values: Values, faults: Faults): void {
  const known = new Map(optionKeys.map((key) => [variableOf(key), key]));
  for (const [variable, text] of Object.entries(env)) {
    if (!variable.startsWith('LEGATE_') || text === undefined || text === '') continue;
    const at: Place = { text: variable, order: variableOrder };
    const key = known.get(variable);
    if (key !== undefined) readText(key, text, at, values, faults);
    else if (!otherVariables.has(variable)) reportVariable(variable, [...known.keys()], at, faults);
  }
}

/**
 * Only what looks like a slip of the pen is a fault: other programs set variables with our prefix, too (the links of a
 * container that is called legate, for one).
 */
function reportVariable(variable: string, known: readonly string[], at: Place, faults: Faults): void {
  const bare = known.map((name) => name.slice('LEGATE_'.length));
  const near = nearest(variable.slice('LEGATE_'.length), bare);
  if (near !== undefined) faults.add(at, '', `unknown variable; did you mean \`LEGATE_${near}\`?`);
}

function readFlags(flags: ConfigSources['flags'], values: Values, faults: Faults): void {
  for (const [key, text] of Object.entries(flags)) {
    if (text === undefined) continue;
    const at: Place = { text: isOptionKey(key) ? `--${flagOf(key)}` : '', order: flagOrder };
    if (isOptionKey(key)) readText(key, text, at, values, faults);
    else faults.addKey(at, '', key, unknownKey(key, optionKeys));
  }
}

function readText(key: OptionKey, text: string, at: Place, values: Values, faults: Faults): void {
  const tree = textTree(options[key], text, at, faults);
  if (tree !== undefined) values.set(key, tree);
}
