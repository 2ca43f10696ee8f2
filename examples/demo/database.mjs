// The service of the demonstration: answers every line with its own name. Runs in a container or as a plain process.
import { createServer } from 'node:net';

const [name = 'db', port = '5432', address = '0.0.0.0'] = process.argv.slice(2);
createServer((socket) => {
  socket.on('data', () => socket.end(`${name}\n`));
  socket.on('error', () => socket.destroy());
}).listen(Number(port), address);
