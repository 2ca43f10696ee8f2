import { isAlias, isMap, isPair, isScalar, isSeq, LineCounter, type Node, parseDocument } from 'yaml';
import { describeError } from '../base/errors.ts';
import { type Faults, type Place, quoted } from './fault.ts';

/**
 * What was written, before anybody asks what it means: scalars are the text that was typed (`5432`, `off` and `"5432"`
 * are all text), every value knows its place. File, flags, variables and API bodies all become this.
 */
export type Tree =
  | { readonly kind: 'scalar'; readonly text: string; readonly at: Place }
  | { readonly kind: 'null'; readonly at: Place }
  | { readonly kind: 'list'; readonly items: readonly Tree[]; readonly at: Place }
  | { readonly kind: 'map'; readonly entries: readonly TreeEntry[]; readonly at: Place };

export interface TreeEntry {
  readonly key: string;
  readonly keyAt: Place;
  readonly value: Tree;
}

export const treeLimits = { bytes: 1024 * 1024, depth: 16, values: 200_000, syntaxFaults: 10 } as const;

/**
 * Parses YAML (1.2, so also JSON). Undefined when its form is wrong; the faults say where. `placeAt` makes a place of
 * line and column, both from 1.
 */
export function parseTree(
  text: string,
  name: string,
  placeAt: (line: number, column: number, offset: number) => Place,
  faults: Faults,
): Tree | undefined {
  const start = { ...placeAt(1, 1, 0), text: name };
  const bytes = Buffer.byteLength(text);
  if (bytes > treeLimits.bytes) {
    faults.add(start, '', `${bytes} bytes are over the limit of ${treeLimits.bytes}`);
    return undefined;
  }
  const lines = new LineCounter();
  const place = (offset: number): Place => {
    const { line, col } = lines.linePos(offset);
    return placeAt(Math.max(1, line), Math.max(1, col), offset);
  };
  try {
    // The failsafe schema leaves every scalar as the text that was typed. The library's own search for equal keys
    // compares all pairs; ours is in `mapFields`.
    const document = parseDocument(text, {
      lineCounter: lines,
      schema: 'failsafe',
      uniqueKeys: false,
      prettyErrors: false,
      logLevel: 'silent',
    });
    for (const error of document.errors.slice(0, treeLimits.syntaxFaults)) {
      faults.add(place(error.pos[0]), '', `not valid YAML: ${error.message.replaceAll('\n', ' ')}`);
    }
    if (document.errors.length > 0) return undefined;
    return new Builder(place, faults).build(document.contents, place(0), 0);
  } catch (error) {
    const deep = error instanceof RangeError;
    faults.add(start, '', deep ? 'is nested too deeply' : `not valid YAML: ${describeError(error)}`);
    return undefined;
  }
}

/** Turns the library's nodes into a Tree; anchors are remembered in passing, so that an alias costs one look-up. */
class Builder {
  readonly #place: (offset: number) => Place;
  readonly #faults: Faults;
  readonly #anchors = new Map<string, Node>();
  #values = 0;

  constructor(place: (offset: number) => Place, faults: Faults) {
    this.#place = place;
    this.#faults = faults;
  }

  build(node: unknown, parent: Place, depth: number): Tree | undefined {
    const at = this.#placeOf(node) ?? parent;
    this.#values += 1;
    if (this.#values > treeLimits.values) {
      if (this.#values === treeLimits.values + 1) this.#faults.add(at, '', `more than ${treeLimits.values} values`);
      return undefined;
    }
    if (depth > treeLimits.depth) {
      this.#faults.add(at, '', `is nested more than ${treeLimits.depth} deep`);
      return undefined;
    }
    if (isAlias(node)) return this.#alias(node.source, at, depth);
    if (isScalar(node) || isMap(node) || isSeq(node)) {
      if (node.anchor !== undefined) this.#anchors.set(node.anchor, node);
    }
    if (isScalar(node)) return scalarTree(node.value, node.type === 'PLAIN' || node.type === undefined, at);
    if (isSeq(node)) return this.#list(node.items, at, depth);
    if (isMap(node)) return this.#map(node.items, at, depth);
    return { kind: 'null', at };
  }

  #alias(name: string, at: Place, depth: number): Tree | undefined {
    const target = this.#anchors.get(name);
    if (target !== undefined) return this.build(target, at, depth + 1);
    this.#faults.add(at, '', `the alias ${quoted(`*${name}`)} has no anchor before it`);
    return undefined;
  }

  #list(nodes: readonly unknown[], at: Place, depth: number): Tree {
    const items: Tree[] = [];
    for (const node of nodes) {
      const item = this.build(node, at, depth + 1);
      if (item !== undefined) items.push(item);
    }
    return { kind: 'list', items, at };
  }

  #map(pairs: readonly unknown[], at: Place, depth: number): Tree {
    const entries: TreeEntry[] = [];
    for (const pair of pairs) {
      if (!isPair(pair)) continue;
      const keyAt = this.#placeOf(pair.key) ?? at;
      if (!isScalar(pair.key)) {
        this.#faults.add(keyAt, '', 'a key must be plain text');
        continue;
      }
      const value = this.build(pair.value, keyAt, depth + 1);
      if (value !== undefined) entries.push({ key: String(pair.key.value ?? ''), keyAt, value });
    }
    return { kind: 'map', entries, at };
  }

  #placeOf(node: unknown): Place | undefined {
    const known = isScalar(node) || isMap(node) || isSeq(node) || isAlias(node);
    return known && node.range ? this.#place(node.range[0]) : undefined;
  }
}

/** YAML's ways of writing nothing (core schema, YAML 1.2 section 10.3.2) count only when they are not quoted. */
function scalarTree(value: unknown, plain: boolean, at: Place): Tree {
  const text = value === null || value === undefined ? '' : String(value);
  if (plain && /^(~|null|Null|NULL)?$/.test(text)) return { kind: 'null', at };
  return { kind: 'scalar', text, at };
}

/** The same of a value that was JSON: a body of the admin API. Undefined, with a fault, when it is too deep or large. */
export function treeOfValue(value: unknown, at: Place, faults: Faults): Tree | undefined {
  let values = 0;
  const build = (part: unknown, depth: number): Tree => {
    values += 1;
    if (values > treeLimits.values || depth > treeLimits.depth) throw new RangeError('too deep or too large');
    if (part === null || part === undefined) return { kind: 'null', at };
    if (Array.isArray(part)) return { kind: 'list', items: part.map((item) => build(item, depth + 1)), at };
    if (typeof part !== 'object') return { kind: 'scalar', text: String(part), at };
    const entries = Object.entries(part).map(([key, item]) => ({ key, keyAt: at, value: build(item, depth + 1) }));
    return { kind: 'map', entries, at };
  };
  try {
    return build(value, 0);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    faults.add(at, '', 'is nested too deeply or has too many values');
    return undefined;
  }
}

/** The value of which this is the tree, its scalars as text. */
export function plainValue(tree: Tree): unknown {
  if (tree.kind === 'scalar') return tree.text;
  if (tree.kind === 'null') return null;
  if (tree.kind === 'list') return tree.items.map(plainValue);
  // No prototype: a key `__proto__` is a key like any other.
  const value: Record<string, unknown> = Object.create(null);
  for (const entry of tree.entries) value[entry.key] = plainValue(entry.value);
  return value;
}

/** Where the part was written that a path such as `[0].match.host` leads to, or the nearest one above it. */
export function placeIn(tree: Tree, path: string): Place {
  let at: Tree = tree;
  for (const [, index, key] of path.matchAll(/\[(\d+)\]|\.?([^.[]+)/g)) {
    const next: Tree | undefined =
      at.kind === 'list'
        ? at.items[Number(index)]
        : at.kind === 'map'
          ? at.entries.find((entry) => entry.key === key)?.value
          : undefined;
    if (next === undefined) break;
    at = next;
  }
  return at.at;
}
