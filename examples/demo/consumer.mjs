// The consumer of the demonstration: asks HOST:PORT again and again, one connection a question, as many at a time as told,
// until the count or the time is over. Prints one JSON line: who answered how often, and every failed attempt with the
// wall clock of its beginning and end. A question whose attempt failed is asked again, as any client would.
import { connect } from 'node:net';

const [host = 'db', port = '5432', concurrency = '1', count = '400', milliseconds = '60000'] = process.argv.slice(2);
const maxAttempts = 3;
const until = Date.now() + Number(milliseconds);
const answers = {};
const failures = [];
let left = Number(count);
let asked = 0;
let unanswered = 0;

function ask() {
  const beganAt = Date.now();
  return new Promise((resolve) => {
    let text = '';
    let problem = '';
    const socket = connect({ host, port: Number(port) }, () => socket.write('who?\n'));
    socket.setTimeout(5000, () => socket.destroy(new Error('no answer in 5 s')));
    socket.on('data', (chunk) => {
      text += chunk;
    });
    socket.on('error', (error) => {
      problem = error.code ?? error.message;
    });
    socket.on('close', () =>
      resolve({ beganAt, endedAt: Date.now(), answer: text.trim(), problem: problem || 'closed' }),
    );
  });
}

async function work() {
  while (left > 0 && Date.now() < until) {
    left -= 1;
    asked += 1;
    let answer = '';
    for (let attempt = 0; answer === '' && attempt < maxAttempts; attempt += 1) {
      const { beganAt, endedAt, problem, ...result } = await ask();
      answer = result.answer;
      if (answer === '') failures.push({ beganAt, endedAt, problem });
    }
    if (answer === '') unanswered += 1;
    else answers[answer] = (answers[answer] ?? 0) + 1;
  }
}

await Promise.all(Array.from({ length: Number(concurrency) }, work));
console.log(JSON.stringify({ asked, answers, failures, unanswered }));
process.exit(0);
