/** The part of undici that the engine is spoken to with: a bundle gives a CommonJS package imported late no names. */
export { Client, Pool } from 'undici';
