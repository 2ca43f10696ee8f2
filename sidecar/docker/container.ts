import { isIP, isIPv4, isIPv6 } from 'node:net';
import { printable, truncate } from '../../src/base/text.ts';
import type { Endpoint } from '../../src/model/address.ts';
import { isPort, parseEndpoint } from '../../src/model/address.ts';
import type { StoredStatus } from '../../src/model/instance.ts';
import { type RawRecord, rawField, rawList, rawRecord, rawText } from './raw.ts';
import { signalNumber, sigterm } from './signals.ts';

/** Keys and values of `legate.*` and `SERVICE_*` that one container may have, in UTF-16 units. */
export const maxLabelUnits = 64 * 1024;
const macPattern = /^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/;
const maxPorts = 1024;
const maxNetworks = 64;
/** Names of one container in one network, and entries of its hosts file. */
const maxNames = 64;
const maxDnsServers = 8;
const maxOutputLength = 500;
const defaultStopTimeoutMs = 10_000;
/** Also stands for Docker's "wait for ever" (-1). */
const maxStopTimeoutMs = 3_600_000;

export type Transport = 'tcp' | 'udp';

/** What labels and environment of a container or an image say to us; other keys are not kept. */
export interface Declarations {
  /** `legate.*` and `SERVICE_*`. */
  readonly labels: ReadonlyMap<string, string>;
  /** `SERVICE_*`. */
  readonly environment: ReadonlyMap<string, string>;
  /** There was more than `maxLabelUnits` of it, and what is here is incomplete. */
  readonly oversized: boolean;
}

export interface ContainerPort {
  readonly port: number;
  readonly transport: Transport;
  /** The first host binding; undefined when the port is only exposed. An address of `0.0.0.0` or `::` means all. */
  readonly binding: Endpoint | undefined;
}

export interface Attachment {
  readonly network: string;
  readonly networkId: string;
  readonly ipv4: string | undefined;
  readonly ipv6: string | undefined;
  /** Lower case, with colons; undefined when the engine names none. */
  readonly mac: string | undefined;
  /** Where its IPv4 default route leads; undefined when the engine gives it none. */
  readonly gateway: string | undefined;
  /** What Docker answers there for it, beside its name; lower case. */
  readonly aliases: readonly string[];
}

/** A name that Docker writes into the container's /etc/hosts (`--link`, `--add-host`). */
export interface HostsEntry {
  /** Lower case. */
  readonly name: string;
  /** The container or the address that it means. */
  readonly to: string;
}

/** The part of `docker inspect` that decides what is registered, checked and bounded. */
export interface Container {
  /** 64 hexadecimal digits. */
  readonly id: string;
  /** Without the leading slash, printable. */
  readonly name: string;
  /** As it was asked for: `registry:5000/team/app:1.2`. */
  readonly image: string;
  readonly imageId: string;
  readonly running: boolean;
  readonly paused: boolean;
  /** Of its first process, as the engine sees it; 0 when it does not run. */
  readonly pid: number;
  /** RFC 3339 in nanoseconds, as Docker writes it. */
  readonly startedAt: string;
  /** What its own HEALTHCHECK says; undefined when it has none. */
  readonly health: { readonly status: StoredStatus; readonly output: string } | undefined;
  readonly declarations: Declarations;
  /** `EXPOSE` and `--expose`, also of host-network containers; sorted. */
  readonly exposed: readonly ContainerPort[];
  /** What the network settings list: published, or exposed without binding; sorted. */
  readonly ports: readonly ContainerPort[];
  /** `default`, `bridge`, `host`, `none`, `container:<id>`, or a network's name. */
  readonly networkMode: string;
  readonly attachments: readonly Attachment[];
  /** Whom `--dns` has it ask for names. */
  readonly dns: readonly string[];
  readonly hostsEntries: readonly HostsEntry[];
  /** The number of the signal that `docker stop` sends. */
  readonly stopSignal: number;
  readonly stopTimeoutMs: number;
}

/** The first 12 digits, as people know a container's id. */
export function shortId(id: string): string {
  return id.slice(0, 12);
}

export function isContainerId(text: string): boolean {
  return /^[0-9a-f]{64}$/.test(text);
}

/** Reads an answer to `GET /containers/{id}/json`; undefined when it is no such document. Never throws. */
export function parseContainer(document: unknown): Container | undefined {
  const raw = rawRecord(document);
  const id = rawText(rawField(raw, 'Id'));
  if (!isContainerId(id)) return undefined;
  const config = rawRecord(rawField(raw, 'Config'));
  const state = rawRecord(rawField(raw, 'State'));
  const settings = rawRecord(rawField(raw, 'NetworkSettings'));
  const hostConfig = rawRecord(rawField(raw, 'HostConfig'));
  const isTrue = (key: string): boolean => rawField(state, key) === true;
  return {
    id,
    name: printable(truncate(rawText(rawField(raw, 'Name')).replace(/^\//, ''), 256)) || shortId(id),
    image: truncate(rawText(rawField(config, 'Image')), 512),
    imageId: truncate(rawText(rawField(raw, 'Image')), 128),
    running: isTrue('Running') && !isTrue('Restarting') && !isTrue('Dead'),
    paused: isTrue('Paused'),
    pid: pidOf(rawField(state, 'Pid')),
    startedAt: printable(truncate(rawText(rawField(state, 'StartedAt')), 64)),
    health: parseHealth(rawField(state, 'Health')),
    declarations: parseDeclarations(config),
    exposed: parsePorts(rawField(config, 'ExposedPorts')),
    ports: parsePorts(rawField(settings, 'Ports')),
    networkMode: truncate(rawText(rawField(hostConfig, 'NetworkMode')), 256),
    attachments: parseAttachments(rawField(settings, 'Networks')),
    dns: textList(rawField(hostConfig, 'Dns'), maxDnsServers).filter((address) => isIP(address) !== 0),
    hostsEntries: parseHostsEntries(hostConfig),
    stopSignal: signalNumber(rawText(rawField(config, 'StopSignal'))) ?? sigterm,
    stopTimeoutMs: stopTimeoutMs(rawField(config, 'StopTimeout')),
  };
}

/** Reads `Config` of a container or an image. */
export function parseDeclarations(config: RawRecord): Declarations {
  const labels = new Map<string, string>();
  const environment = new Map<string, string>();
  let units = 0;
  const keep = (target: Map<string, string>, key: string, value: string): void => {
    units += key.length + value.length;
    if (units <= maxLabelUnits) target.set(key, value);
  };
  for (const entry of rawList(rawField(config, 'Env'))) {
    if (typeof entry !== 'string' || !entry.startsWith('SERVICE_')) continue;
    const equals = entry.indexOf('=');
    if (equals > 0) keep(environment, entry.slice(0, equals), entry.slice(equals + 1));
  }
  for (const [key, value] of Object.entries(rawRecord(rawField(config, 'Labels')))) {
    if (typeof value !== 'string') continue;
    if (key.startsWith('legate.') || key.startsWith('SERVICE_')) keep(labels, key, value);
  }
  return { labels, environment, oversized: units > maxLabelUnits };
}

function parseHealth(value: unknown): Container['health'] {
  const health = rawRecord(value);
  const word = rawText(rawField(health, 'Status'));
  const status: StoredStatus | undefined =
    word === 'starting' ? 'starting' : word === 'healthy' ? 'passing' : word === 'unhealthy' ? 'critical' : undefined;
  if (status === undefined) return undefined;
  const last = rawRecord(rawList(rawField(health, 'Log')).at(-1));
  const output = truncate(rawText(rawField(last, 'Output')), 2 * maxOutputLength).trim();
  return { status, output: truncate(printable(output), maxOutputLength) };
}

function parsePorts(value: unknown): readonly ContainerPort[] {
  const ports: ContainerPort[] = [];
  for (const [key, bindings] of Object.entries(rawRecord(value))) {
    const match = /^(\d{1,5})\/(tcp|udp)$/.exec(key);
    if (match === null || !isPort(Number(match[1]))) continue;
    const transport: Transport = match[2] === 'udp' ? 'udp' : 'tcp';
    ports.push({ port: Number(match[1]), transport, binding: parseBinding(rawList(bindings)[0]) });
    if (ports.length >= maxPorts) break;
  }
  return ports.sort((a, b) => a.port - b.port || (a.transport < b.transport ? -1 : 1));
}

function parseBinding(value: unknown): Endpoint | undefined {
  const raw = rawRecord(value);
  const address = rawText(rawField(raw, 'HostIp')) || '0.0.0.0';
  const port = rawText(rawField(raw, 'HostPort'));
  const endpoint = parseEndpoint(address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`);
  return endpoint !== undefined && isPort(endpoint.port) ? endpoint : undefined;
}

function parseAttachments(value: unknown): readonly Attachment[] {
  const attachments: Attachment[] = [];
  for (const [network, settings] of Object.entries(rawRecord(value))) {
    const raw = rawRecord(settings);
    const ipv4 = rawText(rawField(raw, 'IPAddress'));
    const ipv6 = rawText(rawField(raw, 'GlobalIPv6Address'));
    const gateway = rawText(rawField(raw, 'Gateway'));
    const mac = rawText(rawField(raw, 'MacAddress')).toLowerCase();
    attachments.push({
      network,
      networkId: truncate(rawText(rawField(raw, 'NetworkID')), 64),
      ipv4: isIPv4(ipv4) ? ipv4 : undefined,
      mac: macPattern.test(mac) ? mac : undefined,
      ipv6: isIPv6(ipv6) && !ipv6.includes('%') ? ipv6 : undefined,
      gateway: isIPv4(gateway) ? gateway : undefined,
      aliases: namesIn(raw),
    });
    if (attachments.length >= maxNetworks) break;
  }
  return attachments.sort((a, b) => (a.network < b.network ? -1 : 1));
}

/** `Aliases`, and on newer engines `DNSNames`. */
function namesIn(attachment: RawRecord): readonly string[] {
  const names = ['Aliases', 'DNSNames'].flatMap((key) => textList(rawField(attachment, key), maxNames));
  return [...new Set(names)].slice(0, maxNames);
}

/** `Links` (`/db:/web/alias`) and `ExtraHosts` (`name:address`). */
function parseHostsEntries(hostConfig: RawRecord): readonly HostsEntry[] {
  const entries: HostsEntry[] = [];
  for (const link of textList(rawField(hostConfig, 'Links'), maxNames)) {
    const match = /^\/?([^:]+):(?:.*\/)?([^/]+)$/.exec(link);
    if (match !== null) entries.push({ name: match[2] ?? '', to: match[1] ?? '' });
  }
  for (const extra of textList(rawField(hostConfig, 'ExtraHosts'), maxNames)) {
    const match = /^([^:=]+)[:=](.+)$/.exec(extra);
    if (match !== null) entries.push({ name: match[1] ?? '', to: match[2] ?? '' });
  }
  return entries;
}

/** Short texts of a list, printable and in lower case. */
function textList(value: unknown, most: number): readonly string[] {
  return rawList(value)
    .slice(0, most)
    .map((item) => printable(truncate(rawText(item), 256)).toLowerCase())
    .filter((text) => text !== '');
}

function pidOf(value: unknown): number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0 ? value : 0;
}

function stopTimeoutMs(value: unknown): number {
  if (typeof value !== 'number' || !Number.isFinite(value)) return defaultStopTimeoutMs;
  return value < 0 ? maxStopTimeoutMs : Math.min(maxStopTimeoutMs, value * 1000);
}
