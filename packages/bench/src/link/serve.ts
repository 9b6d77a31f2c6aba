/** Program: the sending end of the link measurement, `serve.js ADDRESS`. It ends with its lab. */
import { createServer, type Socket } from 'node:net'
import { type WebSocket, WebSocketServer } from 'ws'
import { decodeRequest, type LinkRequest, linkPorts, requestBytes, windowBytes } from './protocol.js'

const [address] = process.argv.slice(2)

/** Sends from the same buffer over and over, up to a window ahead, like the data plane's pooled buffers. */
function stream({ messageBytes, count }: LinkRequest, send: (bytes: Buffer, sent: () => void) => void): void {
  const message = Buffer.alloc(messageBytes, 1)
  let left = count
  const next = (): void => {
    if (left-- > 0) send(message, next)
  }
  for (let ahead = 0; ahead < windowBytes; ahead += messageBytes) next()
}

createServer({ noDelay: true }, (socket: Socket) => {
  socket.on('error', () => socket.destroy())
  socket.once('readable', () => {
    const request = decodeRequest(socket.read(requestBytes) ?? Buffer.alloc(requestBytes))
    if (request.count > 0) stream(request, (bytes, sent) => socket.write(bytes, sent))
    else socket.on('data', (bytes) => socket.write(bytes))
  })
}).listen(linkPorts.tcp, address)

new WebSocketServer({ host: address, port: linkPorts.ws, perMessageDeflate: false }).on(
  'connection',
  (socket: WebSocket) => {
    socket.on('error', () => socket.terminate())
    socket.once('message', (first: Buffer) => {
      const request = decodeRequest(first)
      if (request.count > 0) stream(request, (bytes, sent) => socket.send(bytes, sent))
      else socket.on('message', (bytes: Buffer) => socket.send(bytes))
    })
  },
)
