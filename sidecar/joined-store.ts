import { LegateError, systemCode } from '../src/base/errors.ts';
import { FieldFault, Fields } from '../src/base/fields.ts';
import { readFileIfAny, writeFileAtomically } from '../src/base/files.ts';
import type { Config, StoreConfig } from '../src/config/config.ts';
import { type Endpoint, formatEndpoint } from '../src/model/address.ts';
import { defaultTunnelPort } from '../src/pki/desk.ts';
import { decodeMarker, describeTarget, encodeMarker, type MovedTo } from '../src/registrar/store-marker.ts';
import { configLine, followedConfig, movedTo } from './store-target.ts';

const maxFileBytes = 64 * 1024;

/** What a host that joined a mesh was told of it, in `joined.json` of its data directory. */
export interface Joined {
  /** Where the mesh's store is. */
  readonly store: MovedTo;
  readonly authority: { readonly hostId: string } & Endpoint;
}

/** The store of this host as another host is to reach it, as text; what `readStoreText` reads. */
export function storeTextFor(store: StoreConfig, { hostId, advertise }: { hostId: string; advertise: string }): string {
  const listen = store.kind === 'embedded' ? store.listen : undefined;
  const isAny = listen?.address === '0.0.0.0' || listen?.address === '::';
  const reached = isAny && store.kind === 'embedded' ? { ...store, listen: { ...listen, address: advertise } } : store;
  // A host of a mesh with an authority offers its store over TLS alone.
  return Buffer.from(encodeMarker({ state: 'moved', atMs: 0, to: movedTo(reached, hostId, true) })).toString('utf8');
}

/** E_INVALID when it is none. */
export function readStoreText(text: string): MovedTo {
  const { state, to } = decodeMarker(Buffer.from(text));
  if (state === 'moved') return to;
  throw new LegateError('E_INVALID', "what the authority says of the mesh's store cannot be read", {
    hint: 'install the same version of Legate on both hosts',
  });
}

export async function writeJoined(path: string, { store, authority }: Joined): Promise<void> {
  const text = Buffer.from(encodeMarker({ state: 'moved', atMs: 0, to: store })).toString('utf8');
  await writeFileAtomically(path, [`${JSON.stringify({ v: 1, store: text, authority }, null, 1)}\n`]);
}

/** Undefined on a host that did not join. E_INVALID when the file cannot be read. */
export function readJoined(path: string): Joined | undefined {
  const text = readText(path);
  if (text === undefined) return undefined;
  try {
    const fields = new Fields(JSON.parse(text));
    fields.integer('v', 1, 1);
    const authority = fields.fields('authority');
    return {
      store: readStoreText(String(fields.raw('store'))),
      authority: {
        hostId: authority.text('hostId', 16, 16),
        address: authority.address('address'),
        port: authority.integer('port', 1, 65535),
      },
    };
  } catch (error) {
    if (!(error instanceof FieldFault) && !(error instanceof SyntaxError) && !(error instanceof LegateError))
      throw error;
    throw new LegateError('E_INVALID', `${path} cannot be read: ${error.message}`, {
      hint: 'restore it from a backup, or name the store in the configuration file and remove it',
    });
  }
}

function readText(path: string): string | undefined {
  try {
    return readFileIfAny(path, maxFileBytes);
  } catch (error) {
    const code = systemCode(error);
    // A data directory that is none is told of by whoever opens it.
    if (code === 'ENOTDIR') return undefined;
    if (code === undefined) throw error;
    throw new LegateError('E_PERMISSION', `cannot read ${path} (${code})`, {
      hint: 'run as the user that owns it',
      cause: error,
    });
  }
}

/** The configuration with the store of the mesh that this host joined, where the configuration names none. */
export function withJoinedStore(config: Config): Config {
  if (config.storeNamed) return config;
  const joined = readJoined(`${config.dataDir}/joined.json`);
  if (joined === undefined) return config;
  const store = followedConfig(joined.store, config, '');
  if (store !== undefined) return { ...config, store };
  throw new LegateError(
    'E_CONFIG',
    `the store of the mesh that this host joined is ${describeTarget(joined.store)}, which takes files`,
    {
      hint: `write \`${configLine(joined.store, '')}\` with its files into the configuration`,
    },
  );
}

/** What the file says of the store, where that is not where the joined mesh's was; undefined when nothing is to be said. */
export function storeDifference(config: Config, joined: Joined | undefined): string | undefined {
  if (joined === undefined || !config.storeNamed) return undefined;
  const { store } = config;
  const offered = { hostId: '', advertise: config.advertise };
  const own =
    store.kind === 'embedded'
      ? readStoreText(storeTextFor(store, offered)).endpoints
      : store.endpoints.map(({ text }) => text);
  const theirs = joined.store.endpoints.map(withoutScheme);
  if (own.some((each) => theirs.includes(withoutScheme(each)))) return undefined;
  const said = store.kind === 'embedded' ? 'the embedded store' : `${store.kind} at ${own.join(', ')}`;
  return `the configuration names ${said}, and the mesh that this host joined was in ${describeTarget(joined.store)}`;
}

function withoutScheme(url: string): string {
  return url.replace(/^[a-z+]+:\/\//, '');
}

/** `10.77.0.1`, with its port where that is not 7711. */
export function joinAddress({ address, port }: Endpoint): string {
  if (port !== defaultTunnelPort) return formatEndpoint({ address, port });
  return address.includes(':') ? `[${address}]` : address;
}
