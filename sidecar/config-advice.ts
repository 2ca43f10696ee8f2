import { routesAdvice, speaksOtherwise } from '../proxy/http/routing/route-advice.ts';
import { idleSettings, isHttp } from '../src/model/idle-settings.ts';
import type { Protocol } from '../src/model/instance.ts';
import { type ServiceSettings, serviceFields, settingWord } from '../src/model/service.ts';

/** Something that is no fault, and will not do what it seems to. `path`: `services.web.routes[1]`. */
export interface Advice {
  readonly path: string;
  readonly message: string;
}

/** What in the `services:` of a configuration has no effect, or another one than it seems to, as far as the file tells. */
export function servicesAdvice(services: ReadonlyMap<string, ServiceSettings>): readonly Advice[] {
  return [...services].flatMap(([name, settings]) => {
    const path = `services.${name}`;
    const { protocol } = settings;
    const words = serviceFields.filter((field) => settings[field] !== undefined).map(settingWord);
    // Without a protocol it is that of the instances, which nobody knows here.
    const idle = protocol && idleSettings(name, protocol, words);
    if (idle !== undefined) return [{ path, message: idle }];
    return routeAdvice(path, name, settings, (other) => services.get(other)?.protocol);
  });
}

function routeAdvice(
  path: string,
  name: string,
  { protocol, routes = [] }: ServiceSettings,
  protocolOf: (service: string) => Protocol | undefined,
): Advice[] {
  const advice = routesAdvice(routes).map((each) => ({ ...each, path: `${path}.routes${each.path}` }));
  if (protocol === undefined) return advice;
  const check = (at: string, to: string | undefined, does: string): void => {
    const its = to === undefined ? undefined : protocolOf(to);
    if (its === undefined || (isHttp(its) && (its === 'http') === (protocol === 'http'))) return;
    advice.push({ path: `${path}.routes${at}`, message: speaksOtherwise(`${name} ${does} to ${to}`, its, protocol) });
  };
  for (const [index, { service: to, mirror }] of routes.entries()) {
    check(`[${index}].service`, to, 'leads');
    check(`[${index}].mirror`, mirror?.service, 'copies requests');
  }
  return advice;
}
