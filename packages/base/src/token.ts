import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'

/** Identity of a migration on both sides: 16 hex digits. Not a secret. */
export function newId(): string {
  return randomBytes(8).toString('hex')
}

/** Secret with which the destination's worker proves to the source's worker that it belongs to the migration. */
export function newToken(): string {
  return randomBytes(32).toString('base64url')
}

/** Constant time, also for different lengths: both sides are hashed first. */
export function tokensEqual(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(digest(a), digest(b))
}
