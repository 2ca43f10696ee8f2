import { setMaxListeners } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { NameServer } from '../dns/server.ts';
import type { DataPlane } from '../proxy/data-plane.ts';
import { type Learned, LocalDataPlane } from '../proxy/local-plane.ts';
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
import { type GivenSettings, parseSettingsValue, type SettingsResult } from '../src/config/settings-value.ts';
import { type Endpoint, numberToIpv4 } from '../src/model/address.ts';
import type { Dialler } from '../src/model/dial.ts';
import { isExternal } from '../src/model/instance.ts';
import { restoredFrom } from '../src/pki/authority.ts';
import { defaultTunnelPort } from '../src/pki/desk.ts';
import { hostFiles } from '../src/pki/host-files.ts';
import { policySigner } from '../src/pki/policy-signer.ts';
import { checkHostId, openHostClaim } from '../src/registrar/host-claim.ts';
import { HostSweeper } from '../src/registrar/host-sweeper.ts';
import { type LimitedHost, limitedHost, openMesh } from '../src/registrar/mesh-identity.ts';
import { keepMesh, tellRestored } from '../src/registrar/mesh-keeper.ts';
import { PolicyAuthority } from '../src/registrar/policy-authority.ts';
import { Registrar } from '../src/registrar/registrar.ts';
import { ServiceClaims } from '../src/registrar/service-claims.ts';
import { ServiceOrders } from '../src/registrar/service-orders.ts';
import { openStore } from '../src/store/backends.ts';
import type { Store } from '../src/store/store.ts';
import { isStoreOfMesh } from '../src/store/trust.ts';
import { loadAdminToken } from './admin/access.ts';

import { declaredDocuments } from './admin/declared-views.ts';
import type { PictureDocument } from './admin/documents.ts';
import { authorityOrders } from './authority-orders.ts';
import { createBackend } from './backend.ts';
import { watchBrakes } from './brake-watch.ts';
import { openDataDir, watchDataDir } from './data-dir.ts';
import { DeclaredLinks } from './declared-links.ts';
import { DockerSource } from './docker/source.ts';
import { ExternalTargets, signExternal } from './external-targets.ts';
import { hostCertificates } from './host-certificates.ts';
import { watchHostNames } from './host-names-watch.ts';
import { LearnedPairs } from './learned-pairs.ts';
import { LingeringNames } from './lingering-names.ts';
import { watchLostHosts } from './lost-hosts-watch.ts';
import { openMembership } from './membership.ts';
import { NameServers } from './name-servers.ts';
import { CallerBindings } from './network/callers.ts';
import { TopologyWatcher } from './network/topology.ts';
import { VethFinder } from './network/veth.ts';
import { openVirtualAddresses } from './network/virtual-addresses.ts';
import { OwnInstances, ofTheMesh } from './own-instances.ts';
import { FormerWorkers } from './plane/former-workers.ts';
import { WorkerChildren } from './plane/worker-children.ts';
import { WorkerPlane } from './plane/worker-plane.ts';
import { PolicyKeeper } from './policy-keeper.ts';
import { PolicyOrders, policyStatus } from './policy-orders.ts';
import { type ReloadFaults, ReloadReport } from './reload-report.ts';
import { watchRights } from './rights-watch.ts';
import { HeldBack } from './splits/held-back.ts';
import { splitDocument } from './splits/split-document.ts';
import { SplitGuard } from './splits/split-guard.ts';
import { watchTakenBack } from './splits/taken-back-watch.ts';
import { watchVoidSplits } from './splits/void-split-watch.ts';
import { pictureDocument, statusDocument } from './status.ts';
import { StoreCopies } from './store-copies.ts';
import { keepMirror } from './store-mirror.ts';
import { StoreMoves } from './store-moves.ts';
import { StoreSession } from './store-session.ts';
import { storeKeys } from './store-target.ts';
import { watchUsable } from './usable-watch.ts';
import { Why } from './why/why.ts';

/** Loops that end with the sidecar; more would be a leak. */
const maxLoops = 256;
/** How long the loops in the background may take to end; what they hold is closed then in any case. */
const closeLimitMs = 5000;
/** How long an answer of the admin API may take to leave before the API is closed. */
const answerGraceMs = 20;
/** How long names are answered for a sidecar that was to take this one's place and does not come. */
const lingerLimitMs = 30_000;

export interface Sidecar {
  /** Takes over what may change while running (instances); says what needs a restart. */
  reload(config: Config): void;
  /** A configuration with faults, which changes nothing: says so until one without is taken over. */
  reloadFailed(failure: ReloadFaults): void;
  /** Drains, leaves and closes everything; how many connections had to be cut. */
  stop(): Promise<number>;
  /** Resolves when another sidecar asks to take this one's place. */
  readonly replaced: Promise<void>;
  /**
   * Closes everything but what carries connections, which goes on: for the one that takes this one's place. Names are
   * answered until `letGo` resolves: that one is about to.
   */
  handOver(letGo: Promise<unknown>): Promise<void>;
}

export interface SidecarOptions {
  readonly log: Log;
  readonly clock: Clock;
  readonly version: string;
  /** The configuration as it is in the file by now; undefined when it has faults. */
  readonly reread?: () => Config | undefined;
  /** The configuration file, as it was named. */
  readonly configFile?: string | undefined;
  /** How long the sidecar that has the data directory may take to let go of it; default 2 s. */
  readonly holderLimitMs?: number;
}

/**
 * The whole of a sidecar, in the order in which it comes up: what the last run knew, names and links from that, then the
 * store and Docker, and last the doors. Only wiring: what happens is in the rooms.
 */
export async function startSidecar(
  config: Config,
  { log, clock, version, configFile, reread = () => undefined, holderLimitMs }: SidecarOptions,
): Promise<Sidecar> {
  const startedAtMs = clock.nowMs();
  const startedMonotonicMs = clock.monotonicMs();
  const stopping = new AbortController();
  const { signal } = stopping;
  setMaxListeners(maxLoops, signal);
  const metrics = new Metrics().withRuntimeMetrics();
  const conditions = new Conditions(log, clock, metrics);
  const common = { clock, log, metrics, conditions };
  const dataDir = await openDataDir(config.dataDir, { clock, signal, holderLimitMs });
  const closers: (() => unknown)[] = [() => dataDir.release()];
  let handingOver = false;
  let failed = false;
  let askedToHandOver: () => void = () => undefined;
  const replaced = new Promise<void>((resolve) => {
    askedToHandOver = resolve;
  });
  const background: Promise<unknown>[] = [
    ignoringAbort(watchDataDir(config.dataDir, { clock, conditions, signal }), signal),
  ];
  try {
    const self = { hostId: dataDir.identity.hostId, hostName: config.host };
    const keys = storeKeys(config.mesh, config.store);
    const clearUnderlay = config.network.underlay !== 'untrusted';

    // Who this host is to others, and what the mesh allows.
    const files = hostFiles(config.dataDir);
    const policies = new PolicyKeeper({
      ...common,
      folder: files.folder,
      mesh: config.mesh,
      meshId: () => dataDir.identity.meshId,
    });
    closers.push(() => policies.close());
    await policies.load();
    const { policy } = policies;
    const policyKey = join(files.authority, 'policy.key');
    const authority = existsSync(policyKey)
      ? new PolicyAuthority({
          ...common,
          signer: policySigner(policyKey, config.authority.passphraseFile),
          book: policies,
          restoredFrom: restoredFrom(files.authority),
        })
      : undefined;
    const learned = new LearnedPairs({ ...common, hostId: self.hostId });
    const membership = openMembership({
      ...common,
      config,
      dataDir,
      self,
      version,
      configFile,
      policy,
      changePolicy: (by) => authority?.change(by) ?? Promise.resolve(),
      policyStored: () => authority?.stored ?? false,
      offerPolicy: (sealed) => policies.offer(sealed),
      hosts: () => [...catalog.snapshots.value.hosts.values()],
      store: () =>
        session.store && { store: session.store, keys: storeKeys(config.mesh, session.config ?? config.store) },
      storeConfig: () => session.config ?? session.wanted ?? config.store,
    });
    const { credentials } = membership;
    const tunnels = (): boolean => credentials.value !== undefined;

    // Virtual addresses take some processes of others to open, and meanwhile everything else is prepared.
    const children = new WorkerChildren(process.argv[1] ?? '', config.workers);
    closers.push(() => children.close());
    const former = new FormerWorkers({ path: dataDir.workersFile, clock });
    const adopt = former.count > 0;
    const opening = openVirtualAddresses({ ...common, config: config.vip, slots: config.workers, adopt });
    // A start that fails takes nothing from workers that carry on without it.
    const keepTable = (): boolean => handingOver || (failed && former.count > 0);
    closers.push(async () => (keepTable() ? (await opening).abandon() : (await opening).close()));

    // The catalog begins with what the last run knew.
    const catalog = new Catalog({ ...common, keys, self, policy });
    const meshId = dataDir.identity.meshId;
    const snapshotFile = new SnapshotFile({ ...common, path: dataDir.snapshotFile, ...(meshId && { meshId }) });
    const saved = await snapshotFile.load();
    if (saved !== undefined) catalog.restore(saved);

    closers.push(watchUsable(catalog.snapshots, conditions, clock), watchBrakes(catalog.snapshots, conditions, clock));
    closers.push(watchHostNames(catalog.snapshots, conditions));
    closers.push(watchLostHosts(catalog.snapshots, conditions, { selfId: self.hostId, clock }));
    closers.push(watchRights({ ...common, self, policy, snapshots: catalog.snapshots, ungranted: catalog.ungranted }));

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
        registrar?.setDesired(ofTheMesh(change));
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
    const external = new ExternalTargets({
      ...common,
      configured: config.external,
      policy,
      ownRanges: [config.vip.range, config.vip.localRange],
      onChange: (change) => own.fromOutside(change),
    });
    background.push(ignoringAbort(external.run(signal), signal));
    if (authority !== undefined) closers.push(signExternal({ authority, policy, configured: config.external, log }));

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

    // Sides of splits that this host's guard has taken back, for links alone.
    const held = new HeldBack(catalog.snapshots);
    closers.push(
      () => held.close(),
      watchTakenBack(held.snapshots, conditions),
      watchVoidSplits(held.snapshots, conditions),
    );

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
    const naming = new AbortController();
    let onBridges: Promise<void> | undefined;
    const lingering = new LingeringNames({ path: dataDir.namesFile, clock });
    const closeNames = async (): Promise<void> => {
      naming.abort();
      await onBridges;
      await names.close();
      lingering.end();
    };
    closers.push(() => (handingOver ? undefined : closeNames()));
    const planeOptions = {
      ...common,
      snapshots: held.snapshots,
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
      accessLog: config.log.access ? config.log.sample : 0,
      onLearned: (pair: Learned) => learned.note(pair),
      ...(membership.desk && { desk: membership.desk }),
      explainListenError: (error: Error, endpoint: Endpoint) => explainListenError(error, endpoint, 'tcp'),
    };
    const links: DataPlane =
      config.workers === 0
        ? new LocalDataPlane(planeOptions)
        : new WorkerPlane({
            ...planeOptions,
            workers: config.workers,
            logLevel: config.log.level,
            former,
            forgetFormer: async () => vips.table?.forgetFormer(),
            children,
          });
    closers.push(() => (handingOver && links instanceof WorkerPlane ? links.leaveAlone() : links.close()));
    const nameServers = new NameServers({ ...common, server: names, signal: naming.signal });
    const following = vips.follow(
      topology.topology,
      [...config.links.map(({ listen }) => listen), ...config.dns.listen],
      signal,
    );
    // Names come first: they answer while links are made, with this host's instances as the last run left them.
    await lingering.take();
    const onVirtualAddress =
      vips.table && nameServers.listenOnVirtualAddress(numberToIpv4(config.vip.range.base + 53), vips.table);
    if (config.dns.bridges === 'auto') onBridges = nameServers.followBridges(topology.topology);
    await nameServers.listenOn(config.dns.listen);
    await Promise.all([following, own.load(), onVirtualAddress, links.start()]);
    // Where this process carries links itself there may still be workers of the sidecar before.
    if (config.workers === 0) former.leave();

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
    // The store in this process takes everything from its own sidecar.
    const limitsOn = (used: StoreConfig): LimitedHost | undefined =>
      used.kind === 'embedded' ? undefined : limitedHost(policy.value, self.hostId);
    const prepare = async (store: Store, used: StoreConfig, until: AbortSignal): Promise<void> => {
      const remembered = dataDir.identity.meshId;
      const lastKnown = catalog.saved();
      const known = {
        keys: storeKeys(config.mesh, used),
        ...(remembered && { remembered }),
        ...(lastKnown && { saved: lastKnown }),
      };
      const limited = limitsOn(used);
      const opened = await openMesh({ ...known, ...(limited && { limited }), store, clock, signal: until });
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
      instances: () => [...own.records().values()].filter((record) => !isExternal(record)),
    };
    const begin = (store: Store, used: StoreConfig, until: AbortSignal): Promise<unknown>[] => {
      const on = { ...common, store, keys: storeKeys(config.mesh, used) };
      const { port } = config.tunnel.listen;
      const host = {
        id: self.hostId,
        name: self.hostName,
        address: config.advertise,
        version,
        ...(config.zone !== undefined && { zone: config.zone }),
        ...(port !== defaultTunnelPort && port > 0 && { tunnelPort: port }),
      };
      registrar = new Registrar({
        ...on,
        host,
        claim,
        leaseTtlMs: used.leaseTtlMs,
        mayDelete: (record) => own.mayDelete(record),
      });
      registrar.setDesired(ofTheMesh({ kind: 'reset', items: [...own.records().values()], revision: '' }));
      const services = {
        ...on,
        snapshots: catalog.snapshots,
        settings: config.services,
        links: config.links,
        declared: declared.ports,
        vip: { on: vips.table !== undefined, range: config.vip.range },
        policy,
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
        policy,
        forgotten: () => catalog.forgotten,
        holdsStore: used.kind === 'embedded',
        mayWrite: () => registrar?.holdsHostId === true,
      });
      const mesh = {
        remembered: dataDir.identity.meshId ?? '',
        saved: () => catalog.saved(),
        limited: () => limitsOn(used),
        signal: until,
      };
      return [
        catalog.follow(store, until, on.keys),
        registrar.run(until),
        claims.run(until),
        sweeper.run(until),
        keepMirror({ ...common, ...mirrored, config: used, signal: until }),
        keepMesh({ ...on, ...mesh }),
        policies.follow(store, on.keys, until, authority === undefined),
        authority?.keep({ store, keys: on.keys, signal: until }) ?? Promise.resolve(),
        learned.keep(store, on.keys, until),
        moves.watch(store, used, until),
      ];
    };
    const nameOf = (id: string): string | undefined => catalog.snapshots.value.hosts.get(id)?.name;
    const versionOf = (sealed: Uint8Array): number | undefined => policies.versionOf(sealed);
    const livingHost = (name: string, address: string): string | undefined =>
      [...catalog.snapshots.value.hosts.values()].find((host) => {
        return host.alive && (host.name === name || host.address === address);
      })?.id;
    const trust = { credentials, policy, versionOf, clearUnderlay, nameOf, livingHost };
    const open = (store: StoreConfig): Promise<Store> =>
      openStore(store, { ...common, dataDir: config.dataDir, trust });
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
    background.push(ignoringAbort(membership.run(signal), signal));
    const copies = new StoreCopies({
      ...common,
      session,
      moves,
      open,
      self,
      trust,
      snapshots: catalog.snapshots,
      signal,
    });
    // What sides of splits fail, and the way back.
    const guard = new SplitGuard({
      ...common,
      hostId: self.hostId,
      snapshots: catalog.snapshots,
      held,
      sides: () => links.sides(),
      orders: () => (session.store === undefined ? undefined : orders),
    });
    closers.push(() => guard.close());
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
    for (const source of [catalog.snapshots, catalog.ungranted, docker.refusals, docker.state, callers.table, policy]) {
      (source as { subscribe(listener: () => void): unknown }).subscribe(() => changes.set(changes.value + 1));
    }
    const picture = (): PictureDocument =>
      pictureDocument(session.store?.status.value, catalog.confirmedAtMs, clock.nowMs());
    const why = new Why({
      ...common,
      self,
      domain: config.domain,
      clearUnderlay,
      configured: config.links,
      snapshots: catalog.snapshots,
      picture,
      store: () => session.store?.status.value,
      storeProblem: () => session.problem,
      docker,
      callers: callers.table,
      resolve: (name, from) => names.resolve({ name, type: 'A' }, from),
      nameServers: () => nameServers.documents(),
      vip: () => ({ on: vips.on.value, reason: vips.reason() }),
      plane: links,
      policy,
      ungranted: catalog.ungranted,
      credentials,
      health: (name) => own.details(name),
    });
    closers.push(() => why.close());
    const policyOrders = new PolicyOrders({
      self,
      policy,
      authority,
      clock,
      snapshots: catalog.snapshots,
      ungranted: catalog.ungranted,
      declares: (consumer, service) =>
        declared.list().some(({ caller, link }) => caller.consumer === consumer && link.service === service),
      learned: () => learned.all(session.store, storeKeys(config.mesh, session.config ?? config.store)),
    });
    const backend = createBackend({
      self,
      policy: policyOrders,
      revoked: () => policy.value?.revoked ?? [],
      authorityId: () => policy.value?.authority,
      certificates: async () => {
        const ledger = membership.office?.authority.ledger.entries() ?? [];
        return hostCertificates(credentials.value, await links.tunnels(), ledger);
      },
      ungranted: () => catalog.ungranted.value,
      clearUnderlay,
      tunnels,
      keys: () => storeKeys(config.mesh, session.config ?? config.store),
      mesh: config.mesh,
      meshId: () => dataDir.identity.meshId,
      copies,
      authority: authorityOrders({
        self,
        office: membership.office,
        policy,
        hosts: () => [...catalog.snapshots.value.hosts.values()],
      }),
      clock,
      metrics,
      conditions,
      changes,
      snapshots: catalog.snapshots,
      own: () => own.records(),
      refusals: () => docker.refusals.value,
      health: (name) => own.details(name),
      store: () => session.store,
      storeProblem: () => session.problem,
      picture,
      why: (name, consumer) => why.ask(name, consumer),
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
      split: (name) => {
        const seen = { snapshot: held.snapshots.value, host: self.hostName, guard, nowMs: clock.monotonicMs() };
        return splitDocument(name, seen);
      },
      resolve: (name, type, from) =>
        names.resolve({ name, type }, from === undefined ? from : declared.addressOf(from)),
      parseInstance: (body, name) => onlyInstance(parseInstanceValue({ ...body, name })),
      register: (instance) => own.register(instance),
      refresh: (name, refresh) => own.refresh(name, refresh),
      deregister: (name) => own.deregister(name),
      parseSettings: (body) => givenSettings(parseSettingsValue(body)),
      orders: () => (session.store === undefined ? undefined : orders),
      handOver: async () => {
        if (links instanceof WorkerPlane) askedToHandOver();
        else throw cannotHandOver();
      },
      drain: (chosen, on, wholeHost) => own.drain(chosen, on, wholeHost),
      connectionsTo: async (ids) => {
        const counts = await Promise.all([...ids].map((instance) => links.activeConnections({ instance })));
        return counts.reduce((sum, count) => sum + count, 0);
      },
      status: async () => {
        const [shownLinks, shownTunnels] = await Promise.all([links.links(), links.tunnels()]);
        return statusDocument({
          self: { ...self, address: config.advertise },
          mesh: config.mesh,
          version,
          startedAtMs,
          startedMonotonicMs,
          clock,
          conditions,
          snapshot: () => catalog.snapshots.value,
          own: () => own.records().values(),
          confirmedAtMs: () => catalog.confirmedAtMs,
          stores: { used: session.config, wanted: session.wanted ?? config.store },
          isOfMesh: (used) => isStoreOfMesh(used, { credentials }),
          store: () => session.store?.status.value,
          storeProblem: () => session.problem,
          docker: () => docker.state.value,
          vip: () => ({ state: vips.on.value ? 'on' : 'off', range: config.vip.range.text, reason: vips.reason() }),
          callers: () => {
            const { off, bound } = callers.table.value;
            return { state: off === undefined ? 'on' : 'off', reason: off ?? null, bound: bound.size };
          },
          links: () => shownLinks.length,
          tunnels: shownTunnels,
          names: () => nameServers.documents(),
          policy: () => policyStatus(policy.value),
          identity: () => {
            const authority = policy.value && nameOf(policy.value.authority);
            return { ...membership.document(), authority: authority ?? null };
          },
        });
      },
    });
    const token = await loadAdminToken(config.admin.tokenFile);
    // The doors open last, so what they are made of is read when names and links already work.
    const { AdminServer } = await import('./admin/server.ts');
    const admin = new AdminServer({
      ...common,
      listen: config.admin.listen,
      token,
      credentials,
      names: [config.host, `${config.host}.host.${config.domain}`],
      backend,
    });
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
        const [cut] = await Promise.all([links.drain(config.drainTimeoutMs), former.end(config.drainTimeoutMs)]);
        await registrar?.leave().catch(() => undefined);
        await own.endChecks();
        stopping.abort();
        await Promise.race([Promise.allSettled(background), clock.sleep(closeLimitMs)]);
        await closeAll(closers);
        return cut;
      },
      replaced,
      async handOver(letGo) {
        handingOver = true;
        lingering.begin();
        // Whoever asked is to have the answer.
        await clock.sleep(answerGraceMs);
        stopping.abort();
        await Promise.race([Promise.allSettled(background), clock.sleep(closeLimitMs)]);
        await closeAll(closers);
        await Promise.race([letGo, clock.sleep(lingerLimitMs)]);
        await closeNames();
      },
    };
  } catch (error) {
    failed = true;
    stopping.abort();
    await Promise.allSettled(background);
    await closeAll(closers);
    throw error;
  }
}

function cannotHandOver(): LegateError {
  return new LegateError('E_CONFLICT', 'this sidecar carries connections itself, and they would be lost with it', {
    hint: 'set workers to auto and restart it once; then it can be replaced while connections go on',
  });
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
function givenSettings(result: SettingsResult): GivenSettings {
  if ('settings' in result) return result;
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
