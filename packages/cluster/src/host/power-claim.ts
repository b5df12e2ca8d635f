/** One at a time starts, ends or empties a host: who shuts the guests down cancels the starts first. */
export const powerClaim = (host: string): string => `host/${host}/power`

/** The job that shuts down the guests of a host that goes down. */
export const STOP_GUESTS = 'host.stop-guests'
