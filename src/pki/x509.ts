import type * as Library from '@peculiar/x509';

export type X509 = typeof Library;

/** The library that makes certificates and requests; loaded only then: what a host shows is read without it. */
export async function loadX509(): Promise<X509> {
  await import('reflect-metadata');
  // CommonJS: in a bundle its exports come as one, else also by their names.
  const library = (await import('@peculiar/x509')) as unknown as X509 & { readonly default?: X509 };
  return library.default ?? library;
}
