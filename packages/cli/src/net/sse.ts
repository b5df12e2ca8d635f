/** Server-sent events (WHATWG HTML, "Server-sent events" §9.2.6), as an async iterable. */
export type SseEvent = { id?: string; event: string; data: string }

export async function* parseSse(body: AsyncIterable<Uint8Array>): AsyncIterable<SseEvent> {
  const decoder = new TextDecoder()
  let rest = ''
  let data: string[] = []
  let event = ''
  let id: string | undefined
  for await (const chunk of body) {
    rest += decoder.decode(chunk, { stream: true })
    if (rest.length > 2 ** 20) throw new Error('a line of the event stream is longer than 1 MiB')
    // A carriage return at the very end may be half of CRLF: wait for the next chunk.
    const lines = rest.split(/\r\n|\n|\r(?!$)/)
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (line === '') {
        if (data.length > 0)
          yield { ...(id === undefined ? {} : { id }), event: event || 'message', data: data.join('\n') }
        data = []
        event = ''
        continue
      }
      if (line.startsWith(':')) continue
      const colon = line.indexOf(':')
      const field = colon < 0 ? line : line.slice(0, colon)
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
      if (field === 'data') data.push(value)
      else if (field === 'event') event = value
      else if (field === 'id') id = value
    }
  }
}
