import { protocols } from '../../../src/model/instance.ts';
import { balances, type DerivedField, defaultBalance } from '../../../src/model/service.ts';
import {
  furtherDefault,
  furtherFields,
  furtherKinds,
  furtherText,
  furtherValues,
} from '../../../src/model/service-settings.ts';
import { wrap } from '../table.ts';

const ofFirst = "the first instance's";

const derived: Readonly<Record<DerivedField, readonly [values: string, usual: string]>> = {
  port: ['1 to 65535', ofFirst],
  protocol: [protocols.join(', '), ofFirst],
  balance: [balances.join(', '), defaultBalance],
};

/** Each setting of a service with what it may be and its default, as help shows it; no line is wider than `width`. */
export function settingsHelp(width: number): string {
  const rows = [
    ...Object.entries(derived).map(([word, [values, usual]]): readonly [string, string, string] => [
      word,
      values,
      usual,
    ]),
    ...furtherFields.map((field): readonly [string, string, string] => {
      const usual = furtherDefault(field);
      return [furtherKinds[field].word, furtherValues(field), usual === undefined ? 'none' : furtherText(field, usual)];
    }),
  ];
  const indent = 4 + Math.max(...rows.map(([word]) => word.length));
  const lines = rows.flatMap(([word, values, usual]) =>
    wrap(`${values} (default: ${usual})`, width - indent).map(
      (line, index) => (index === 0 ? `  ${word}` : '').padEnd(indent) + line,
    ),
  );
  const head = 'Settings (times are written 250ms, 5s, 2m or 24h, sizes 64KiB, 10MiB or 1GiB):';
  return [...wrap(head, width), ...lines].join('\n');
}
