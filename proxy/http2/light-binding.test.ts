import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks';
import t from 'tap';
import { bindLightly } from './light-binding.ts';

t.test('bound functions do what the runtime says, without the property that costs', (t) => {
  bindLightly();
  const light = AsyncResource.prototype.bind;
  bindLightly();
  t.equal(AsyncResource.prototype.bind, light, 'once and for all');

  const storage = new AsyncLocalStorage<string>();
  const told: unknown[] = [];
  function tell(this: unknown, ...args: unknown[]): string {
    told.push([this, storage.getStore(), ...args]);
    return 'returned';
  }
  const resource = storage.run('inside', () => new AsyncResource('test'));
  const bound = resource.bind(tell);
  const own = { name: 'this' };
  t.notOk(Object.hasOwn(bound, 'asyncResource'));
  storage.run('outside', () => {
    t.equal(bound.call(own, 1, 2), 'returned');
    t.equal(Reflect.apply(resource.bind, resource, [tell, 'given']).call(own, 3), 'returned');
    t.equal(AsyncResource.bind(tell).call(own), 'returned');
  });
  t.same(told, [
    [own, 'inside', 1, 2],
    ['given', 'inside', 3],
    [own, 'outside'],
  ]);
  t.throws(() => Reflect.apply(resource.bind, resource, ['no function']), TypeError);
  const failing = resource.bind(() => {
    throw new Error('as it is');
  });
  t.throws(failing, { message: 'as it is' });
  t.end();
});
