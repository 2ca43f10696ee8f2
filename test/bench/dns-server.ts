import { instance, service, snapshotOf, world } from '../../dns/test-support.ts';

/** The name server of the benchmark, as a process of its own: says its port to the parent and serves until it goes. */
const db = service('db', [instance('db', '172.17.0.2'), instance('db', '172.17.0.3')], { vip: '240.77.0.5' });
const { server } = world(snapshotOf([db]));
const { endpoint } = await server.listen({ address: '127.0.0.1', port: 0 }, 'configured');
process.send?.(endpoint.port);
process.on('disconnect', () => process.exit(0));
