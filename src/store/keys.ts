/** Where things are stored, under `/legate/<mesh>/`. All keys of Legate are made here. */
export interface Keys {
  readonly root: string;
  readonly meta: string;
  readonly hosts: string;
  readonly alive: string;
  readonly instances: string;
  readonly services: string;
  readonly vips: string;
  readonly kv: string;
  /** Says that the mesh is being moved, or has moved, to another store. */
  readonly moved: string;
  /** In a store that a mesh is being copied into, until that is complete. */
  readonly copying: string;
  /** Which of the users' own keys vanish by themselves; each of these vanishes with its key. */
  readonly leased: string;
  /** The signed policy document. */
  readonly policy: string;
  /** Prefix of the join tokens' records, each under its hash. */
  readonly tokens: string;
  /** Prefix of what hosts in learning mode would have refused, each under its own id. */
  readonly learned: string;
  host(hostId: string): string;
  aliveOf(hostId: string): string;
  /** Prefix of a host's own instances, with the final slash. */
  instancesOf(hostId: string): string;
  instance(hostId: string, name: string): string;
  service(name: string): string;
  vip(address: string): string;
  userKey(key: string): string;
}

export function keysOf(mesh: string, prefix = '/legate'): Keys {
  const root = `${prefix}/${mesh}/`;
  return {
    root,
    meta: `${root}meta`,
    hosts: `${root}hosts/`,
    alive: `${root}alive/`,
    instances: `${root}instances/`,
    services: `${root}services/`,
    vips: `${root}vips/`,
    kv: `${root}kv/`,
    moved: `${root}moved`,
    copying: `${root}copying`,
    leased: `${root}leased/`,
    policy: `${root}policy`,
    tokens: `${root}tokens/`,
    learned: `${root}learned/`,
    host: (hostId) => `${root}hosts/${hostId}`,
    aliveOf: (hostId) => `${root}alive/${hostId}`,
    instancesOf: (hostId) => `${root}instances/${hostId}/`,
    instance: (hostId, name) => `${root}instances/${hostId}/${name}`,
    service: (name) => `${root}services/${name}`,
    vip: (address) => `${root}vips/${address}`,
    userKey: (key) => `${root}kv/${key}`,
  };
}
