/**
 * What containers say and what becomes of it: each case is a `docker run` and what a sidecar then shows.
 *
 * In what is run and expected, `@` stands for a suffix that only this run has, `IMAGE` for the name of the busybox image,
 * `NET-shop` for a network. An expectation is a line for each instance, then for each refusal and note:
 *
 *     SERVICE PORT [udp] [at NETWORK | host] [published] [id NAME] [weight N] [tags A|B] [meta JSON] [check KIND …]
 *
 * Without more it is dialled at its own address on the default bridge, from its own host only. A check is shown as
 * `KIND [TLS] [METHOD] [PORT] [PATH | SERVICE | [COMMAND]] INTERVAL/TIMEOUT RISE/FALL …`.
 */
export interface LabelCase {
  readonly name: string;
  /** Arguments of `docker run` before the image. */
  readonly run: readonly string[];
  /** One of `images`; otherwise busybox, which exposes nothing. */
  readonly image?: keyof typeof images;
  /** With `docker.expose: labelled`, the default. */
  readonly expect: readonly string[];
  /** With `docker: {expose: published, image_labels: true}`, where that is worth a look. */
  readonly published?: readonly string[];
}

/** Dockerfiles, from busybox. */
export const images = {
  'web:1.2': ['EXPOSE 80'],
  'two-ports': ['EXPOSE 80 443'],
  'name-server': ['EXPOSE 53/udp 53/tcp'],
  'with-healthcheck': ['EXPOSE 80', 'HEALTHCHECK --interval=1s CMD true'],
  'says-legate': ['EXPOSE 80', 'LABEL legate.service=baked legate.tags=fromimage'],
  'says-registrator': ['EXPOSE 80', 'ENV SERVICE_NAME=baked SERVICE_TAGS=fromimage'],
} as const;

const label = (...pairs: string[]): string[] => pairs.flatMap((pair) => ['--label', pair]);
const env = (...pairs: string[]): string[] => pairs.flatMap((pair) => ['--env', pair]);
/** A container port, published at a port that Docker chooses. */
const publish = (...ports: string[]): string[] => ports.flatMap((port) => ['-p', port]);
const legate = (...pairs: string[]): string[] => label(...pairs.map((pair) => `legate.${pair}`));
const service = (...pairs: string[]): string[] => env(...pairs.map((pair) => `SERVICE_${pair}`));

const legateCases: readonly LabelCase[] = [
  {
    name: 'owner',
    run: [...legate('service=db@', 'port=5432'), ...publish('5432', '6432')],
    expect: ['db@ 5432 published'],
  },
  { name: 'service-and-port', run: legate('service=db@', 'port=5432'), expect: ['db@ 5432'] },
  { name: 'only-exposed-port', run: legate('service=db@'), image: 'web:1.2', expect: ['db@ 80'] },
  { name: 'only-expose-option', run: [...legate('service=db@'), '--expose', '5432'], expect: ['db@ 5432'] },
  {
    name: 'several-ports-unsaid',
    run: legate('service=db@'),
    image: 'two-ports',
    expect: ['refused db@: db@: it has several ports (80/tcp, 443/tcp)'],
  },
  { name: 'no-port', run: legate('service=db@'), expect: ['refused db@: db@: it exposes no port'] },
  {
    name: 'published',
    run: [...legate('service=db@', 'port=5432'), ...publish('5432')],
    expect: ['db@ 5432 published'],
  },
  {
    name: 'published-loopback',
    run: [...legate('service=db@', 'port=5432'), ...publish('127.0.0.1::5432')],
    expect: ['db@ 5432'],
  },
  {
    name: 'udp',
    run: legate('service=dns@', 'port=53', 'protocol=udp'),
    expect: ['dns@ 53 udp'],
  },
  { name: 'udp-exposed-too', run: legate('service=dns@', 'port=53'), image: 'name-server', expect: ['dns@ 53'] },
  { name: 'http', run: legate('service=web@', 'port=80', 'protocol=HTTP'), expect: ['web@ 80 http'] },
  {
    name: 'bad-protocol',
    run: legate('service=web@', 'port=80', 'protocol=sctp'),
    expect: ['refused web@: legate.protocol: "sctp" is not a protocol'],
  },
  {
    name: 'tags-weight-meta',
    run: legate('service=db@', 'port=5432', 'tags= a,b\\,c,,a', 'weight=10', 'meta.Zone=eu', 'meta.note=a=b'),
    expect: ['db@ 5432 weight 10 tags a|b,c meta {"Zone":"eu","note":"a=b"}'],
  },
  { name: 'weight-0', run: legate('service=db@', 'port=5432', 'weight=0'), expect: ['db@ 5432 weight 0'] },
  {
    name: 'absurd-weight',
    run: legate('service=db@', 'port=5432', 'weight=99999999999999999999'),
    expect: ['refused db@: legate.weight: "99999999999999999999" is not a weight (0 to 65535)'],
  },
  {
    name: 'absurd-port',
    run: legate('service=db@', 'port=1e99'),
    expect: ['refused db@: legate.port: "1e99" is not a port (1 to 65535)'],
  },
  {
    name: 'several-services',
    run: legate('5432.service=db@', '9187.service=db-figures@', '9187.tags=figures', 'tags=all', 'meta.team=data'),
    expect: ['db@ 5432 tags all meta {"team":"data"}', 'db-figures@ 9187 tags figures meta {"team":"data"}'],
  },
  {
    name: 'one-port-twice',
    run: legate('service=db@', 'port=5432', '5432.service=other@'),
    expect: ['db@ 5432', 'refused other@: other@: port 5432 is already that of db@'],
  },
  {
    name: 'name-too-free',
    run: legate('service=My_App', 'port=80'),
    expect: ['refused -: legate.service: "My_App" has characters other than a-z, 0-9 and inner hyphens'],
  },
  {
    name: 'name-reserved',
    run: legate('service=localhost', 'port=80'),
    expect: ['refused -: legate.service: "localhost" is a reserved word'],
  },
  {
    name: 'misspelt',
    run: legate('service=db@', 'port=5432', 'wieght=3'),
    expect: ['db@ 5432', 'note -: unknown label "legate.wieght"'],
  },
  { name: 'forgotten-service', run: legate('port=5432'), expect: ['refused -: legate.port without legate.service'] },
  { name: 'links-misspelt', run: legate('links.x=y'), expect: ['note -: unknown label "legate.links.x"'] },
  { name: 'says-nothing', run: publish('80'), image: 'web:1.2', expect: [], published: ['web 80 published'] },
  { name: 'consumer-only', run: legate('consumer=web', 'links=db'), expect: [] },
];

const networkCases: readonly LabelCase[] = [
  {
    name: 'on-host-network',
    run: [...legate('service=db@', 'port=5432'), '--network', 'host'],
    expect: ['db@ 5432 host'],
  },
  {
    name: 'on-own-network',
    run: [...legate('service=db@', 'port=5432'), '--network', 'NET-shop'],
    expect: ['db@ 5432 at shop'],
  },
  {
    name: 'on-internal-network',
    run: [...legate('service=db@', 'port=5432'), '--network', 'NET-inner'],
    expect: ['db@ 5432 at inner'],
  },
  {
    name: 'on-no-network',
    run: [...legate('service=db@', 'port=5432'), '--network', 'none'],
    expect: ['refused db@: the container has no network (none)'],
  },
  {
    name: 'chosen-network',
    run: [...legate('service=db@', 'port=5432', 'network=NET-shop'), '--network', 'NET-shop'],
    expect: ['db@ 5432 at shop'],
  },
  {
    name: 'wrong-network',
    run: [...legate('service=db@', 'port=5432', 'network=NET-inner'), '--network', 'NET-shop'],
    expect: ['refused db@: legate.network: the container is not attached to "IMAGE-inner"; it has IMAGE-shop'],
  },
  {
    name: 'shares-a-network',
    run: [...legate('service=files@', 'port=6432'), '--network', 'container:NET-owner'],
    expect: ['files@ 6432 at owner published'],
  },
  {
    name: 'registrator-shares',
    run: [...service('NAME=files@'), '--network', 'container:NET-owner'],
    image: 'web:1.2',
    expect: ['files@ 80 at owner'],
  },
  {
    name: 'registrator-on-host-network',
    run: [...service('NAME=web@'), '--network', 'host'],
    image: 'web:1.2',
    expect: ['web@ 80 host'],
  },
  {
    name: 'registrator-own-network',
    run: [...service('NAME=web@'), ...publish('80'), '--network', 'NET-shop'],
    expect: ['web@ 80 at shop published'],
  },
];

const usual = '2s/1s 2/3';
const checkCases: readonly LabelCase[] = [
  {
    name: 'check-http',
    run: legate('service=web@', 'port=80', 'check=http:/health'),
    expect: [`web@ 80 check http /health ${usual}`],
  },
  {
    name: 'check-http-port',
    run: legate('service=web@', 'port=80', 'check=http:8081/health', 'check.method=HEAD'),
    expect: [`web@ 80 check http HEAD 8081 /health ${usual}`],
  },
  {
    name: 'check-https',
    run: legate('service=web@', 'port=443', 'check=https:/health', 'check.tls_skip_verify=true'),
    expect: [`web@ 443 check http any-certificate /health ${usual}`],
  },
  {
    name: 'check-tcp-times',
    run: legate(
      'service=db@',
      'port=5432',
      'check=tcp',
      'check.interval=1m30s',
      'check.timeout=300ms',
      'check.rise=1',
      'check.fall=5',
    ),
    expect: ['db@ 5432 check tcp 90s/300ms 1/5'],
  },
  {
    name: 'check-grpc',
    run: legate('service=orders@', 'port=9000', 'check=grpc/shop.Orders'),
    expect: [`orders@ 9000 check grpc shop.Orders ${usual}`],
  },
  {
    name: 'check-grpcs',
    run: legate('service=orders@', 'port=9000', 'check=grpcs'),
    expect: [`orders@ 9000 check grpc verify ${usual}`],
  },
  {
    name: 'check-ttl',
    run: legate(
      'service=job@',
      'port=9000',
      'check=ttl:30s',
      'check.initial_status=passing',
      'check.deregister_after=10m',
    ),
    expect: ['job@ 9000 check ttl 30s/1s 1/1 first passing leaves 10m'],
  },
  {
    name: 'check-exec',
    run: legate('service=db@', 'port=5432', 'check=exec:test -e /tmp'),
    expect: [`db@ 5432 check exec [test -e /tmp] ${usual}`],
  },
  {
    name: 'check-exec-udp',
    run: legate('service=dns@', 'port=53', 'protocol=udp', 'check=exec:true'),
    expect: [`dns@ 53 udp check exec [true] ${usual}`],
  },
  {
    name: 'check-tcp-udp',
    run: legate('service=dns@', 'port=53', 'protocol=udp', 'check=tcp'),
    expect: ['refused dns@: legate.check: a tcp check cannot ask a UDP port'],
  },
  { name: 'check-none', run: legate('service=db@', 'check=none'), image: 'with-healthcheck', expect: ['db@ 80'] },
  {
    name: 'check-own',
    run: legate('service=db@'),
    image: 'with-healthcheck',
    expect: ['db@ 80 check docker 2s/1s 1/1'],
  },
  {
    name: 'check-own-modified',
    run: legate('service=db@', 'check.fall=2', 'check.interval=9s'),
    image: 'with-healthcheck',
    expect: [
      'db@ 80 check docker 2s/1s 1/2',
      'note db@: legate.check.interval does nothing with the check of the container itself (HEALTHCHECK)',
    ],
  },
  {
    name: 'check-docker-without',
    run: legate('service=db@', 'port=80', 'check=docker'),
    expect: ['refused db@: legate.check: the container has no HEALTHCHECK'],
  },
  {
    name: 'check-per-port',
    run: legate(
      '80.service=web@',
      '81.service=admin@',
      'check=http:/health',
      'check.interval=5s',
      '81.check=tcp',
      '81.check.fall=1',
    ),
    expect: ['web@ 80 check http /health 5s/1s 2/3', 'admin@ 81 check tcp 5s/1s 2/1'],
  },
  {
    name: 'check-contradicts',
    run: legate('service=db@', 'port=80', 'check=ttl:30s', 'check.interval=10s'),
    expect: ['refused db@: legate.check.interval: a check of kind ttl has its duration already'],
  },
  {
    name: 'check-useless',
    run: legate('service=db@', 'port=80', 'check=tcp', 'check.method=HEAD'),
    expect: [`db@ 80 check tcp ${usual}`, 'note db@: legate.check.method does nothing with a check of kind tcp'],
  },
  {
    name: 'check-unknown',
    run: legate('service=db@', 'port=80', 'check=htp:/'),
    expect: ['refused db@: legate.check: "htp:/" is not a check'],
  },
  {
    name: 'check-absurd',
    run: legate('service=db@', 'port=80', 'check=tcp', 'check.interval=999999999999h'),
    expect: ['refused db@: legate.check.interval: "999999999999h" is not a duration of 100ms to 24h'],
  },
];

const registratorCases: readonly LabelCase[] = [
  { name: 'reg-name', run: [...service('NAME=web@'), ...publish('80')], expect: ['web@ 80 published'] },
  { name: 'reg-name-label', run: [...label('SERVICE_NAME=web@'), ...publish('80')], expect: ['web@ 80 published'] },
  {
    name: 'reg-label-wins',
    run: [...service('NAME=env@'), ...label('SERVICE_NAME=label@'), ...publish('80')],
    expect: ['label@ 80 published'],
  },
  {
    name: 'reg-port-wins',
    run: [...service('80_NAME=env@'), ...label('SERVICE_NAME=label@'), ...publish('80')],
    expect: ['env@ 80 published'],
  },
  {
    name: 'reg-name-normalised',
    run: [...service('NAME=My_Web.App@'), ...publish('80')],
    expect: ['my-web-app@ 80 published'],
  },
  {
    name: 'reg-image-name',
    run: [...service('TAGS=a'), ...publish('80')],
    image: 'web:1.2',
    expect: ['web 80 published tags a'],
  },
  {
    name: 'reg-several-ports',
    run: [...service('NAME=web@'), ...publish('80', '443')],
    expect: ['web@-80 80 published', 'web@-443 443 published'],
  },
  {
    name: 'reg-per-port',
    run: [
      ...service('80_NAME=web@', '443_NAME=secure@', '443_TAGS=tls', 'REGION=eu', '443_REGION=us'),
      ...publish('80', '443'),
    ],
    expect: ['web@ 80 published meta {"region":"eu"}', 'secure@ 443 published tags tls meta {"region":"us"}'],
  },
  {
    name: 'reg-explicit',
    run: [...service('80_NAME=web@'), ...publish('80', '9000')],
    expect: ['web@ 80 published'],
    published: ['web@ 80 published', 'IMAGE-9000 9000 published'],
  },
  {
    name: 'reg-not-published',
    run: service('NAME=web@'),
    image: 'web:1.2',
    expect: ['refused -: it has SERVICE_ keys and publishes no port'],
  },
  {
    name: 'reg-port-not-published',
    run: [
      ...service('443_NAME=secure@', '443_ID=s', '53_ID=d', '25_NAME=mail', '25_IGNORE=1', '80_NAME=web@'),
      ...publish('80'),
    ],
    expect: ['web@ 80 published', 'refused -: port 53 is not published', 'refused secure@: port 443 is not published'],
  },
  {
    name: 'reg-only-port-not-published',
    run: service('443_NAME=secure@'),
    image: 'two-ports',
    expect: ['refused secure@: port 443 is not published'],
    published: ['refused secure@: port 443 is not published'],
  },
  {
    name: 'reg-port-not-exposed',
    run: [...service('443_NAME=secure@'), '--network', 'host'],
    expect: ['refused secure@: port 443 is not exposed'],
  },
  {
    name: 'reg-published-of-two',
    run: [...service('NAME=web@'), ...publish('443')],
    image: 'two-ports',
    expect: ['web@ 443 published'],
  },
  {
    name: 'reg-udp',
    run: [...service('NAME=dns@', 'TAGS=a'), ...publish('53/udp')],
    expect: ['dns@ 53 udp published tags a|udp'],
  },
  {
    name: 'reg-tcp-and-udp',
    run: [...service('NAME=dns@', 'CHECK_TCP=true'), ...publish('53/udp', '53')],
    expect: [
      'dns@-53 53 published check tcp 10s/10s 2/3',
      'dns@-53 53 udp published tags udp check tcp 53 10s/10s 2/3',
    ],
  },
  {
    name: 'reg-tags',
    run: [...service('TAGS=a,b\\,c', 'NAME=web@'), ...publish('80')],
    expect: ['web@ 80 published tags a|b,c'],
  },
  {
    name: 'reg-id',
    run: [...service('NAME=web@', 'ID=web:one@'), ...publish('80')],
    expect: ['web@ 80 published id web:one@'],
  },
  {
    name: 'reg-bad-id',
    run: [...service('NAME=web@', 'ID=a/b c'), ...publish('80')],
    expect: [
      `refused web@: SERVICE_ID: "a/b c" is not 1 to 128 letters, digits, dots, colons, underscores and hyphens, beginning with a letter or digit`,
    ],
  },
  {
    name: 'reg-ignore',
    run: [...service('NAME=web@', 'IGNORE=true'), ...publish('80')],
    expect: [],
    published: [],
  },
  {
    name: 'reg-ignore-false',
    run: [...service('NAME=web@', 'IGNORE=false'), ...publish('80')],
    expect: ['note -: SERVICE_IGNORE=false means yes, as any value does'],
  },
  {
    name: 'reg-ignore-empty',
    run: [...service('NAME=web@', 'IGNORE='), ...publish('80')],
    expect: ['web@ 80 published'],
  },
  {
    name: 'reg-ignore-port',
    run: [...service('NAME=web@', '443_IGNORE=1'), ...publish('80', '443')],
    expect: ['web@-80 80 published'],
  },
  {
    name: 'reg-metadata',
    run: [...service('NAME=web@', 'REGION=eu', 'Mixed_Case=Kept', 'EMPTY='), ...publish('80')],
    expect: ['web@ 80 published meta {"empty":"","mixed_case":"Kept","region":"eu"}'],
  },
  {
    name: 'reg-equal-names',
    run: [...service('80_NAME=my.app@', '443_NAME=My_App@'), ...publish('80', '443')],
    expect: ['my-app@ 80 published', 'refused my-app@: SERVICE_NAME: "My_App@" and "my.app@" both become my-app@'],
  },
  {
    name: 'reg-and-legate',
    run: [...service('NAME=web@', 'TAGS=a'), ...legate('service=db@', 'port=5432'), ...publish('80')],
    expect: ['db@ 5432'],
  },
  {
    name: 'reg-check-http',
    run: [
      ...service(
        'NAME=web@',
        'CHECK_HTTP=/health',
        'CHECK_INTERVAL=15s',
        'CHECK_TIMEOUT=1.5s',
        'CHECK_HTTP_METHOD=head',
      ),
      ...publish('80'),
    ],
    expect: ['web@ 80 published check http HEAD /health 15s/1500ms 2/3'],
  },
  {
    name: 'reg-check-https',
    run: [...service('NAME=web@', 'CHECK_HTTPS=/health'), ...publish('443')],
    expect: ['web@ 443 published check http verify /health 10s/10s 2/3'],
  },
  {
    name: 'reg-check-script',
    run: [...service('NAME=db@', 'CHECK_SCRIPT=nc $SERVICE_IP $SERVICE_PORT'), ...publish('5432')],
    expect: ['db@ 5432 published check exec [nc IP 5432] 10s/30s 2/3 warns 1'],
  },
  {
    name: 'reg-check-cmd',
    run: [...service('NAME=db@', 'CHECK_CMD=/check.sh', 'CHECK_SCRIPT=other'), ...publish('5432')],
    expect: [
      'db@ 5432 published check exec [/check.sh] 10s/30s 2/3 warns 1',
      'note db@: SERVICE_CHECK_SCRIPT does nothing: SERVICE_CHECK_CMD is the check',
    ],
  },
  {
    name: 'reg-check-ttl',
    run: [
      ...service('NAME=job@', 'CHECK_TTL=30s', 'CHECK_INITIAL_STATUS=passing', 'CHECK_DEREGISTER_AFTER=1.5h'),
      ...publish('80'),
    ],
    expect: ['job@ 80 published check ttl 30s/1s 1/1 first passing leaves 90m'],
  },
  {
    name: 'reg-check-tcp',
    run: [...label('SERVICE_NAME=db@', 'SERVICE_CHECK_TCP=true'), ...publish('80')],
    expect: ['db@ 80 published check tcp 10s/10s 2/3'],
  },
  {
    name: 'reg-check-grpc',
    run: [
      ...service('NAME=orders@', 'CHECK_GRPC=1', 'CHECK_GRPC_USE_TLS=1', 'CHECK_TLS_SKIP_VERIFY=1'),
      ...publish('80'),
    ],
    expect: ['orders@ 80 published check grpc any-certificate 10s/10s 2/3'],
  },
  {
    name: 'reg-check-per-port',
    run: [...service('NAME=web@', 'CHECK_HTTP=/a', '443_CHECK_HTTP=', '443_CHECK_TCP=1'), ...publish('80', '443')],
    expect: ['web@-80 80 published check http /a 10s/10s 2/3', 'web@-443 443 published check tcp 10s/10s 2/3'],
  },
  {
    name: 'reg-check-bad',
    run: [...service('NAME=web@', 'CHECK_TCP=1', 'CHECK_INTERVAL=15'), ...publish('80')],
    expect: ['refused web@: SERVICE_CHECK_INTERVAL: "15" is not a duration of 100ms to 24h'],
  },
  {
    name: 'reg-check-own',
    run: [...service('NAME=web@'), ...publish('80')],
    image: 'with-healthcheck',
    expect: ['web@ 80 published check docker 2s/1s 1/1'],
  },
];

const imageCases: readonly LabelCase[] = [
  {
    name: 'image-says-legate',
    run: [],
    image: 'says-legate',
    expect: ['refused -: legate.service=baked comes from the image and is ignored'],
    published: ['baked 80 tags fromimage'],
  },
  {
    name: 'image-overridden',
    run: legate('service=mine@'),
    image: 'says-legate',
    expect: ['mine@ 80 tags fromimage'],
    published: ['mine@ 80 tags fromimage'],
  },
  {
    name: 'image-says-registrator',
    run: publish('80'),
    image: 'says-registrator',
    expect: ['refused -: SERVICE_NAME=baked comes from the image and is ignored'],
    published: ['baked 80 published tags fromimage'],
  },
  {
    name: 'image-and-operator',
    run: [...service('REGION=eu'), ...publish('80')],
    image: 'says-registrator',
    expect: [
      'says-registrator 80 published tags fromimage meta {"region":"eu"}',
      'note -: SERVICE_NAME=baked comes from the image and is ignored',
    ],
  },
];

const terminal = '\u001b[31mred\u001b]0;title\u0007';
const many = Array.from({ length: 3000 }, (_, index) => `legate.x${index}=1`);
/** Docker lists labels by name; of what is found, 16 are told. */
const first16 = many
  .map((pair) => pair.slice(0, -2))
  .sort()
  .slice(0, 16);
const badCases: readonly LabelCase[] = [
  {
    name: 'escapes-in-meta',
    run: legate('service=db@', 'port=5432', `meta.note=${terminal}`, `tags=${terminal}`),
    expect: [
      'db@ 5432 tags \\u001b[31mred\\u001b]0;title\\u0007 meta {"note":"\\\\u001b[31mred\\\\u001b]0;title\\\\u0007"}',
    ],
  },
  {
    name: 'escapes-in-service',
    run: legate(`service=${terminal}`, 'port=5432'),
    expect: [
      'refused -: legate.service: "\\u001b[31mred\\u001b]0;title\\u0007" has characters other than a-z, 0-9 and inner hyphens',
    ],
  },
  {
    name: 'escapes-in-key',
    run: legate('service=db@', 'port=5432', `\u202e${terminal}=1`),
    expect: ['db@ 5432', 'note -: unknown label "legate.\\u202e\\u001b[31mred\\u001b]0;title\\u0007"'],
  },
  {
    name: 'escapes-in-name',
    run: [...service(`NAME=${terminal}@`), ...publish('80')],
    expect: ['31mred--0-title-@ 80 published'],
  },
  {
    name: 'line-ends',
    run: legate('service=db@', 'port=5432', 'meta.x=a\nb\rc'),
    expect: ['db@ 5432 meta {"x":"a\\\\nb\\\\rc"}'],
  },
  {
    name: 'proto-keys',
    run: legate('service=db@', 'port=5432', 'meta.__proto__=x', 'meta.constructor=y', '__proto__=z'),
    expect: ['db@ 5432 meta {"__proto__":"x","constructor":"y"}', 'note -: unknown label "legate.__proto__"'],
  },
  {
    name: 'proto-registrator',
    run: [...service('NAME=web@', '__PROTO__=x', '80___PROTO__=y'), ...publish('80')],
    expect: ['web@ 80 published meta {"__proto__":"y"}'],
  },
  {
    name: 'label-of-64-kib',
    run: legate('service=db@', 'port=5432', `meta.x=${'y'.repeat(65_536)}`),
    expect: ['refused -: its labels are larger than 64 KiB'],
  },
  {
    name: 'value-of-2-kib',
    run: legate('service=db@', 'port=5432', `meta.x=${'y'.repeat(2048)}`),
    expect: ['refused db@: legate.meta.x: too long or without a key'],
  },
  {
    name: 'thousands-of-labels',
    run: [...label(...many), ...legate('service=db@', 'port=5432')],
    expect: ['db@ 5432', ...first16.map((key) => `note -: unknown label "${key}"`)],
  },
  {
    name: 'absurd-port-key',
    run: legate('service=db@', 'port=5432', '70000.service=x@'),
    expect: ['db@ 5432', 'refused x@: legate.70000: "70000" is not a port (1 to 65535)'],
  },
  {
    name: 'command-of-5-kib',
    run: legate('service=db@', 'port=5432', `check=exec:${'x'.repeat(5000)}`),
    expect: ['refused db@: legate.check: the command is longer than 4096 characters'],
  },
  {
    name: 'escapes-in-command',
    run: legate('service=db@', 'port=5432', `check=exec:echo ${terminal}`),
    expect: ['refused db@: legate.check: "echo \\u001b[31mred\\u001b]0;title\\u0007" has control characters'],
  },
];

export const cases: readonly LabelCase[] = [
  ...legateCases,
  ...networkCases,
  ...checkCases,
  ...registratorCases,
  ...imageCases,
  ...badCases,
];
