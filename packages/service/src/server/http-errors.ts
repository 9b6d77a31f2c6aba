import {
  ERROR_CODES,
  type ErrorInfo,
  isErrorCode,
  isKernelError,
  PageferryError,
  toErrorInfo,
} from '@pageferry/base'
import type { FastifyError, FastifySchemaValidationError } from 'fastify'

export interface HttpError {
  status: number
  body: ErrorInfo
}

/** Turns any error of a request handler, or of fastify itself, into status and body. */
export function toHttpError(error: unknown): HttpError {
  if (error instanceof PageferryError || isKernelError(error)) {
    const body = toErrorInfo(error)
    return { status: isErrorCode(body.code) ? ERROR_CODES[body.code].http : 500, body }
  }
  // fastify's own errors about the request: no JSON, too large (413), wrong media type (415), schema
  const { statusCode, message } = error as FastifyError
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return { status: statusCode, body: { code: 'BAD_REQUEST', message, details: {} } }
  }
  // A defect. The stack goes to the log, and not to the client.
  return { status: 500, body: { ...toErrorInfo(error), details: {} } }
}

/** Names all errors of a request in one sentence, with the fields as the user wrote them. */
export function schemaError(errors: FastifySchemaValidationError[], where: string): PageferryError {
  const complaints = errors.map(({ instancePath, keyword, params, message }) => {
    const field = instancePath.slice(1).replaceAll('/', '.')
    const subject = field === '' ? where : field
    if (keyword === 'additionalProperties') return `${params.additionalProperty} is not known`
    if (keyword === 'required') return `${params.missingProperty} is missing`
    if (keyword === 'enum')
      return `${subject} must be one of ${(params.allowedValues as string[]).join(', ')}`
    return `${subject} ${message}`
  })
  return new PageferryError('BAD_REQUEST', `the request is malformed: ${complaints.join('; ')}`, {
    details: { complaints },
  })
}
