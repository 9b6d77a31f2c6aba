/** Whether a path from /proc is intact. Node replaces bytes that are not UTF-8, and the result is another path. */
export function isText(path: string): boolean {
  return !path.includes('\ufffd')
}
