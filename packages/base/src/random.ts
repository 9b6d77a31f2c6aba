/**
 * Numbers in [0, 1) that a seed determines: a 32-bit Weyl sequence through a multiply-xor mixer. For injected faults
 * and for tests; not for secrets.
 */
export function seededRandom(seed: number): () => number {
  let weyl = seed >>> 0
  return () => {
    weyl = (weyl + 0x9e3779b9) >>> 0
    let x = weyl
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
    return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32
  }
}
