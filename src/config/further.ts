import { parseSize } from '../base/size.ts';
import { readRoutes, readWeights } from '../model/routes.ts';
import {
  type FurtherField,
  type FurtherSettings,
  furtherKinds,
  furtherValues,
  pickFurther,
  type SettingForm,
  type SettingKind,
} from '../model/service-settings.ts';
import type { Place } from './fault.ts';
import type { FieldReader } from './fields.ts';
import { placeIn, plainValue } from './tree.ts';
import { choiceType, durationType, integerType, textType, type ValueType } from './value-types.ts';

type NumberForm = Extract<SettingForm, { readonly kind: 'number' }>;

/** The settings of a service that one may choose and need not, as they are written in an entry of `services:`. */
export function furtherOf(fields: FieldReader): FurtherSettings {
  return pickFurther((field) => fields.optional(furtherKinds[field].word, typeOf(field))?.value);
}

function typeOf(field: FurtherField): ValueType<unknown> {
  const { form }: SettingKind = furtherKinds[field];
  switch (form.kind) {
    case 'choice':
      return choiceType(form.words);
    case 'duration':
      return durationType(form.minMs, form.maxMs);
    case 'number':
      return numberType(field, form);
    case 'size':
      return textType('size', (text) => {
        const bytes = parseSize(text);
        if (bytes !== undefined && bytes <= form.max) return { value: bytes };
        return { fault: 'is not a size (such as 64KiB, 10MiB, 1GiB)' };
      });
    case 'text':
      return textType('text', (text) => {
        const fault = text.length > form.max ? `is longer than ${form.max} characters` : form.fault(text);
        return fault === undefined ? { value: text } : { fault };
      });
    case 'weights':
      return modelType('weights by tag', readWeights);
    case 'routes':
      return modelType('list of routes', readRoutes);
  }
}

/** A whole number, or `off` for 0 where that is a word for it. */
function numberType(field: FurtherField, { min, max, off }: NumberForm): ValueType<number> {
  const values = furtherValues(field);
  if (off !== true) return integerType('whole number', min, max, values);
  const number = integerType('whole number', min, max, values);
  return {
    ...number,
    parse: (tree, path, faults) =>
      tree.kind === 'scalar' && tree.text === 'off' ? 0 : number.parse(tree, path, faults),
  };
}

/** What the model reads itself; its faults get the places of the parts that they are about. */
function modelType<T>(
  label: string,
  read: (value: unknown, path: string, fault: (path: string, message: string) => void) => T | undefined,
): ValueType<T> {
  return {
    label,
    form: 'yaml',
    parse(tree, path, faults) {
      const at = (where: string): Place => placeIn(tree, where.slice(path.length));
      return read(plainValue(tree), path, (where, message) => faults.add(at(where), where, message));
    },
  };
}
