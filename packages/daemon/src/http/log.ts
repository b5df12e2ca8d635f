/** The daemon's log: JSON lines, without secrets. */
import { type DestinationStream, type Logger, pino } from 'pino'

const SECRET = ['authorization', 'cookie', 'set-cookie', 'password', 'secret', 'ticket']
const PATHS = SECRET.flatMap((name) => [`["${name}"]`, `*["${name}"]`, `headers["${name}"]`, `*.headers["${name}"]`])

/** `level`: fatal, error, warn, info, debug, trace. Default destination: stdout. */
export function createLog(options: { level?: string; destination?: DestinationStream } = {}): Logger {
  const settings = {
    level: options.level ?? 'info',
    base: null,
    redact: { paths: [...new Set(PATHS)], censor: '[secret]' },
    formatters: { level: (label: string) => ({ level: label }) },
    timestamp: pino.stdTimeFunctions.isoTime,
  }
  return options.destination ? pino(settings, options.destination) : pino(settings)
}
