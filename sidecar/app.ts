import { setMaxListeners } from 'node:events';
import { NameServer } from '../dns/server.ts';
import type { DataPlane } from '../proxy/data-plane.ts';
import { LocalDataPlane } from '../proxy/local-plane.ts';
import type { Clock } from '../src/base/clock.ts';
import { Conditions } from '../src/base/conditions.ts';
import { isLegateError, LegateError } from '../src/base/errors.ts';
import { Latest } from '../src/base/feed.ts';
import type { Log } from '../src/base/log.ts';
import { Metrics } from '../src/base/metrics.ts';
import { explainListenError } from '../src/base/sockets.ts';
import { Catalog } from '../src/catalog/catalog.ts';
import { SnapshotFile } from '../src/catalog/disk.ts';
import { InstanceAddresses } from '../src/catalog/instance-addresses.ts';
import { recordsOfHost, rememberedVips } from '../src/catalog/saved-state.ts';
import type { Config, StaticInstance, StoreConfig } from '../src/config/config.ts';
import { type InstancesResult, parseInstanceValue } from '../src/config/instances-file.ts';
import { parseSettingsValue, type SettingsResult } from '../src/config/settings-value.ts';
import { numberToIpv4 } from '../src/model/address.ts';
import type { Credentials } from '../src/model/credentials.ts';
import type { Dialler } from '../src/model/dial.ts';
import type { Policy } from '../src/model/policy.ts';
import type { ServiceSettings } from '../src/model/service.ts';
import { checkHostId, openHostClaim } from '../src/registrar/host-claim.ts';
import { HostSweeper } from '../src/registrar/host-sweeper.ts';
import { openMesh } from '../src/registrar/mesh-identity.ts';
import { keepMesh, tellRestored } from '../src/registrar/mesh-keeper.ts';
import { Registrar } from '../src/registrar/registrar.ts';
import { ServiceClaims } from '../src/registrar/service-claims.ts';
import { ServiceOrders } from '../src/registrar/service-orders.ts';
import { openStore } from '../src/store/backends.ts';
import type { Store } from '../src/store/store.ts';
import { loadAdminToken } from './admin/access.ts';

import { declaredDocuments } from './admin/declared-views.ts';
import { createBackend } from './backend.ts';
import { watchBrakes } from './brake-watch.ts';
import { openDataDir, watchDataDir } from './data-dir.ts';
import { DeclaredLinks } from './declared-links.ts';
import { DockerSource } from './docker/source.ts';
import { watchHostNames } from './host-names-watch.ts';
import { watchLostHosts } from './lost-hosts-watch.ts';
import { NameServers } from './name-servers.ts';
import { CallerBindings } from './network/callers.ts';
import { TopologyWatcher } from './network/topology.ts';
import { VethFinder } from './network/veth.ts';
import { openVirtualAddresses } from './network/virtual-addresses.ts';
import { OwnInstances } from './own-instances.ts';
import { type ReloadFaults, ReloadReport } from './reload-report.ts';
import { pictureDocument, statusDocument } from './status.ts';
import { StoreCopies } from './store-copies.ts';
import { keepMirror } from './store-mirror.ts';
import { StoreMoves } from './store-moves.ts';
import { StoreSession } from './store-session.ts';
import { storeKeys } from './store-target.ts';
import { watchUsable } from './usable-watch.ts';

/** Loops that end with the sidecar; more would be a leak. */
const maxLoops = 256;
/** How long the loops in the background may take to end; what they hold is closed then in any case. */
const closeLimitMs = 5000;

export interface Sidecar {
  /** Takes over what may change while running (instances); says what needs a restart. */
  reload(config: Config): void;
  /** A configuration with faults, which changes nothing: says so until one without is taken over. */
  reloadFailed(failure: ReloadFaults): void;
  /** Drains, leaves and closes everything; how many connections had to be cut. */
  stop(): Promise<number>;
}

export interface SidecarOptions {
  readonly log: Log;
  readonly clock: Clock;
  readonly version: string;
  /** The configuration as it is in the file by now; undefined when it has faults. */
  readonly reread?: () => Config | undefined;
}

/**
 * The whole of a sidecar, in the order in which it comes up: what the last run knew, names and links from that, then the
 * store and Docker, and last the doors. Only wiring: what happens is in the rooms.
 */
export async function startSidecar(
  config: Config,
  { log, clock, version, reread = () => undefined }: SidecarOptions,
): Promise<Sidecar> {
  const startedAtMs = clock.nowMs();
  const startedMonotonicMs = clock.monotonicMs();
  const stopping = new AbortController();
  const { signal } = stopping;
  setMaxListeners(maxLoops, signal);
  const metrics = new Metrics().withRuntimeMetrics();
  const conditions = new Conditions(log, clock, metrics);
  const common = { clock, log, metrics, conditions };
  const dataDir = await openDataDir(config.dataDir, { clock, signal });
  const closers: (() => unknown)[] = [() => dataDir.release()];
  const background: Promise<unknown>[] = [
    ignoringAbort(watchDataDir(config.dataDir, { clock, conditions, signal }), signal),
  ];
  try {
    const self = { hostId: dataDir.identity.hostId, hostName: config.host };
    const keys = storeKeys(config.mesh, config.store);
    const clearUnderlay = config.network.underlay !== 'untrusted';

    // Who this host is to others, and what the mesh allows.
    const credentials = new Latest<Credentials | undefined>(undefined);
    const policy = new Latest<Policy | undefined>(undefined);
    const tunnels = (): boolean => credentials.value !== undefined;

    // Virtual addresses take some processes of others to open, and meanwhile everything else is prepared.
    const opening = openVirtualAddresses({ ...common, config: config.vip });
    closers.push(async () => (await opening).close());

    // The catalog begins with what the last run knew.
    const catalog = new Catalog({ ...common, keys, self });
    const meshId = dataDir.identity.meshId;
    const snapshotFile = new SnapshotFile({ ...common, path: dataDir.snapshotFile, ...(meshId && { meshId }) });
    const saved = await snapshotFile.load();
    if (saved !== undefined) catalog.restore(saved);

    closers.push(watchUsable(catalog.snapshots, conditions), watchBrakes(catalog.snapshots, conditions, clock));
    closers.push(watchHostNames(catalog.snapshots, conditions));
    closers.push(watchLostHosts(catalog.snapshots, conditions, self.hostId));

    // This host's own instances go to the catalog at once, and to the store when there is one.
    let registrar: Registrar | undefined;
    const own = new OwnInstances({
      ...common,
      instancesFile: dataDir.instancesFile,
      drainedFile: dataDir.drainedFile,
      remembered: saved === undefined ? [] : recordsOfHost(saved, self.hostId),
      runInContainer: (...asked) => docker.runInContainer(...asked),
      onChange: (change) => {
        catalog.applyOwn(change);
        registrar?.setDesired(change);
      },
    });
    closers.push(() => own.close());

    // What this host looks like, and Docker, which tells the names of its networks.
    const docker = new DockerSource({
      ...common,
      config: config.docker,
      advertise: config.advertise,
      onChange: (change) => own.fromDocker(change),
      onCaller: (id, group) => callers.apply(id, group),
    });
    const topology = new TopologyWatcher({ ...common, dockerNetworks: docker.networks });
    own.fromFile(config.instances);
    const [vips] = await Promise.all([opening, topology.refresh()]);
    background.push(topology.run(signal));

    // Who calls: containers, held to their addresses by the kernel; and what they declare.
    const veths = new VethFinder();
    const callers: CallerBindings = new CallerBindings({
      ...common,
      filter: vips.table,
      off: config.docker.expose === 'off' ? 'docker.expose is off' : vips.table === undefined ? vips.reason() : null,
      docker: docker.state,
      find: (pid, macs) => veths.find(pid, macs),
    });
    closers.push(() => callers.close());
    const declared = new DeclaredLinks({
      ...common,
      callers: callers.table,
      snapshots: catalog.snapshots,
      declaring: () => docker.declaring(),
      nameOf: (idStart) => docker.networkNameOf(idStart),
    });
    closers.push(() => declared.close());

    // Where instances are served that only tunnels lead to; the kernel has the range when this host is in a mesh.
    const dialler = (): Dialler => ({ hostId: self.hostId, clearUnderlay, tunnels: tunnels() });
    const instances = new InstanceAddresses({
      ...common,
      range: config.vip.localRange,
      snapshots: catalog.snapshots,
      dialler,
    });
    const joined = async (): Promise<void> => {
      if (tunnels()) await vips.table?.addRange(config.vip.localRange).catch(() => undefined);
      instances.review();
    };
    closers.push(
      () => instances.close(),
      credentials.subscribe(() => void joined()),
    );
    await joined();

    // Names and links, which see nothing but the catalog's snapshots and who calls.
    const names = new NameServer({
      ...common,
      snapshots: catalog.snapshots,
      confirmedAtMs: () => catalog.confirmedAtMs,
      topology: topology.topology,
      callers: callers.table,
      self,
      domain: config.domain,
      ttlMs: config.dns.ttlMs,
      upstream: config.dns.upstream,
      vipsOn: vips.on,
      vipRange: config.vip.range,
      clearUnderlay,
      tunnels,
      instanceAddressOf: (id) => instances.addressOf(id),
      listenerOf: (service) => links.listenerOf(service),
    });
    closers.push(() => names.close());
    const links: DataPlane = new LocalDataPlane({
      ...common,
      snapshots: catalog.snapshots,
      self,
      zone: config.zone,
      clearUnderlay,
      links: config.links,
      declared: declared.ports,
      portMap: vips.table,
      callers,
      topology: topology.topology,
      vipRange: config.vip.range,
      localRange: config.vip.localRange,
      instanceAddresses: instances.table,
      tunnel: config.tunnel,
      credentials,
      policy,
      explainListenError: (error, endpoint) => explainListenError(error, endpoint, 'tcp'),
    });
    closers.push(() => links.close());
    const nameServers = new NameServers({ ...common, server: names, signal });
    const following = vips.follow(
      topology.topology,
      [...config.links.map(({ listen }) => listen), ...config.dns.listen],
      signal,
    );
    // Names come first: they answer while links are made, with this host's instances as the last run left them.
    await nameServers.listenOn(config.dns.listen);
    await Promise.all([
      following,
      own.load(),
      vips.table && nameServers.listenOnVirtualAddress(numberToIpv4(config.vip.range.base + 53), vips.table),
      links.start(),
    ]);
    if (config.dns.bridges === 'auto') background.push(nameServers.followBridges(topology.topology));

    // The store, and what lives on it. Another store may take its place at any time. Another living sidecar with this
    // host's id ends the start, where it is seen then.
    const isAlone = (used: StoreConfig | undefined): boolean => used?.kind === 'embedded' && used.listen === undefined;
    const claim = await openHostClaim({
      path: dataDir.claimsFile,
      address: config.advertise,
      log,
      alone: () => isAlone(session.wanted),
    });
    let starting = true;
    let refused: unknown;
    let orders: ServiceOrders | undefined;
    const prepare = async (store: Store, used: StoreConfig, until: AbortSignal): Promise<void> => {
      const remembered = dataDir.identity.meshId;
      const lastKnown = catalog.saved();
      const known = {
        keys: storeKeys(config.mesh, used),
        ...(remembered && { remembered }),
        ...(lastKnown && { saved: lastKnown }),
      };
      const opened = await openMesh({ ...known, store, clock, signal: until });
      await dataDir.rememberMesh(opened.meshId);
      if (starting) {
        const { leaseTtlMs } = used;
        const check = { ...common, store, keys: known.keys, hostId: self.hostId, claim, leaseTtlMs, signal: until };
        await checkHostId(check).catch((error: unknown) => {
          if (isLegateError(error, 'E_IN_USE')) refused = error;
          throw error;
        });
      }
      if (opened.outcome === 'restored') tellRestored(conditions);
    };
    const mirrored = {
      mesh: config.mesh,
      host: { id: self.hostId, name: self.hostName, address: config.advertise },
      snapshots: catalog.snapshots,
      instances: () => own.records().values(),
    };
    const begin = (store: Store, used: StoreConfig, until: AbortSignal): Promise<unknown>[] => {
      const on = { ...common, store, keys: storeKeys(config.mesh, used) };
      const host = { id: self.hostId, name: self.hostName, address: config.advertise, version };
      registrar = new Registrar({
        ...on,
        host,
        claim,
        leaseTtlMs: used.leaseTtlMs,
        mayDelete: (record) => own.mayDelete(record),
      });
      registrar.setDesired({ kind: 'reset', items: [...own.records().values()], revision: '' });
      const services = {
        ...on,
        snapshots: catalog.snapshots,
        settings: config.services,
        links: config.links,
        declared: declared.ports,
        vip: { on: vips.table !== undefined, range: config.vip.range },
      };
      const lastKnown = catalog.saved();
      const remembered = lastKnown && rememberedVips(lastKnown);
      const claims = new ServiceClaims({ ...services, hostId: self.hostId, ...(remembered && { remembered }) });
      orders = new ServiceOrders({
        ...services,
        hostName: config.host,
        wanted: (name) => own.wanted(name),
        adopt: (name) => claims.adopt(name),
      });
      const sweeper = new HostSweeper({
        ...on,
        hostId: self.hostId,
        snapshots: catalog.snapshots,
        forgotten: () => catalog.forgotten,
        holdsStore: used.kind === 'embedded',
        mayWrite: () => registrar?.holdsHostId === true,
      });
      const mesh = { remembered: dataDir.identity.meshId ?? '', saved: () => catalog.saved(), signal: until };
      return [
        catalog.follow(store, until, on.keys),
        registrar.run(until),
        claims.run(until),
        sweeper.run(until),
        keepMirror({ ...common, ...mirrored, config: used, signal: until }),
        keepMesh({ ...on, ...mesh }),
        moves.watch(store, used, until),
      ];
    };
    const open = (store: StoreConfig): Promise<Store> => openStore(store, { ...common, dataDir: config.dataDir });
    const moves: StoreMoves = new StoreMoves({
      ...common,
      config,
      hostId: self.hostId,
      path: dataDir.movedFile,
      reread,
      session: () => session,
    });
    const session: StoreSession = new StoreSession({
      ...common,
      open,
      redirect: (store, used, until) => moves.redirect(store, used, until),
      prepare,
      begin,
      signal,
    });
    closers.push(() => session.close());
    const copies = new StoreCopies({ ...common, session, moves, open, self, snapshots: catalog.snapshots, signal });
    await session.use(moves.first());
    starting = false;
    if (refused !== undefined) throw refused;
    // An embedded store that nobody else uses is this host's alone: where it cannot be opened, what this host has is all.
    const { store: inUse, wanted } = session;
    if (inUse === undefined && isAlone(wanted)) catalog.beginAlone();
    background.push(docker.run(signal));
    const kept = new AbortController();
    const keeping = snapshotFile.keep(catalog, kept.signal);
    closers.push(() => {
      kept.abort();
      return keeping;
    });

    // The doors.
    const changes = new Latest(0);
    for (const source of [catalog.snapshots, docker.refusals, docker.state, callers.table]) {
      (source as { subscribe(listener: () => void): unknown }).subscribe(() => changes.set(changes.value + 1));
    }
    const backend = createBackend({
      self,
      clearUnderlay,
      tunnels,
      keys: () => storeKeys(config.mesh, session.config ?? config.store),
      mesh: config.mesh,
      meshId: () => dataDir.identity.meshId,
      copies,
      clock,
      metrics,
      conditions,
      changes,
      snapshots: catalog.snapshots,
      refusals: () => docker.refusals.value,
      health: (name) => own.details(name),
      store: () => session.store,
      storeProblem: () => session.problem,
      picture: () => pictureDocument(session.store?.status.value, catalog.confirmedAtMs, clock.nowMs()),
      ready: () => {
        const { state, problem } = docker.state.value;
        return catalog.snapshots.value.origin !== 'none' && (state !== 'connecting' || problem !== null);
      },
      links: async () => {
        const all = await links.links();
        const vip = { on: vips.on.value, reason: vips.reason() };
        const surroundings = { snapshot: catalog.snapshots.value, links: all, vip };
        return { links: all, declared: declaredDocuments(declared.list(), surroundings) };
      },
      resolve: (name, type, from) =>
        names.resolve({ name, type }, from === undefined ? from : declared.addressOf(from)),
      parseInstance: (body, name) => onlyInstance(parseInstanceValue({ ...body, name })),
      register: (instance) => own.register(instance),
      refresh: (name, refresh) => own.refresh(name, refresh),
      deregister: (name) => own.deregister(name),
      parseSettings: (body) => givenSettings(parseSettingsValue(body)),
      orders: () => (session.store === undefined ? undefined : orders),
      drain: (chosen, on, wholeHost) => own.drain(chosen, on, wholeHost),
      connectionsTo: async (ids) => {
        const counts = await Promise.all([...ids].map((instance) => links.activeConnections({ instance })));
        return counts.reduce((sum, count) => sum + count, 0);
      },
      status: async () => {
        const linkCount = (await links.links()).length;
        return statusDocument({
          self: { ...self, address: config.advertise },
          mesh: config.mesh,
          version,
          startedAtMs,
          startedMonotonicMs,
          clock,
          conditions,
          snapshot: () => catalog.snapshots.value,
          confirmedAtMs: () => catalog.confirmedAtMs,
          stores: { used: session.config, wanted: session.wanted ?? config.store },
          store: () => session.store?.status.value,
          storeProblem: () => session.problem,
          docker: () => docker.state.value,
          vip: () => ({ state: vips.on.value ? 'on' : 'off', range: config.vip.range.text, reason: vips.reason() }),
          callers: () => {
            const { off, bound } = callers.table.value;
            return { state: off === undefined ? 'on' : 'off', reason: off ?? null, bound: bound.size };
          },
          links: () => linkCount,
          names: () => nameServers.documents(),
        });
      },
    });
    const token = await loadAdminToken(config.admin.tokenFile);
    // The doors open last, so what they are made of is read when names and links already work.
    const { AdminServer } = await import('./admin/server.ts');
    const admin = new AdminServer({ ...common, listen: config.admin.listen, token, backend });
    closers.push(() => admin.close());
    await admin.open();
    log.info('the sidecar is up', {
      'host.name': self.hostName,
      'host.id': self.hostId,
      'agent.version': version,
      'agent.startup_ms': Math.round(clock.monotonicMs() - startedMonotonicMs),
    });

    const report = new ReloadReport({ running: config, conditions, log });
    return {
      reload(next) {
        own.fromFile(next.instances);
        void moves.fileSays(next);
        report.succeeded(next);
      },
      reloadFailed: (failure) => report.failed(failure),
      async stop() {
        const cut = await links.drain(config.drainTimeoutMs);
        await registrar?.leave().catch(() => undefined);
        await own.endChecks();
        stopping.abort();
        await Promise.race([Promise.allSettled(background), clock.sleep(closeLimitMs)]);
        await closeAll(closers);
        return cut;
      },
    };
  } catch (error) {
    stopping.abort();
    await Promise.allSettled(background);
    await closeAll(closers);
    throw error;
  }
}

/** A loop that ends by the signal has not failed. */
function ignoringAbort(loop: Promise<void>, signal: AbortSignal): Promise<void> {
  return loop.catch((error: unknown) => {
    if (!signal.aborted) throw error;
  });
}

/** The one instance of a request's body; its faults are the caller's. */
function onlyInstance(result: InstancesResult): StaticInstance {
  if ('faults' in result) {
    throw new LegateError('E_INVALID', result.faults.map((fault) => `${fault.path}: ${fault.message}`).join('; '), {
      hint: 'the fields are those of an entry of `instances:` in the configuration',
    });
  }
  const [instance] = result.instances;
  if (instance === undefined) throw new Error('a body became no instance');
  return instance;
}

/** The settings of a request's body; its faults are the caller's. */
function givenSettings(result: SettingsResult): ServiceSettings {
  if ('settings' in result) return result.settings;
  throw new LegateError('E_INVALID', result.faults.map((fault) => fault.text).join('; '), {
    hint: 'the fields are those of an entry of `services:` in the configuration',
  });
}

/** Closes in the reverse of the order of opening; one that fails keeps none of the others open. */
async function closeAll(closers: (() => unknown)[]): Promise<void> {
  for (const close of closers.reverse())
    await Promise.resolve()
      .then(close)
      .catch(() => undefined);
}
