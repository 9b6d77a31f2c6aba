/** Whether a path from /proc is what the kernel said: Node replaces bytes that are not UTF-8, and such a path leads elsewhere. */
export function isText(path: string): boolean {
  return !path.includes('\ufffd')
}
