// Asks a URL some times and prints what was answered: `node consumer.mjs URL [COUNT]`
const [url = 'http://shop/', count = '1'] = process.argv.slice(2);
for (let index = 0; index < Number(count); index += 1) {
  const response = await fetch(url);
  process.stdout.write(await response.text());
  if (!response.ok) process.exitCode = 1;
}
