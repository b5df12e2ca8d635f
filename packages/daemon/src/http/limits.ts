/** What holds for requests wherever they come in, from a client or passed on by another host. */

/** They change nothing, and have no body. */
export const LOOKING: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS'])
/** Of a body, where its endpoint says nothing else. */
export const BODY_LIMIT_BYTES = 1024 * 1024
