import type { Conditions } from '../src/base/conditions.ts';
import type { Caller } from '../src/model/caller.ts';

/** Clashes that are told at a time; whoever may label containers may make many. */
const maxTold = 64;
/** Containers that one note names. */
const maxNames = 3;

/**
 * Aliases that may mean something else than their readers expect: one that hides a service of the same name, and one that
 * two containers of one network namespace give to different services. Both work, by a rule; both are told as notes.
 */
export class AliasClashes {
  readonly #conditions: Conditions;
  readonly #isService: (name: string) => boolean;
  /** By alias that is not its service's own name: the containers that have it, by address. */
  readonly #holders = new Map<string, Map<string, string>>();
  readonly #told = new Set<string>();

  constructor(conditions: Conditions, isService: (name: string) => boolean) {
    this.#conditions = conditions;
    this.#isService = isService;
  }

  /** The address has another caller now. */
  update(address: string, before: Caller | undefined, after: Caller | undefined): void {
    const aliases = new Set<string>();
    for (const { alias } of before?.links ?? []) {
      const holders = this.#holders.get(alias);
      if (holders?.delete(address) !== true) continue;
      if (holders.size === 0) this.#holders.delete(alias);
      aliases.add(alias);
    }
    for (const { alias, service } of after?.links ?? []) {
      if (alias === service) continue;
      const holders = this.#holders.get(alias) ?? new Map<string, string>();
      this.#holders.set(alias, holders.set(address, after?.container ?? ''));
      aliases.add(alias);
    }
    for (const alias of aliases) this.review(alias);
    this.#reviewNamespace(address, after);
  }

  /** A service of this name has come or gone, or who has it as an alias has changed. */
  review(alias: string): void {
    const names = [...new Set(this.#holders.get(alias)?.values() ?? [])].sort();
    const shown = names.slice(0, maxNames).join(', ');
    const more = names.length > maxNames ? ` and ${names.length - maxNames} more` : '';
    const message = `the alias ${alias} of ${shown}${more} hides the service ${alias} for ${names.length === 1 ? 'it' : 'them'}`;
    const hint = `${alias}.service is still the service; choose another alias in legate.links if that is not meant`;
    this.#tell(`links.alias.${alias}`, names.length > 0 && this.#isService(alias) ? { message, hint } : undefined);
  }

  close(): void {
    for (const id of this.#told) this.#conditions.clear(id);
  }

  #reviewNamespace(address: string, caller: Caller | undefined): void {
    const id = `links.twice.${address}`;
    for (const link of caller?.links ?? []) {
      const first = caller?.links.find(({ alias }) => alias === link.alias) ?? link;
      if (first.service === link.service) continue;
      const { container } = caller ?? { container: '' };
      const message = `containers that share the network of ${container} mean ${first.service} and ${link.service} by the alias ${link.alias}; it is ${first.service} for all of them`;
      this.#tell(id, { message, hint: 'give them different aliases, or a network each' });
      return;
    }
    this.#tell(id, undefined);
  }

  #tell(id: string, note: { readonly message: string; readonly hint: string } | undefined): void {
    if (note === undefined) {
      if (this.#told.delete(id)) this.#conditions.clear(id);
    } else if (this.#told.has(id) || this.#told.size < maxTold) {
      this.#told.add(id);
      this.#conditions.raise(id, 'note', note.message, note.hint);
    }
  }
}
