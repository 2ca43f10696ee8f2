import { flagOf, type Option, type OptionKey, optionKeys, options, variableOf } from './options.ts';

/** An option as `legate config options --json` prints it. */
export interface OptionDocument {
  readonly key: OptionKey;
  readonly type: string;
  readonly default: string;
  /** Units in which it is written; null when it has none. */
  readonly unit: string | null;
  /** Whether `default` says how the value is found instead of what it is. */
  readonly computed: boolean;
  /** False: only the default is in this version. */
  readonly available: boolean;
  readonly doc: string;
  readonly flag: string;
  readonly variable: string;
}

export function optionDocuments(): OptionDocument[] {
  return optionKeys.map((key) => {
    const option: Option<unknown> = options[key];
    return {
      key,
      type: option.type.label,
      default: option.default,
      unit: option.type.unit ?? null,
      computed: option.computed ?? false,
      available: option.notYet !== true,
      doc: option.doc,
      flag: `--${flagOf(key)}`,
      variable: variableOf(key),
    };
  });
}

const rule = [
  'Each option is also a flag of `legate agent` and an environment variable: `dns.listen` is `--dns-listen` and',
  '`LEGATE_DNS_LISTEN`. A flag wins over a variable, a variable over the file. A list has commas between its items there;',
  'lists of maps are written as YAML or JSON. A variable that is set to nothing counts as not set.',
];

/** README's table of options. */
export function optionsMarkdown(): string {
  const cell = (text: string): string => text.replaceAll('|', '\\|');
  const rows = optionDocuments().map((option) => {
    const type = option.unit === null ? option.type : `${option.type} (${option.unit})`;
    const doc = option.available ? option.doc : `${option.doc} (not yet)`;
    return `| \`${option.key}\` | ${cell(type)} | ${cell(defaultText(option, '`'))} | ${cell(doc)} |`;
  });
  return [...rule, '', '| key | type | default | what it is |', '|---|---|---|---|', ...rows, ''].join('\n');
}

/** The same for a terminal of 100 columns. */
export function optionsText(): string {
  const lines = optionDocuments().flatMap((option) => {
    const type = option.unit === null ? option.type : `${option.type} (${option.unit})`;
    const doc = option.available ? option.doc : `${option.doc} (not yet)`;
    return [
      `${option.key}`,
      `    ${doc}`,
      `    ${type}; default ${defaultText(option, '')}`,
      `    ${option.flag}  ${option.variable}`,
    ];
  });
  return [...lines, '', ...rule.map((line) => line.replaceAll('`', '')), ''].join('\n');
}

function defaultText(option: OptionDocument, quote: string): string {
  if (option.default === '') return 'none';
  return option.computed ? option.default : `${quote}${option.default}${quote}`;
}
