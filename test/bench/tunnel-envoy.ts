import type { Endpoint } from '../../src/model/address.ts';

/** The two services, by what they are called on the wire. */
export interface TwoPorts {
  readonly http: number;
  readonly bulk: number;
}

const manyStreams = 20_000;
const loopback = '127.0.0.1';

/** Takes connections in the clear and sends each through an HTTP/2 CONNECT stream over mutual TLS. */
export function nearEnvoy(folder: string, far: Endpoint, ports: TwoPorts): object {
  const listener = (name: 'http' | 'bulk'): object => ({
    name,
    address: addressOf({ address: loopback, port: ports[name] }),
    filter_chains: [
      {
        filters: [
          filter('envoy.filters.network.tcp_proxy', 'tcp_proxy.v3.TcpProxy', {
            stat_prefix: name,
            cluster: 'far',
            idle_timeout: '0s',
            tunneling_config: { hostname: `${name}:80` },
          }),
        ],
      },
    ],
  });
  return {
    static_resources: {
      listeners: [listener('http'), listener('bulk')],
      clusters: [
        cluster('far', far, {
          typed_extension_protocol_options: {
            'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
              '@type': typeOf('upstreams.http.v3.HttpProtocolOptions'),
              explicit_http_config: { http2_protocol_options: {} },
            },
          },
          transport_socket: tls(folder, 'near', 'UpstreamTlsContext', {}),
        }),
      ],
    },
  };
}

export function farEnvoy(folder: string, listen: Endpoint, ports: TwoPorts): object {
  const route = (name: 'http' | 'bulk'): object => ({
    name,
    domains: [`${name}:80`],
    routes: [
      {
        match: { connect_matcher: {} },
        route: { cluster: name, timeout: '0s', upgrade_configs: [{ upgrade_type: 'CONNECT', connect_config: {} }] },
      },
    ],
  });
  const manager = filter(
    'envoy.filters.network.http_connection_manager',
    'http_connection_manager.v3.HttpConnectionManager',
    {
      stat_prefix: 'tunnel',
      codec_type: 'HTTP2',
      stream_idle_timeout: '0s',
      http2_protocol_options: { allow_connect: true },
      upgrade_configs: [{ upgrade_type: 'CONNECT' }],
      route_config: { name: 'tunnel', virtual_hosts: [route('http'), route('bulk')] },
      http_filters: [
        {
          name: 'envoy.filters.http.router',
          typed_config: { '@type': typeOf('filters.http.router.v3.Router') },
        },
      ],
    },
  );
  const socket = tls(folder, 'far', 'DownstreamTlsContext', { require_client_certificate: true });
  return {
    static_resources: {
      listeners: [
        {
          name: 'tunnel',
          address: addressOf(listen),
          filter_chains: [{ transport_socket: socket, filters: [manager] }],
        },
      ],
      clusters: [
        cluster('http', { address: loopback, port: ports.http }, {}),
        cluster('bulk', { address: loopback, port: ports.bulk }, {}),
      ],
    },
  };
}

export function typeOf(name: string): string {
  return `type.googleapis.com/envoy.extensions.${name}`;
}

export function filter(name: string, type: string, options: object): object {
  return { name, typed_config: { '@type': typeOf(`filters.network.${type}`), ...options } };
}

export function addressOf({ address, port }: Endpoint): object {
  return { socket_address: { address, port_value: port } };
}

export function cluster(name: string, endpoint: Endpoint, over: object): object {
  const thresholds = {
    max_connections: manyStreams,
    max_pending_requests: manyStreams,
    max_requests: manyStreams,
  };
  return {
    name,
    type: 'STATIC',
    connect_timeout: '10s',
    circuit_breakers: { thresholds: [thresholds] },
    load_assignment: {
      cluster_name: name,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: addressOf(endpoint) } }] }],
    },
    ...over,
  };
}

function tls(folder: string, side: 'near' | 'far', context: string, over: object): object {
  const file = (filename: string): object => ({ filename: `${folder}/${filename}` });
  return {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': typeOf(`transport_sockets.tls.v3.${context}`),
      ...over,
      common_tls_context: {
        alpn_protocols: ['h2'],
        tls_params: { tls_minimum_protocol_version: 'TLSv1_3', tls_maximum_protocol_version: 'TLSv1_3' },
        tls_certificates: [{ certificate_chain: file(`${side}.crt`), private_key: file(`${side}.key`) }],
        validation_context: { trusted_ca: file('root.pem') },
      },
    },
  };
}
