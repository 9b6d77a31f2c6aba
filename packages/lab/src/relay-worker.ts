import { connect, type Server } from 'node:net'

/**
 * Runs inside a lab host's network namespace with the caller's listening sockets. It connects each accepted connection
 * to its target from here. A socket stays in the namespace in which it was created, whichever process uses it.
 */
process.on('message', (target: { id: number; host: string; port: number }, server: Server) => {
  server.on('connection', (near) => {
    const far = connect(target.port, target.host)
    near.pipe(far)
    far.pipe(near)
    const end = (): void => {
      near.destroy()
      far.destroy()
    }
    near.on('error', end).on('close', end)
    far.on('error', end).on('close', end)
  })
  process.send?.(target.id)
})

process.on('disconnect', () => process.exit(0))
// The caller may have been killed before this was loaded. Then no event announces it any more.
if (!process.connected) process.exit(0)
