/** `192.0.2.1:7443`, `[2001:db8::1]:7443` (RFC 3986, 3.2.2). Pure. */
export const hostPort = (host: string, port: number): string =>
  host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
