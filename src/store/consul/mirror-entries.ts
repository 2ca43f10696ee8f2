import { isDeepStrictEqual } from 'node:util';
import type { InstanceRecord } from '../../model/instance.ts';
import type { MirrorOptions } from '../mirror.ts';
import type { WireOperation } from './client.ts';

/** What marks an entry of Consul's catalog as ours; what lacks it is never touched. */
const source = 'legate';
/** The check of a whole host, by which others tell that it is lost. */
export const hostCheckId = 'legate:host';

export interface CatalogNode {
  readonly Node: string;
  readonly Address: string;
  readonly Meta: Readonly<Record<string, string>>;
}

export interface CatalogService {
  readonly ID: string;
  readonly Service: string;
  readonly Tags: readonly string[];
  readonly Meta: Readonly<Record<string, string>>;
  readonly Address: string;
  readonly Port: number;
  readonly Weights: { readonly Passing: number; readonly Warning: number };
}

export interface CatalogCheck {
  readonly Node: string;
  readonly CheckID: string;
  readonly Name: string;
  readonly Status: string;
  readonly Output: string;
  readonly ServiceID: string;
}

/** A node of the catalog with what is on it. */
export interface NodePicture {
  readonly node: CatalogNode;
  readonly services: ReadonlyMap<string, CatalogService>;
  readonly checks: ReadonlyMap<string, CatalogCheck>;
}

type Host = Pick<MirrorOptions, 'mesh' | 'host'>;

/** The node that stands for this host: not the one of a Consul agent that may run on it. */
export function nodeName({ mesh, host }: Host): string {
  return `${mesh}-${host.name}`;
}

/** What this host shows. */
export function wantedPicture(options: Host, instances: Iterable<InstanceRecord>): NodePicture {
  const { mesh, host } = options;
  const name = nodeName(options);
  const mark = { 'external-source': source, 'legate-mesh': mesh, 'legate-host': host.id };
  const services = new Map<string, CatalogService>();
  const checks = new Map([[hostCheckId, hostCheck(name, 'passing', '')]]);
  for (const record of instances) {
    if (record.reach !== 'mesh') continue;
    const { address, port } = record.published ?? record;
    const weight = Math.max(1, record.weight);
    services.set(record.name, {
      ID: record.name,
      Service: record.service,
      Tags: [...record.tags],
      Meta: { ...takeable(record.meta), ...mark },
      Address: address,
      Port: port,
      Weights: { Passing: weight, Warning: weight },
    });
    const check = instanceCheck(name, record);
    checks.set(check.CheckID, check);
  }
  // What Consul's own tools for nodes without an agent look for.
  const external = { 'external-node': 'true', 'external-probe': 'false' };
  return { node: { Node: name, Address: host.address, Meta: { ...mark, ...external } }, services, checks };
}

export function hostCheck(node: string, status: 'passing' | 'critical', output: string): CatalogCheck {
  return { Node: node, CheckID: hostCheckId, Name: 'host, by Legate', Status: status, Output: output, ServiceID: '' };
}

function instanceCheck(node: string, { name, status, draining, output }: InstanceRecord): CatalogCheck {
  const usable = !draining && (status === 'passing' || status === 'warning');
  return {
    Node: node,
    CheckID: `legate:${name}`,
    Name: 'instance, by Legate',
    Status: usable ? status : 'critical',
    Output: draining ? 'draining' : output,
    ServiceID: name,
  };
}

/** Consul's limits of metadata: 64 pairs, keys of letters, digits, _ and -. Some of ours come on top. */
function takeable(meta: Readonly<Record<string, string>>): Record<string, string> {
  const fits = Object.entries(meta).filter(([key, value]) => /^[\w-]{1,128}$/.test(key) && value.length <= 512);
  return Object.fromEntries(fits.slice(0, 60));
}

/** Whether a node was registered by the host with this id. */
export function isOurs({ Meta }: CatalogNode, mesh: string, hostId: string): boolean {
  return Meta['external-source'] === source && Meta['legate-mesh'] === mesh && Meta['legate-host'] === hostId;
}

/** What turns the one picture into the other, in an order in which each operation finds what it needs. */
export function difference(now: NodePicture | undefined, wanted: NodePicture): WireOperation[] {
  const { Node } = wanted.node;
  const operations: WireOperation[] = [];
  if (now === undefined || !same(now.node, wanted.node)) {
    operations.push({ Node: { Verb: 'set', Node: wanted.node } });
  }
  for (const [id, service] of wanted.services) {
    if (!same(now?.services.get(id), service)) operations.push({ Service: { Verb: 'set', Node, Service: service } });
  }
  for (const [id, check] of wanted.checks) {
    if (!same(now?.checks.get(id), check)) operations.push({ Check: { Verb: 'set', Check: check } });
  }
  for (const [id, service] of now?.services ?? []) {
    // With a service its checks go, too.
    if (wanted.services.has(id) || service.Meta['external-source'] !== source) continue;
    operations.push({ Service: { Verb: 'delete', Node, Service: { ID: id, Service: service.Service } } });
  }
  return operations;
}

function same(a: object | undefined, b: object): boolean {
  return isDeepStrictEqual(a, b);
}

/** Reads what the catalog says of a node; what has another form counts as not there, and is written anew. */
export function parsePicture(services: unknown, checks: unknown): NodePicture | undefined {
  if (!isRecord(services) || !isRecord(services.Node)) return undefined;
  const list = isRecord(services.Services) ? Object.values(services.Services) : [];
  return {
    node: parseNode(services.Node),
    services: new Map(list.filter(isRecord).map((item) => [text(item.ID), parseService(item)])),
    checks: new Map(
      (Array.isArray(checks) ? checks : []).filter(isRecord).map((item) => [text(item.CheckID), parseCheck(item)]),
    ),
  };
}

export function parseNodes(nodes: unknown): CatalogNode[] {
  return Array.isArray(nodes) ? nodes.filter(isRecord).map(parseNode) : [];
}

function parseNode(item: Record<string, unknown>): CatalogNode {
  return { Node: text(item.Node), Address: text(item.Address), Meta: texts(item.Meta) };
}

function parseService(item: Record<string, unknown>): CatalogService {
  const weights = isRecord(item.Weights) ? item.Weights : {};
  return {
    ID: text(item.ID),
    Service: text(item.Service),
    Tags: Array.isArray(item.Tags) ? item.Tags.map(text) : [],
    Meta: texts(item.Meta),
    Address: text(item.Address),
    Port: Number(item.Port),
    Weights: { Passing: Number(weights.Passing), Warning: Number(weights.Warning) },
  };
}

function parseCheck(item: Record<string, unknown>): CatalogCheck {
  return {
    Node: text(item.Node),
    CheckID: text(item.CheckID),
    Name: text(item.Name),
    Status: text(item.Status),
    Output: text(item.Output),
    ServiceID: text(item.ServiceID),
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

function texts(value: unknown): Record<string, string> {
  return isRecord(value) ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, text(each)])) : {};
}
