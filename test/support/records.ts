import { type Clock, systemClock } from '../../src/base/clock.ts';
import { Conditions } from '../../src/base/conditions.ts';
import { type Log, silentLog } from '../../src/base/log.ts';
import { Metrics } from '../../src/base/metrics.ts';
import type { HostRecord } from '../../src/model/host.ts';
import type { DesiredInstance, Instance, InstanceRecord } from '../../src/model/instance.ts';

/** Records for tests, complete and valid, with what a test cares about put over them. */
export function instanceRecord(over: Partial<InstanceRecord> & { readonly name: string }): InstanceRecord {
  return {
    service: 'db',
    address: '10.0.0.1',
    port: 5432,
    protocol: 'tcp',
    reach: 'host',
    tags: [],
    meta: {},
    weight: 1,
    status: 'passing',
    draining: false,
    output: '',
    source: 'docker:one',
    incarnation: 'a',
    ...over,
  };
}

/** An instance as the catalog shows it. */
export function shownInstance(over: Partial<Instance> & { readonly name: string }): Instance {
  const { host = 'web-1', name } = over;
  return { ...instanceRecord({ name }), id: `${host}/${name}`, host, hostId: hostId(1), revision: '1', ...over };
}

export function desiredInstance(over: Partial<DesiredInstance> & { readonly name: string }): DesiredInstance {
  const { status: _status, output: _output, ...rest } = instanceRecord({ name: over.name });
  return { ...rest, checks: [], ...over };
}

export function hostRecord(id: string, name: string): HostRecord {
  return { id, name, address: '10.77.0.1', version: '0.1.0' };
}

/** A host id of 16 hexadecimal digits. */
export function hostId(number: number): string {
  return number.toString(16).padStart(16, '0');
}

export interface Parts {
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

export function parts(clock: Clock = systemClock): Parts {
  const metrics = new Metrics();
  return { clock, log: silentLog, metrics, conditions: new Conditions(silentLog, clock, metrics) };
}
