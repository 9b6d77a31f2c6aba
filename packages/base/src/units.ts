/** x86_64 base page. Every page count and page number in pageferry is in these units. */
export const pageBytes = 4096
export const pageShift = 12
export const KiB = 1024
export const MiB = 1024 * 1024
export const GiB = 1024 * 1024 * 1024

/** Page number of an address; 47-bit addresses divided by the page size are exact doubles. */
export function pageOf(address: bigint): number {
  return Number(address >> 12n)
}

export function addressOf(page: number): bigint {
  return BigInt(page) << 12n
}

export function hex(value: bigint | number): string {
  return `0x${value.toString(16)}`
}
