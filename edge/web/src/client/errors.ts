import { durationMs, type WireError } from './wire';

/** The class of a failure: the contract's error code without its prefix, or one of the client's own. */
export type ErrorClass =
  | 'CANCELLED'
  | 'INVALID_ARGUMENT'
  | 'DEADLINE_EXCEEDED'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'PERMISSION_DENIED'
  | 'RESOURCE_EXHAUSTED'
  | 'FAILED_PRECONDITION'
  | 'ABORTED'
  | 'OUT_OF_RANGE'
  | 'UNIMPLEMENTED'
  | 'INTERNAL'
  | 'UNAVAILABLE'
  | 'DATA_LOSS'
  | 'UNAUTHENTICATED';

const BY_HTTP: Readonly<Record<number, ErrorClass>> = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  403: 'PERMISSION_DENIED',
  404: 'NOT_FOUND',
  409: 'FAILED_PRECONDITION',
  413: 'RESOURCE_EXHAUSTED',
  429: 'RESOURCE_EXHAUSTED',
  499: 'CANCELLED',
  501: 'UNIMPLEMENTED',
  502: 'UNAVAILABLE',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
};

const RETRYABLE: ReadonlySet<ErrorClass> = new Set([
  'CANCELLED',
  'DEADLINE_EXCEEDED',
  'RESOURCE_EXHAUSTED',
  'ABORTED',
  'INTERNAL',
  'UNAVAILABLE',
]);

interface Facts {
  code: ErrorClass;
  reason?: string;
  message?: string;
  retryAfterMs?: number | undefined;
  outcomeUnknown?: boolean;
  closeCode?: number;
  fields?: readonly { field: string; description: string }[];
  metadata?: Readonly<Record<string, string>>;
}

/** Every failure this module reports. */
export class ChatboxError extends Error {
  /** What kind of failure; branch on this. */
  readonly code: ErrorClass;
  /** A stable tag in SCREAMING_SNAKE; may be empty. */
  readonly reason: string;
  /** How long to wait before trying again, where that is known. */
  readonly retryAfterMs: number | undefined;
  /** The write may or may not have happened. */
  readonly outcomeUnknown: boolean;
  /** The close code that ended the connection; 0 for none. */
  readonly closeCode: number;
  /** Which fields broke which rule. */
  readonly fields: readonly { field: string; description: string }[];
  /** Further facts by name. */
  readonly metadata: Readonly<Record<string, string>>;

  constructor(facts: Facts) {
    super(facts.message || facts.reason || facts.code);
    this.name = 'ChatboxError';
    this.code = facts.code;
    this.reason = facts.reason ?? '';
    this.retryAfterMs = facts.retryAfterMs;
    this.outcomeUnknown = facts.outcomeUnknown ?? false;
    this.closeCode = facts.closeCode ?? 0;
    this.fields = facts.fields ?? [];
    this.metadata = facts.metadata ?? {};
  }

  /** Repeating the same call later may succeed. */
  get retryable(): boolean {
    return RETRYABLE.has(this.code);
  }

  static fromWire(error: WireError): ChatboxError {
    return new ChatboxError({
      code: classOf(error.code),
      reason: error.reason ?? '',
      message: error.message ?? '',
      retryAfterMs: durationMs(error.retryAfter),
      outcomeUnknown: error.outcomeUnknown ?? false,
      closeCode: error.closeCode ?? 0,
      fields: (error.fieldViolations ?? []).map((violation) => ({
        field: violation.field ?? '',
        description: violation.description ?? '',
      })),
      metadata: error.metadata ?? {},
    });
  }

  /** From a failed HTTP call; the body may be anything when a proxy answered. */
  static fromHttp(status: number, body: unknown, retryAfter: string | null): ChatboxError {
    const wire = (body as { error?: WireError } | null | undefined)?.error;
    if (wire && typeof wire === 'object' && wire.code !== undefined) return ChatboxError.fromWire(wire);
    const seconds = retryAfter === null || retryAfter === '' ? Number.NaN : Number(retryAfter);
    return new ChatboxError({
      code: BY_HTTP[status] ?? (status >= 500 ? 'INTERNAL' : 'INVALID_ARGUMENT'),
      message: `the server answered ${status}`,
      retryAfterMs: Number.isFinite(seconds) ? Math.max(0, seconds * 1000) : undefined,
    });
  }

  /** No answer at all. */
  static unreachable(): ChatboxError {
    return new ChatboxError({ code: 'UNAVAILABLE', reason: 'UNREACHABLE', message: 'the server cannot be reached' });
  }

  static from(error: unknown): ChatboxError {
    return error instanceof ChatboxError ? error : ChatboxError.unreachable();
  }
}

function classOf(code: string | number | undefined): ErrorClass {
  const name = typeof code === 'string' ? code.replace(/^ERROR_CODE_/, '') : '';
  return (KNOWN as ReadonlySet<string>).has(name) ? (name as ErrorClass) : 'INTERNAL';
}

const KNOWN: ReadonlySet<ErrorClass> = new Set([
  ...RETRYABLE,
  'INVALID_ARGUMENT',
  'NOT_FOUND',
  'ALREADY_EXISTS',
  'PERMISSION_DENIED',
  'FAILED_PRECONDITION',
  'OUT_OF_RANGE',
  'UNIMPLEMENTED',
  'DATA_LOSS',
  'UNAUTHENTICATED',
]);

/** The close codes this module treats by name; all others by class. */
export const CLOSE = {
  NORMAL: 1000,
  TOKEN_EXPIRED: 4012,
  UNAUTHENTICATED: 4101,
} as const;

/** Whether a client may come back and resume after this close code. Unknown codes follow from their range. */
export function mayResume(code: number): boolean {
  return [1001, 1005, 1006].includes(code) || (code >= 1011 && code <= 1014) || (code >= 4000 && code <= 4099);
}

const BY_CLOSE: Readonly<Record<number, ErrorClass>> = {
  1008: 'INVALID_ARGUMENT',
  1009: 'RESOURCE_EXHAUSTED',
  4012: 'UNAUTHENTICATED',
  4101: 'UNAUTHENTICATED',
  4103: 'PERMISSION_DENIED',
  4104: 'NOT_FOUND',
  4109: 'ALREADY_EXISTS',
  4110: 'RESOURCE_EXHAUSTED',
  4112: 'FAILED_PRECONDITION',
  4115: 'UNIMPLEMENTED',
  4116: 'OUT_OF_RANGE',
};

/** The error behind a close code, for a connection that ended without saying more. */
export function closeError(code: number, text: string): ChatboxError {
  return new ChatboxError({
    code: BY_CLOSE[code] ?? (mayResume(code) ? 'UNAVAILABLE' : 'FAILED_PRECONDITION'),
    message: text || `the connection was closed (${code})`,
    closeCode: code,
  });
}
