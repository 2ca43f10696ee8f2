import type { Conditions } from '../../src/base/conditions.ts';
import type { CounterCell, Metrics } from '../../src/base/metrics.ts';
import type { Ipv4Range } from '../../src/model/address.ts';
import type { Counters } from './vip-rules.ts';

/** So many packets must have vanished: one may be on its way just then. */
const fewestDropped = 2;

/**
 * Compares what was counted before and after the place of the host's own firewall, and says when one stands between
 * containers and virtual addresses: their connections then time out, and nothing else would tell why.
 */
export class HostFirewall {
  readonly #range: Ipv4Range;
  readonly #conditions: Conditions;
  readonly #id: string;
  readonly #seen: CounterCell;
  readonly #arrived: CounterCell;
  #last: Counters = { seen: 0, arrived: 0 };
  /** Packets that were seen and did not arrive, since all of a time's last arrived. */
  #missing = 0;

  constructor(options: { table: string; range: Ipv4Range; conditions: Conditions; metrics: Metrics }) {
    const { table, range, conditions, metrics } = options;
    this.#range = range;
    this.#conditions = conditions;
    this.#id = `vip.${table}.firewall`;
    const help = 'New packets of containers to virtual addresses';
    this.#seen = metrics.counter('legate_vip_seen_packets_total', `${help}, before the host's firewall.`);
    this.#arrived = metrics.counter('legate_vip_arrived_packets_total', `${help}, after the host's firewall.`);
  }

  /** To be called when the table was built: its counters begin at 0. */
  restart(): void {
    this.#last = { seen: 0, arrived: 0 };
    this.#missing = 0;
  }

  observe(now: Counters): void {
    const seen = now.seen - this.#last.seen;
    const arrived = now.arrived - this.#last.arrived;
    this.#last = now;
    if (seen < 0 || arrived < 0) return;
    this.#seen.value += seen;
    this.#arrived.value += arrived;
    this.#missing += seen - arrived;
    if (seen > arrived && this.#missing >= fewestDropped) {
      const range = this.#range.text;
      this.#conditions.raise(
        this.#id,
        'error',
        'a firewall of this host drops what containers send to virtual addresses',
        `let it in: iptables -I INPUT -d ${range} -j ACCEPT, ufw allow to ${range}, or firewall-cmd ` +
          `--add-rich-rule='rule family=ipv4 destination address=${range} accept'`,
        { 'vip.range': range, 'vip.packets_dropped': seen - arrived, 'vip.packets_arrived': arrived },
      );
    } else if (arrived > 0 && seen <= arrived) {
      this.#missing = 0;
      this.#conditions.clear(this.#id);
    }
  }
}
