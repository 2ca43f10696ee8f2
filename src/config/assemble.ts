import { join } from 'node:path';
import { type Endpoint, formatEndpoint, type Ipv4Range, inRange, isLoopback } from '../model/address.ts';
import { defaultInstanceName, type Protocol, transportOf } from '../model/instance.ts';
import type { LinkListener } from '../model/link.ts';
import type { ServiceSettings } from '../model/service.ts';
import { assembleStore } from './assemble-store.ts';
import type { AdminListen, Config, StaticInstance } from './config.ts';
import type { InstanceDraft, LinkDraft, ServiceDraft } from './entries.ts';
import { type Faults, type Place, quoted } from './fault.ts';
import type { Values } from './load.ts';
import type { OptionKey, OptionValue } from './options.ts';
import type { Located } from './value-types.ts';

/**
 * Makes the configuration of the values read, and checks what one value alone cannot tell: contradictions, equal names,
 * listeners and ranges that collide. Undefined when a value is missing, which has its fault already.
 */
export function assemble(values: Values, faults: Faults): Config | undefined {
  const services = values.get('services') ?? [];
  const drafts = values.get('instances') ?? [];
  const links = values.get('links') ?? [];
  const instances = finishInstances(drafts, services, faults);
  checkProtocols(drafts, services, faults);
  checkLinks(links, services, faults);
  checkListeners(values, links, faults);
  checkRanges(values, faults);
  checkZones(values, faults);
  const adminListen = checkAdmin(values.get('admin.listen') ?? [], faults);

  let complete = true;
  const need = <K extends OptionKey>(key: K): OptionValue<K> => {
    const value = values.get(key);
    if (value === undefined) complete = false;
    // When one is missing, the result is dropped as a whole below.
    return value as OptionValue<K>;
  };
  const upstream = need('dns.upstream');
  const dataDir = need('data_dir');
  const tokenFile = need('admin.token_file');
  const zones = need('dns.zones');
  const dnsListen = need('dns.listen');
  need('instances');
  need('services');
  need('links');
  need('admin.listen');
  const config: Config = {
    mesh: need('mesh'),
    host: need('host'),
    advertise: need('advertise'),
    dataDir,
    domain: need('domain'),
    store: assembleStore(values, need, faults),
    storeNamed: (['store.kind', 'store.listen', 'store.endpoints'] as const).some(
      (key) => values.placeOf(key).text !== '',
    ),
    docker: {
      socket: need('docker.socket'),
      expose: need('docker.expose'),
      imageLabels: need('docker.image_labels'),
    },
    dns: {
      listen: dnsListen?.map((item) => item.value),
      bridges: need('dns.bridges'),
      upstream: typeof upstream === 'string' ? upstream : upstream?.map((item) => item.value),
      ttlMs: need('dns.ttl'),
      zones: zones?.map((item) => item.value),
    },
    admin: { listen: adminListen, tokenFile: tokenFile || join(dataDir ?? '/', 'admin.token') },
    tunnel: { listen: need('tunnel.listen') },
    zone: need('zone') || undefined,
    tls: assembleTls(values, faults),
    authority: { passphraseFile: need('authority.passphrase_file') || undefined },
    workers: need('workers'),
    network: { underlay: need('network.underlay'), mode: 'off' },
    vip: { mode: need('vip.mode'), range: need('vip.range'), localRange: need('vip.local_range') },
    drainTimeoutMs: need('drain.timeout'),
    instances,
    services: new Map(services.map((draft) => [draft.name, settingsOf(draft)])),
    external: new Map(services.flatMap(({ name, external }) => (external === undefined ? [] : [[name, external]]))),
    links: links.map(linkOf),
    log: { level: need('log.level'), access: need('log.access') === 'on', pretty: need('log.pretty') },
  };
  return complete ? config : undefined;
}

/** Certificates from outside come as all three files, or not at all. */
function assembleTls(values: Values, faults: Faults): Config['tls'] {
  const [ca = '', cert = '', key = ''] = [values.get('tls.ca'), values.get('tls.cert'), values.get('tls.key')];
  if (ca === '' && cert === '' && key === '') return undefined;
  const keys = ['tls.ca', 'tls.cert', 'tls.key'] as const;
  const given = keys.find((name) => values.get(name) !== '') ?? 'tls.ca';
  for (const name of keys.filter((each) => values.get(each) === '')) {
    faults.add(values.placeOf(given), name, 'is missing: certificates from outside need ca, cert and key');
  }
  return { ca, cert, key };
}

export function settingsOf(draft: ServiceDraft): ServiceSettings {
  return {
    ...(draft.port === undefined ? {} : { port: draft.port }),
    ...(draft.protocol === undefined ? {} : { protocol: draft.protocol.value }),
    ...(draft.balance === undefined ? {} : { balance: draft.balance }),
    ...draft.further,
  };
}

function linkOf(draft: LinkDraft): LinkListener {
  return {
    service: draft.service.value,
    listen: draft.listen.value,
    ...(draft.consumer === undefined ? {} : { consumer: draft.consumer }),
    ...(draft.tls === undefined ? {} : { tls: draft.tls.value }),
  };
}

/** Fills in what depends on the rest: protocol, reach and name; two equal names are a fault. */
export function finishInstances(
  drafts: readonly InstanceDraft[],
  services: readonly ServiceDraft[],
  faults: Faults,
): StaticInstance[] {
  const protocols = new Map(services.map((draft) => [draft.name, draft.protocol?.value]));
  const taken = new Map<string, InstanceDraft>();
  return drafts.map((draft) => {
    const service = draft.service.value;
    const protocol = draft.protocol?.value ?? protocols.get(service) ?? 'tcp';
    const name = draft.name?.value ?? defaultInstanceName(service, draft.port, protocol);
    const other = taken.get(name);
    if (other === undefined) taken.set(name, draft);
    else {
      const what = `${quoted(name)} is also the name of ${other.path}`;
      faults.add(draft.name?.at ?? draft.at, draft.path, `${what}; give one of them another \`name\``);
    }
    const { address, port, tags, meta, weight, checks } = draft;
    const reach = draft.reach ?? (isLoopback(address) ? 'host' : 'mesh');
    return { name, service, address, port, protocol, reach, tags, meta, weight, checks };
  });
}

/** A service has one protocol: in `services:` and in all of its instances. */
function checkProtocols(drafts: readonly InstanceDraft[], services: readonly ServiceDraft[], faults: Faults): void {
  const known = new Map<string, { protocol: Protocol; path: string; at: Place }>();
  for (const { name, path, protocol } of services) {
    if (protocol !== undefined) known.set(name, { protocol: protocol.value, path, at: protocol.at });
  }
  for (const { service, path, protocol, at } of drafts) {
    const first = known.get(service.value);
    if (first === undefined) {
      known.set(service.value, { protocol: protocol?.value ?? 'tcp', path, at: protocol?.at ?? at });
    } else if (first.protocol !== (protocol?.value ?? first.protocol)) {
      const where = first.at.text === protocol?.at.text ? '' : ` at ${first.at.text}`;
      const what = `${quoted(service.value)} has protocol ${first.protocol} in ${first.path}${where}`;
      faults.add(
        protocol?.at ?? at,
        `${path}.protocol`,
        `${protocol?.value} contradicts it: ${what}; a service has one`,
      );
    }
  }
}

function checkLinks(links: readonly LinkDraft[], services: readonly ServiceDraft[], faults: Faults): void {
  const protocols = new Map(services.map((draft) => [draft.name, draft.protocol?.value]));
  for (const { service, path, tls } of links) {
    const protocol = protocols.get(service.value);
    if (protocol === undefined) continue;
    if (transportOf(protocol) !== 'tcp') {
      faults.add(service.at, `${path}.service`, `links to ${protocol} services are not yet in this version`);
    } else if (tls !== undefined && protocol === 'tcp') {
      const what = `TLS here leads to services of protocol http, http2 or grpc, and ${quoted(service.value)} is ${protocol}`;
      faults.add(tls.at, `${path}.tls`, what);
    }
  }
}

/** No two listeners over TCP on the same address and port; the name server's are compared, too. */
function checkListeners(values: Values, links: readonly LinkDraft[], faults: Faults): void {
  const listeners: { path: string; at: Place; endpoint: Endpoint }[] = [];
  const add = (path: string, at: Place, endpoint: Endpoint): void => {
    const other = listeners.find((known) => collide(known.endpoint, endpoint));
    if (other === undefined) listeners.push({ path, at, endpoint });
    else {
      const where = other.at.text === '' ? ' (its default)' : other.at.text === at.text ? '' : ` at ${other.at.text}`;
      faults.add(at, path, `${quoted(formatEndpoint(endpoint))} is already taken by ${other.path}${where}`);
    }
  };
  for (const { value, at } of values.get('dns.listen') ?? []) add('dns.listen', at, value);
  for (const { value, at } of values.get('admin.listen') ?? []) {
    if (value.kind === 'tcp') add('admin.listen', at, value);
  }
  for (const { path, listen } of links) add(`${path}.listen`, listen.at, listen.value);
  const tunnel = values.get('tunnel.listen');
  if (tunnel !== undefined) add('tunnel.listen', values.placeOf('tunnel.listen'), tunnel);
}

/** Whether the kernel would refuse to listen on both (`::` also takes IPv4, as Node opens it). */
function collide(a: Endpoint, b: Endpoint): boolean {
  if (a.port !== b.port || a.port === 0) return false;
  const covers = (one: string, two: string): boolean =>
    one === two || one === '::' || (one === '0.0.0.0' && !two.includes(':'));
  return covers(a.address, b.address) || covers(b.address, a.address);
}

function checkRanges(values: Values, faults: Faults): void {
  const range = values.get('vip.range');
  const localRange = values.get('vip.local_range');
  const advertise = values.get('advertise');
  if (range !== undefined && localRange !== undefined && overlap(range, localRange)) {
    // The one that was written is the one to change; of two written ones the second.
    const key = values.placeOf('vip.local_range').text === '' ? 'vip.range' : 'vip.local_range';
    const other = key === 'vip.range' ? localRange : range;
    const otherKey = key === 'vip.range' ? 'vip.local_range' : 'vip.range';
    const own = key === 'vip.range' ? range : localRange;
    faults.add(values.placeOf(key), key, `${quoted(own.text)} overlaps ${otherKey}, ${other.text}`);
  }
  for (const key of ['vip.range', 'vip.local_range'] as const) {
    const value = values.get(key);
    if (value === undefined) continue;
    for (const [address, whose] of [['127.0.0.1', 'loopback'] as const, [advertise, '`advertise`'] as const]) {
      if (address === undefined || !inRange(value, address)) continue;
      faults.add(values.placeOf(key), key, `${quoted(value.text)} holds ${address} (${whose})`);
      break;
    }
  }
}

function overlap(a: Ipv4Range, b: Ipv4Range): boolean {
  return a.base < b.base + b.size && b.base < a.base + a.size;
}

function checkZones(values: Values, faults: Faults): void {
  const taken = new Set([values.get('domain')]);
  for (const { value, at } of values.get('dns.zones') ?? []) {
    if (taken.has(value)) faults.add(at, 'dns.zones', `${quoted(value)} is already the domain or a zone`);
    taken.add(value);
  }
}

/** Equal sockets. TCP beyond loopback opens only with the host's certificate, which is seen when it runs. */
function checkAdmin(listen: readonly Located<AdminListen>[], faults: Faults): AdminListen[] {
  const sockets = new Set<string>();
  for (const { value, at } of listen) {
    if (value.kind !== 'unix') continue;
    if (sockets.has(value.path)) faults.add(at, 'admin.listen', `${quoted(`unix:${value.path}`)} is written twice`);
    sockets.add(value.path);
  }
  return listen.map(({ value }) => value);
}
