/** Readers for JSON that Docker sent: nothing in it is believed to have the form that it should have. */
export type RawRecord = Readonly<Record<string, unknown>>;

const noRecord: RawRecord = {};

export function rawRecord(value: unknown): RawRecord {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as RawRecord) : noRecord;
}

export function rawList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

export function rawText(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

/** An own field of a record; inherited ones (`constructor`, `toString`) do not count. */
export function rawField(record: RawRecord, key: string): unknown {
  return Object.hasOwn(record, key) ? record[key] : undefined;
}
