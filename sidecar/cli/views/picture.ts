import type { PictureDocument } from '../../admin/documents.ts';
import { wrap } from '../table.ts';
import type { View } from '../terminal.ts';
import { span } from '../words.ts';

/** How old what is shown is, while the store does not confirm it. A sidecar of an earlier version does not tell. */
export function pictureLines(picture: PictureDocument | undefined, { style, width }: View): string[] {
  if (picture === undefined || picture.store === 'connected') return [];
  const { ageMs, store } = picture;
  const age = ageMs === null ? 'not confirmed by the store' : `as of ${span(ageMs)} ago`;
  const why = store === 'connecting' ? 'the store has not answered yet' : 'the store is away';
  return wrap(`${style.bad} ${age}: ${why}`, width - 1).map((line) => style.paint(` ${line}`, 'yellow'));
}
