// Generates the types of the wire from the contract. `--check` compares instead of writing, so that a changed contract
// cannot leave stale types behind.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, cpSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const web = fileURLToPath(new URL('..', import.meta.url));
const proto = join(web, '../../proto/proto');
const target = join(web, 'src/client/gen');
const cached = join(web, '../../.cache/bin/buf');
const buf = process.env.BUF ?? (existsSync(cached) ? cached : 'buf');

/** Every file below a folder, by its path relative to it. */
function files(folder) {
  if (!existsSync(folder)) return new Map();
  return new Map(
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => [relative(folder, path), readFileSync(path, 'utf8')]),
  );
}

const out = mkdtempSync(join(tmpdir(), 'chatbox-gen-'));
try {
  const template = {
    version: 'v2',
    // The descriptors are not needed at run time: the wire is JSON and the types are erased.
    plugins: [{ local: join(web, 'node_modules/.bin/protoc-gen-es'), out, opt: ['target=dts', 'json_types=true'] }],
  };
  execFileSync(buf, ['generate', '--template', JSON.stringify(template), proto], { stdio: 'inherit', cwd: web });
  const fresh = files(out);
  if (fresh.size === 0) throw new Error('nothing was generated');
  if (process.argv.includes('--check')) {
    const present = files(target);
    const names = new Set([...fresh.keys(), ...present.keys()]);
    const stale = [...names].filter((name) => fresh.get(name) !== present.get(name));
    if (stale.length > 0) {
      console.error(`not what the contract says, run "npm run gen": ${stale.sort().join(', ')}`);
      process.exitCode = 1;
    }
  } else {
    rmSync(target, { recursive: true, force: true });
    cpSync(out, target, { recursive: true });
  }
} finally {
  rmSync(out, { recursive: true, force: true });
}
