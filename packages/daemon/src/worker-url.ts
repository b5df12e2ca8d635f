/** In the bundle the store's worker lies beside it. */
export function workerUrl(): { workerUrl?: URL } {
  return import.meta.url.endsWith('/wadahd.mjs') ? { workerUrl: new URL('./store-worker.mjs', import.meta.url) } : {}
}
