const units = [
  ['GiB', 1024 ** 3],
  ['MiB', 1024 ** 2],
  ['KiB', 1024],
] as const;

/** Reads a number of bytes: `64KiB`, `10MiB`, `1GiB` or a plain number. Undefined for anything else. */
export function parseSize(text: string): number | undefined {
  const [, digits, unit] = /^(\d{1,12})(KiB|MiB|GiB|B)?$/.exec(text) ?? [];
  if (digits === undefined) return undefined;
  return Number(digits) * (units.find(([name]) => name === unit)?.[1] ?? 1);
}

/** Bytes in the largest unit that divides them. */
export function formatSize(bytes: number): string {
  const [name, factor] = units.find(([, size]) => bytes >= size && bytes % size === 0) ?? ['', 1];
  return `${bytes / factor}${name}`;
}
