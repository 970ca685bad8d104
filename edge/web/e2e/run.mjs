// Runs the browser tests: against CHATBOX_URL with CHATBOX_TOKEN, CHATBOX_TOKEN_B and CHATBOX_TOKEN_ADMIN when they are set, else against a
// `chatbox dev` of its own (the binary CHATBOX_BIN, by default the debug build) on free ports and an empty folder.
import { spawn, execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, openSync, readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const READY_LIMIT_MS = 30_000;
const STOP_LIMIT_MS = 40_000;
const here = dirname(fileURLToPath(import.meta.url));

function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

async function ready(url, product, log) {
  const end = Date.now() + READY_LIMIT_MS;
  while (Date.now() < end) {
    if (product.exitCode !== null) break;
    const answer = await fetch(new URL('readyz', url)).catch(() => undefined);
    if (answer?.ok) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`chatbox dev did not get ready:\n${readFileSync(log, 'utf8')}`);
}

async function startProduct(folder) {
  const binary = process.env.CHATBOX_BIN ?? join(here, '../../../target/debug/chatbox');
  const [http, grpc] = [await freePort(), await freePort()];
  const data = join(folder, 'data');
  const log = join(folder, 'log');
  const out = openSync(log, 'w');
  const args = ['dev', '--http', `127.0.0.1:${http}`, '--grpc', `127.0.0.1:${grpc}`, '--data', data];
  // Reconnecting on purpose looks like a flood to the edge.
  const env = { ...process.env, CHATBOX_EDGE_LIMITS_HANDSHAKES_PER_IP: '200' };
  const product = spawn(binary, args, { stdio: ['ignore', out, out], env });
  const url = `http://127.0.0.1:${http}/chatbox/`;
  try {
    await ready(url, product, log);
  } catch (error) {
    product.kill('SIGKILL');
    throw error;
  }
  const token = (sub, role = 'user') =>
    execFileSync(binary, ['token', '--data', data, '--sub', sub, '--role', role], { encoding: 'utf8' }).trim();
  const tokens = { CHATBOX_TOKEN: token('alice'), CHATBOX_TOKEN_B: token('bob'), CHATBOX_TOKEN_ADMIN: token('ann', 'chat_admin') };
  return { product, log, env: { CHATBOX_URL: url, ...tokens } };
}

function exit(child) {
  return new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve(child.exitCode);
    else child.once('exit', (code) => resolve(code));
  });
}

const folder = mkdtempSync(join(tmpdir(), 'chatbox-e2e-'));
let started;
let code = 1;
try {
  let env = process.env;
  if (!env.CHATBOX_URL) {
    started = await startProduct(folder);
    env = { ...env, ...started.env };
  }
  const named = process.argv.slice(2);
  const files = named.length > 0 ? named : readdirSync(here).filter((name) => name.endsWith('.test.mjs')).map((name) => join(here, name));
  const runner = spawn(process.execPath, ['--test', '--test-concurrency=1', ...files], { stdio: 'inherit', env });
  code = (await exit(runner)) ?? 1;
} finally {
  if (started) {
    started.product.kill('SIGTERM');
    const timer = setTimeout(() => started.product.kill('SIGKILL'), STOP_LIMIT_MS);
    const ended = await exit(started.product);
    clearTimeout(timer);
    if (ended !== 0) {
      console.error(`chatbox dev ended with ${ended}:\n${readFileSync(started.log, 'utf8')}`);
      code = code || 1;
    }
  }
  rmSync(folder, { recursive: true, force: true });
}
process.exitCode = code;
