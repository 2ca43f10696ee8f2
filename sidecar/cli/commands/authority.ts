import { LegateError } from '../../../src/base/errors.ts';
import type { AuthorityDocument, TokenDocument } from '../../admin/documents.ts';
import { exitStatus } from '../failure.ts';
import { type CommandTools, examples, type GlobalOptions, printJson, type Session, withClient } from '../session.ts';
import { table } from '../table.ts';
import { clean, plural, span } from '../words.ts';
import { joinLine, termsOf } from './mesh.ts';
