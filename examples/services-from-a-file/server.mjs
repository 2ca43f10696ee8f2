// An instance of the service: says its name to every request. `node server.mjs NAME PORT`
import { createServer } from 'node:http';

const [name = 'nobody', port = '18081'] = process.argv.slice(2);
createServer((request, response) => {
  // One connection a request, so that every request may go to another instance.
  response.setHeader('connection', 'close');
  response.end(request.url === '/health' ? 'well\n' : `${name}\n`);
}).listen(Number(port), '127.0.0.1');
