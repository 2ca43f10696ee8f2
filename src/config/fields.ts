import { nearest, printable } from '../base/text.ts';
import { type Faults, joinPath, keyText } from './fault.ts';
import type { Tree, TreeEntry } from './tree.ts';
import { kindText, type Located, type ValueType } from './value-types.ts';

/**
 * The entries of a map by key: those with an empty value are left out, as if they were not written. Undefined, with a
 * fault, when it is not a map. A second entry of the same key is a fault, and so is a key for which `known` is false.
 */
export function mapFields(
  tree: Tree,
  path: string,
  faults: Faults,
  known: { has(key: string): boolean; keys(): Iterable<string> },
): Map<string, TreeEntry> | undefined {
  if (tree.kind === 'null') return new Map();
  if (tree.kind !== 'map') {
    const keys = [...known.keys()];
    faults.add(tree.at, path, `${kindText(tree)} is not a map${keys.length > 0 ? ` (of ${keys.join(', ')})` : ''}`);
    return undefined;
  }
  const first = new Map<string, TreeEntry>();
  const fields = new Map<string, TreeEntry>();
  for (const entry of tree.entries) {
    const earlier = first.get(entry.key);
    if (earlier !== undefined) {
      const where = earlier.keyAt.text === entry.keyAt.text ? '' : ` (first at ${earlier.keyAt.text})`;
      faults.add(entry.keyAt, joinPath(path, entry.key), `is written twice${where}`);
      continue;
    }
    first.set(entry.key, entry);
    if (!known.has(entry.key)) {
      faults.addKey(entry.keyAt, path, entry.key, unknownKey(entry.key, known.keys()));
      continue;
    }
    if (entry.value.kind !== 'null') fields.set(entry.key, entry);
  }
  return fields;
}

/** A map whose keys are free, within a bound. */
export const anyKey = { has: () => true, keys: () => [] as string[] };

export function unknownKey(key: string, known: Iterable<string>): string {
  const candidates = [...known];
  const near = nearest(key, candidates);
  if (near !== undefined) return `unknown key \`${keyText(key)}\`; did you mean \`${near}\`?`;
  return `unknown key \`${keyText(key)}\`; known are ${candidates.join(', ')}`;
}

/** Reads the fields of one entry (an instance, a check, a link): remembers faults, so that all are found. */
export class FieldReader {
  readonly #tree: Tree;
  readonly #path: string;
  readonly #faults: Faults;
  readonly #fields: Map<string, TreeEntry> | undefined;

  constructor(tree: Tree, path: string, faults: Faults, known: readonly string[]) {
    this.#tree = tree;
    this.#path = path;
    this.#faults = faults;
    this.#fields = mapFields(tree, path, faults, new Set(known));
  }

  tree(key: string): Tree | undefined {
    return this.#fields?.get(key)?.value;
  }

  pathOf(key: string): string {
    return joinPath(this.#path, key);
  }

  /** Undefined when it is not there, or has a fault, which was added. */
  optional<T>(key: string, type: ValueType<T>): Located<T> | undefined {
    const tree = this.tree(key);
    if (tree === undefined) return undefined;
    const value = type.parse(tree, this.pathOf(key), this.#faults);
    return value === undefined ? undefined : { value, at: tree.at };
  }

  required<T>(key: string, type: ValueType<T>): Located<T> | undefined {
    if (this.#fields !== undefined && !this.#fields.has(key)) {
      this.#faults.add(this.#tree.at, this.#path, `\`${key}\` is missing (${type.label})`);
    }
    return this.optional(key, type);
  }
}

/** A map of free keys to text, such as an instance's `meta`. */
export function textMapType(item: ValueType<string>, maximum: number): ValueType<Readonly<Record<string, string>>> {
  return {
    label: 'map of text',
    form: 'yaml',
    parse(tree, path, faults) {
      const before = faults.count;
      const fields = mapFields(tree, path, faults, anyKey);
      if (fields !== undefined && fields.size > maximum) {
        faults.add(tree.at, path, `${fields.size} keys are more than the ${maximum} allowed`);
      }
      // No prototype: a key `__proto__` is a key like any other.
      const values: Record<string, string> = Object.create(null);
      for (const [key, entry] of fields ?? []) {
        if (key === '' || key.length > 128 || printable(key) !== key) {
          faults.add(entry.keyAt, joinPath(path, key), 'is not a usable key (1 to 128 printable characters)');
          continue;
        }
        const value = item.parse(entry.value, joinPath(path, key), faults);
        if (value !== undefined) values[key] = value;
      }
      return faults.count === before ? { ...values } : undefined;
    },
  };
}
