// Between the two hosts: passes everything, and flips the last bit of every MARKER that the source sends.
//
//   node flipping-relay.mjs HOST PORT TARGET_PORT MARKER_HEX
import { connect, createServer } from 'node:net'

const [host, port, targetPort, markerHex] = process.argv.slice(2)
const marker = Buffer.from(markerHex, 'hex')

/** A marker may lie across two chunks: its last byte is then in the second, which has not been passed on yet. */
function flipper() {
  let tail = Buffer.alloc(0)
  return (chunk) => {
    const all = Buffer.concat([tail, chunk])
    const offset = tail.length
    for (let at = all.indexOf(marker); at >= 0; at = all.indexOf(marker, at + 1)) {
      chunk[at + marker.length - 1 - offset] ^= 1
      process.stdout.write('flipped\n')
    }
    tail = all.subarray(Math.max(0, all.length - marker.length + 1))
  }
}

createServer((near) => {
  const far = connect(Number(targetPort), host)
  const flip = flipper()
  near.pipe(far)
  far.on('data', (chunk) => {
    flip(chunk)
    if (!near.write(chunk)) far.pause()
  })
  near.on('drain', () => far.resume())
  far.on('end', () => near.end())
  for (const [one, other] of [
    [near, far],
    [far, near],
  ]) {
    one.on('error', () => other.destroy())
    one.on('close', () => other.destroy())
  }
}).listen(Number(port), host, () => process.stdout.write('listening\n'))
