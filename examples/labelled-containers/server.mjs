// An instance of the shop: its page on 8080, its figures on 9100. `node server.mjs NAME`
import { createServer } from 'node:http';

const [name = 'nobody'] = process.argv.slice(2);
let served = 0;
createServer((request, response) => {
  if (request.url !== '/health') served += 1;
  response.setHeader('connection', 'close');
  response.end(`${name}\n`);
}).listen(8080);
createServer((_request, response) => {
  response.setHeader('connection', 'close');
  response.end(`shop_pages_served_total{instance="${name}"} ${served}\n`);
}).listen(9100);
process.on('SIGTERM', () => process.exit(0));
