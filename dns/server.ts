import { isIP } from 'node:net';
import type { Clock } from '../src/base/clock.ts';
import type { Conditions } from '../src/base/conditions.ts';
import { span } from '../src/base/duration.ts';
import { LegateError, systemCode } from '../src/base/errors.ts';
import { Latest, type Observable } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import type { Metrics } from '../src/base/metrics.ts';
import type { Snapshot } from '../src/catalog/snapshot.ts';
import { type Endpoint, formatEndpoint, type Ipv4Range, inRange } from '../src/model/address.ts';
import { type CallerTable, noCallers } from '../src/model/caller.ts';
import { dialOf } from '../src/model/dial.ts';
import { transportOf } from '../src/model/instance.ts';
import type { Topology } from '../src/model/topology.ts';
import type { LeftOut } from './answer.ts';
import { CatalogStage } from './catalog-stage.ts';
import { isUnspecified } from './choose.ts';
import { ForwardStage } from './forward.ts';
import { PacketHandler } from './handler.ts';
import { formInZone, formOfSingleLabel, type Zone, zoneOf } from './name-form.ts';
import { reverseName } from './reverse.ts';
import { ConnectionBudget, TcpListener } from './tcp-listener.ts';
import { encodeOpt } from './template.ts';
import { UdpListener } from './udp-listener.ts';
import { headerLength, isMetaType, rcode, rcodeName, recordType, typeNumber } from './wire/constants.ts';
import { formatName, type Name, parseName } from './wire/name.ts';
import { type ReadableRecord, readMessage } from './wire/reader.ts';
import { RecordWriter } from './wire/writer.ts';

/** A free port must be free for UDP and TCP alike: so many are tried. */
const freePortTries = 16;
const maxListeners = 256;

export interface NameServerOptions {
  readonly snapshots: Observable<Snapshot>;
  /** Wall clock of the moment at which the store last confirmed the snapshot; undefined when it never did. */
  readonly confirmedAtMs?: () => number | undefined;
  readonly topology: Observable<Topology>;
  /** Whose aliases are answered; without it nobody has any. */
  readonly callers?: Observable<CallerTable>;
  readonly self: { readonly hostId: string; readonly hostName: string };
  /** Our zone: `mesh.internal`. */
  readonly domain: string;
  readonly ttlMs: number;
  readonly upstream: 'auto' | 'off' | readonly Endpoint[];
  /** Where `auto` finds the machine's name servers; default `/etc/resolv.conf`. */
  readonly resolvConf?: string;
  readonly vipsOn: boolean | Observable<boolean>;
  readonly vipRange: Ipv4Range;
  /** Whether links to other hosts may go in the clear. */
  readonly clearUnderlay: boolean;
  /** The address at which this host serves an instance of another one. */
  readonly instanceAddressOf?: (id: string) => string | undefined;
  /** Whether links reach other hosts through tunnels; default not. */
  readonly tunnels?: () => boolean;
  /** The address of this host's listener for a service, if it has one. Called for each such answer: it must be quick. */
  readonly listenerOf: (service: string) => Endpoint | undefined;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
  readonly conditions: Conditions;
}

/** An open pair of sockets. */
export interface NameListener {
  /** With the real port. */
  readonly endpoint: Endpoint;
  close(): Promise<void>;
}

export interface ListenerState {
  readonly listen: string;
  readonly purpose: string;
  readonly state: 'up';
  readonly problem: null;
  readonly queries: number;
}

/** What a question was answered, and why so. */
export interface Resolution {
  readonly name: string;
  readonly type: string;
  /** The listener in whose place the question was answered; empty without any. */
  readonly server: string;
  readonly status: string;
  readonly answers: readonly ReadableRecord[];
  readonly additionals: readonly ReadableRecord[];
  /** `the snapshot, confirmed by the store 0.3 s ago`, `forwarded to 10.0.0.2:53`. */
  readonly origin: string;
  readonly leftOut: readonly LeftOut[];
  /** The extended error's text: `db: 0 of 3 instances usable`. Null when there is none. */
  readonly note: string | null;
  /** What to ask instead, for people; null where there is nothing better. */
  readonly hint: string | null;
}

interface Open extends NameListener {
  readonly purpose: string;
  readonly queries: () => number;
}

/** The name server of this host: answers from the catalog's snapshot, forwards the rest. The owner listens and closes. */
export class NameServer {
  readonly #options: NameServerOptions;
  readonly #handler: PacketHandler;
  readonly #forward: ForwardStage | undefined;
  readonly #budget = new ConnectionBudget();
  readonly #open = new Set<Open>();
  readonly #log: Log;
  readonly #zones: readonly [Zone];
  #closed = false;

  constructor(options: NameServerOptions) {
    const { snapshots, topology, self, vipRange, clearUnderlay, listenerOf, metrics, upstream } = options;
    const apex = parseName(options.domain.toLowerCase());
    if (apex === undefined || apex.length === 0) {
      throw new LegateError('E_INVALID', `${options.domain} is not a domain name`, {
        hint: 'Set domain to a name such as mesh.internal.',
      });
    }
    const zones: readonly [Zone] = [{ apex, serviceLabels: 'tag-first' }];
    this.#zones = zones;
    const vipsOn = typeof options.vipsOn === 'boolean' ? new Latest(options.vipsOn) : options.vipsOn;
    const { hostId } = self;
    const { ttlMs, clock, callers = noCallers.table } = options;
    const catalog = new CatalogStage({
      snapshots,
      topology,
      hostId,
      zones,
      ttlMs,
      vipsOn,
      vipRange,
      clearUnderlay,
      instanceAddressOf: options.instanceAddressOf,
      listenerOf,
    });
    this.#options = options;
    this.#log = options.log.child({ part: 'dns' });
    this.#forward = upstream === 'off' ? undefined : this.#forwardTo(upstream);
    const stages = this.#forward === undefined ? [catalog] : [catalog, this.#forward];
    const recursion = this.#forward !== undefined;
    this.#handler = new PacketHandler({
      stages,
      snapshots,
      topology,
      callers,
      apex,
      vipsOn,
      vipRange,
      listenerOf,
      recursion,
      clock,
      metrics,
    });
    metrics.gauge('legate_dns_tcp_connections_count', 'Open TCP connections.', [], () => [[[], this.#budget.open]]);
    metrics.gauge('legate_dns_listeners_count', 'Addresses that are listened on.', [], () => [[[], this.#open.size]]);
  }

  /**
   * Listens on UDP and TCP of one concrete address; port 0 picks one that is free for both. Rejects with LegateError:
   * E_PERMISSION, E_IN_USE, E_NOT_FOUND (the address is not on this host), E_INVALID, E_TOO_LARGE, E_CLOSED.
   */
  async listen(endpoint: Endpoint, purpose: string): Promise<NameListener> {
    const text = formatEndpoint(endpoint);
    if (this.#closed) throw new LegateError('E_CLOSED', 'the name server has been closed');
    if (isUnspecified(endpoint.address)) {
      const hint = 'Name concrete addresses: an answer must come from the address that was asked.';
      throw new LegateError('E_INVALID', `the name server cannot listen on ${text}`, { hint });
    }
    if (this.#open.size >= maxListeners) {
      throw new LegateError('E_TOO_LARGE', `more than ${maxListeners} name server listeners`, {
        hint: 'Set dns.bridges to off.',
      });
    }
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#bind(endpoint, purpose);
      } catch (error) {
        const another = endpoint.port === 0 && systemCode(error) === 'EADDRINUSE' && tries < freePortTries;
        if (!another) throw listenError(error, text);
      }
    }
  }

  /** What is open, in the order of its opening. */
  listeners(): ListenerState[] {
    return [...this.#open].map(({ endpoint, purpose, queries }) => {
      return { listen: formatEndpoint(endpoint), purpose, state: 'up', problem: null, queries: queries() };
    });
  }

  /**
   * What an asker at `askerAddress` would be answered, with what was left out of it. A name without a dot at its end is
   * taken as complete; the name of a PTR question may be an IP address. Rejects with LegateError E_INVALID.
   */
  async resolve(
    question: { readonly name: string; readonly type: string },
    askerAddress = '127.0.0.1',
  ): Promise<Resolution> {
    const type = typeNumber(question.type);
    const byAddress = type === recordType.PTR && isIP(question.name) !== 0;
    const name = byAddress ? reverseName(question.name) : parseName(question.name);
    if (name === undefined)
      throw new LegateError('E_INVALID', 'the name is not a domain name', { hint: 'Labels have 1 to 63 characters.' });
    if (type === undefined || isMetaType(type)) {
      throw new LegateError('E_INVALID', 'the record type is unknown', {
        hint: 'Ask for A, AAAA, SRV, TXT, PTR, SOA or NS.',
      });
    }
    const server = [...this.#open][0]?.endpoint;
    const explanation = await this.#handler.explain(questionPacket(name, type), askerAddress, server?.address);
    const message = explanation === undefined ? undefined : readMessage(explanation.packet);
    const noData = message?.rcode === rcode.NOERROR && message.answers.length === 0;
    const failed = message?.rcode !== rcode.NOERROR;
    const hint = failed ? this.#fullName(name) : noData && type === recordType.SRV ? this.#serviceNames(name) : null;
    return {
      name: formatName(name),
      type: question.type.toUpperCase(),
      server: server === undefined ? '' : formatEndpoint(server),
      status: rcodeName(message?.rcode ?? rcode.SERVFAIL),
      answers: message?.answers ?? [],
      additionals: message?.additionals ?? [],
      origin: explanation?.upstream === undefined ? this.#snapshotText() : `forwarded to ${explanation.upstream}`,
      leftOut: explanation?.leftOut ?? [],
      note: explanation?.note ?? this.#unreachable(message?.answers ?? []),
      hint,
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#handler.close();
    await Promise.all([...this.#open].map((listener) => listener.close()));
    this.#forward?.close();
  }

  async #bind(endpoint: Endpoint, purpose: string): Promise<NameListener> {
    const { metrics, clock } = this.#options;
    const handler = this.#handler;
    const listen = formatEndpoint(endpoint);
    const counter = (transport: string) =>
      metrics.counter('legate_dns_queries_total', 'Queries by listener.', { listen, transport });
    const [udpQueries, tcpQueries] = [counter('udp'), counter('tcp')];
    const dropped = metrics.counter('legate_dns_dropped_packets_total', 'Packets that are not answered.');
    const refused = metrics.counter('legate_dns_refused_connections_total', 'TCP connections beyond a bound.');
    const udp = new UdpListener(endpoint.address, { handler, queries: udpQueries, dropped });
    const tcp = new TcpListener({ handler, budget: this.#budget, clock, queries: tcpQueries, refused });
    try {
      const port = await udp.bind(endpoint);
      await tcp.bind({ address: endpoint.address, port });
      if (this.#closed) throw new LegateError('E_CLOSED', 'the name server has been closed');
      const before = udpQueries.value + tcpQueries.value;
      const open: Open = {
        endpoint: { address: endpoint.address, port },
        purpose,
        queries: () => udpQueries.value + tcpQueries.value - before,
        close: async () => {
          this.#open.delete(open);
          await Promise.all([udp.close(), tcp.close()]);
        },
      };
      this.#open.add(open);
      this.#log.info('name server listens', { 'dns.listen': formatEndpoint(open.endpoint), 'dns.purpose': purpose });
      return open;
    } catch (error) {
      await Promise.all([udp.close(), tcp.close()]);
      throw error;
    }
  }

  #forwardTo(upstream: 'auto' | readonly Endpoint[]): ForwardStage {
    const { resolvConf = '/etc/resolv.conf', clock, conditions, metrics } = this.#options;
    return new ForwardStage({
      upstream,
      resolvConf,
      clock,
      conditions,
      metrics,
      isOwn: (endpoint) => this.#isOwn(endpoint),
    });
  }

  /** Whether a question sent there would come to us: a listener of ours, or an address whose port 53 is mapped to one. */
  #isOwn({ address, port }: Endpoint): boolean {
    const { vipRange, topology } = this.#options;
    if (inRange(vipRange, address)) return true;
    const gateway = topology.value.bridges.some((bridge) => bridge.gateway === address);
    return [...this.#open].some(({ endpoint }) => endpoint.address === address && (gateway || endpoint.port === port));
  }

  /** A virtual address is answered whatever is behind it: says so when this host reaches nothing there. */
  #unreachable(answers: readonly ReadableRecord[]): string | null {
    const { snapshots, self, clearUnderlay } = this.#options;
    const { vips, services } = snapshots.value;
    const service = services.get(answers.map(({ data }) => vips.get(data)).find((name) => name !== undefined) ?? '');
    if (service === undefined) return null;
    const { name, usable, instances } = service;
    const counted = `${name}: ${usable.length} of ${instances.length} instances usable`;
    if (usable.length === 0) return counted;
    const dialler = { hostId: self.hostId, clearUnderlay, tunnels: this.#options.tunnels?.() ?? false };
    const found = usable.map((instance) => dialOf(instance, dialler));
    const [reason] = found;
    return found.every((each) => typeof each === 'string') ? `${counted}, none from here: ${String(reason)}` : null;
  }

  /** What was asked is a name of ours without the zone, as it seems: the whole of it. Null for other names. */
  #fullName(name: Name): string | null {
    if (zoneOf(this.#zones, name) !== undefined || name.length < 2) return null;
    const [zone] = this.#zones;
    const form = formInZone(zone, name);
    const { hosts } = this.#options.snapshots.value;
    // There are domains of the world below `host`.
    const isHost = form.kind === 'host' && [...hosts.values()].some((host) => host.name === form.host);
    if (form.kind !== 'instances' && form.kind !== 'endpoints' && !isHost) return null;
    return `names of the mesh are asked in full: ${[...name, ...zone.apex].join('.')}`;
  }

  /** A link name has no SRV record: which names of its service do. Null for other names. */
  #serviceNames(name: Name): string | null {
    const found = zoneOf(this.#zones, name);
    const apex = this.#zones[0].apex.join('.');
    const single = name.length === 1 ? formOfSingleLabel(name[0] ?? '') : undefined;
    const form = found === undefined ? single : formInZone(found.zone, found.inner);
    if (form?.kind !== 'link') return null;
    const service = this.#options.snapshots.value.services.get(form.service);
    const transport = service === undefined ? 'tcp' : transportOf(service.protocol);
    return `ports are at ${form.service}.service.${apex} and _${form.service}._${transport}.${apex}`;
  }

  #snapshotText(): string {
    const { snapshots, clock, confirmedAtMs } = this.#options;
    const { origin } = snapshots.value;
    if (origin === 'none') return 'no snapshot yet';
    const confirmed = confirmedAtMs?.();
    const ago = confirmed === undefined ? undefined : `${span(clock.nowMs() - confirmed)} ago`;
    if (origin === 'disk') {
      return `the snapshot on disk, ${ago === undefined ? 'never confirmed by the store' : `last confirmed ${ago}`}`;
    }
    return ago === undefined ? 'the snapshot' : `the snapshot, confirmed by the store ${ago}`;
  }
}

function questionPacket(name: Name, type: number): Buffer {
  const writer = new RecordWriter();
  const header = Buffer.alloc(headerLength);
  header[2] = 1;
  header[5] = 1;
  header[11] = 1;
  writer.header(header);
  writer.question(name, type);
  return Buffer.concat([writer.bytes(), encodeOpt(rcode.NOERROR, undefined)]);
}

function listenError(cause: unknown, endpoint: string): unknown {
  const message = `the name server cannot listen on ${endpoint}`;
  switch (systemCode(cause)) {
    case 'EACCES':
    case 'EPERM': {
      const hint =
        'Ports below 1024 need root or CAP_NET_BIND_SERVICE: give that right, or choose a port such as 7753.';
      return new LegateError('E_PERMISSION', `${message}: no right`, { hint, cause });
    }
    case 'EADDRINUSE': {
      const hint = 'Another process has this port (ss -lnptu shows it): stop it, or change dns.listen.';
      return new LegateError('E_IN_USE', `${message}: already taken`, { hint, cause });
    }
    case 'EADDRNOTAVAIL': {
      const hint = 'Set dns.listen to an address that one of this host’s interfaces has.';
      return new LegateError('E_NOT_FOUND', `${message}: no interface has that address`, { hint, cause });
    }
    case undefined:
      return cause;
    default:
      return new LegateError('E_INVALID', message, { hint: 'Check dns.listen.', cause });
  }
}
