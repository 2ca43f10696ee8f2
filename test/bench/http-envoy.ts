import type { Endpoint } from '../../src/model/address.ts';
import { addressOf, cluster, filter, typeOf } from './tunnel-envoy.ts';

/** A listener and the origin behind it, which both speak one version of HTTP. */
interface Way {
  readonly listen: Endpoint;
  readonly origin: Endpoint;
}

/** The origin refuses what is more, and Envoy would learn that too late for those that come first. */
const originStreams = 100;

/** Plain reverse proxies, with what Legate does as well: `X-Forwarded-For`, and connections to the origin that are kept. */
export function proxyEnvoy(http: Way, http2: Way): object {
  return {
    static_resources: {
      listeners: [listener('http', 'HTTP1', http), listener('http2', 'HTTP2', http2)],
      clusters: [
        cluster('http', http.origin, speaking({ http_protocol_options: {} })),
        cluster('http2', http2.origin, speaking({ http2_protocol_options: { max_concurrent_streams: originStreams } })),
      ],
    },
  };
}

function speaking(options: object): object {
  return {
    typed_extension_protocol_options: {
      'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
        '@type': typeOf('upstreams.http.v3.HttpProtocolOptions'),
        explicit_http_config: options,
      },
    },
  };
}

function listener(name: 'http' | 'http2', codec: 'HTTP1' | 'HTTP2', { listen }: Way): object {
  const manager = filter(
    'envoy.filters.network.http_connection_manager',
    'http_connection_manager.v3.HttpConnectionManager',
    {
      stat_prefix: name,
      codec_type: codec,
      use_remote_address: true,
      route_config: {
        name,
        virtual_hosts: [{ name, domains: ['*'], routes: [{ match: { prefix: '/' }, route: { cluster: name } }] }],
      },
      http_filters: [
        {
          name: 'envoy.filters.http.router',
          typed_config: { '@type': typeOf('filters.http.router.v3.Router') },
        },
      ],
    },
  );
  return { name, address: addressOf(listen), filter_chains: [{ filters: [manager] }] };
}
