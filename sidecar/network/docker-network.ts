/** A network of the Docker Engine, as far as the host's picture of itself needs it. */
export interface DockerNetwork {
  /** Docker's full id, 64 hexadecimal digits. */
  readonly id: string;
  readonly name: string;
  /** `bridge`, `host`, `overlay`, …: only bridges have an interface on this host that containers share. */
  readonly driver: string;
  /** `--internal`: no route beyond the bridge. */
  readonly internal: boolean;
  /** Its interface: `docker0`, `br-<id, 12>`, or what com.docker.network.bridge.name says. */
  readonly interface: string;
  /** In Docker's text form, IPv6 ones included. */
  readonly subnets: readonly string[];
  /** The IPv4 gateway that Docker states; an internal network may have none. */
  readonly gateway?: string;
}
