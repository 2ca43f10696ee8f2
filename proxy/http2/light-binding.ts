import { AsyncResource } from 'node:async_hooks';

/**
 * The runtime binds each request that it sends to an AsyncResource of its own. Node 20 defines a property on each bound
 * function then that nobody should use (DEP0172), which takes longer than all that is done here for the request. From now
 * on bound functions of this process are without it, as in later releases. Nothing happens where that is so already.
 */
export function bindLightly(): void {
  if (Object.hasOwn(new AsyncResource('probe').bind(bindLightly), 'asyncResource')) {
    Object.defineProperty(AsyncResource.prototype, 'bind', { value: bind });
  }
}

type Bound = (this: unknown, ...args: unknown[]) => unknown;

function bind(this: AsyncResource, run: Bound, thisArg?: unknown): Bound {
  if (typeof run !== 'function') throw new TypeError('only functions can be bound');
  const resource = this;
  return function (this: unknown, ...args) {
    return resource.runInAsyncScope(run, thisArg === undefined ? this : thisArg, ...args);
  };
}
