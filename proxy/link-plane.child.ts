/** A relay in a process of its own, for the test that takes its descriptors away: tells its parent how it is. */
import process from 'node:process';
import { Bed, instanceOf, serviceOf } from './link-plane.fixture.ts';

const port = Number(process.argv[2]);
const services = [serviceOf([instanceOf({ name: 'one', port })])];
const bed = new Bed({ services, maxConnections: 1000 });
await bed.plane.start();
process.on('disconnect', () => process.exit(0));
setInterval(() => {
  const { user, system } = process.cpuUsage();
  const conditions = bed.conditions.list().map(({ id }) => id);
  process.send?.({ port: bed.port, conditions, cpuMs: (user + system) / 1000 });
}, 50);
