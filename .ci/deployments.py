#!/usr/bin/env python3
"""Checks Dockerfiles, compose file, sample settings and CI workflow against what deployments promise.

    deployments.py                check the workspace
    deployments.py --self-test    show that each rule finds what it is for
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

from ruamel.yaml import YAML

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROLES = ("core", "edge")
SECRET = re.compile(r"SECRET|_KEYS_|TOKEN|PASSWORD|API_KEY")


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def load_yaml(root, path):
    return YAML(typ="safe", pure=True).load(read(root, path))


def check_dockerfile(root, role):
    """Bases by digest, a user that is not root, health from the same configuration, nothing of the deployment baked in."""
    path = f"Dockerfile.{role}"
    text = read(root, path)
    instructions = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    for name, base in bases.items():
        if not re.fullmatch(r"\S+:[\w.-]+@sha256:[0-9a-f]{64}", base):
            yield path, f"{name} is not a tag with a digest"
    for line in instructions:
        base = re.match(r"FROM (?:--platform=\S+ )?(\S+)", line)
        if base and not (base.group(1).startswith("${") and base.group(1)[2:-1] in bases):
            yield path, f"the base {base.group(1)} is not a build argument with a pinned default"
        if re.match(r"(ENV|ARG) .*(CHATBOX_|/chatbox)", line):
            yield path, "a setting is baked in"
        if re.match(r"(COPY|ADD) .*(\.toml|\.env)\b", line) and "--from" not in line:
            yield path, "a configuration is baked in"
    last = "\n".join(instructions[max(i for i, line in enumerate(instructions) if line.startswith("FROM")) :])
    if not re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE):
        yield path, "the last stage does not run as a numeric user that is not root"
    health = re.search(r'^HEALTHCHECK .*CMD \["\S+", "health", "--config", "(\S+)"\]$', last, re.MULTILINE)
    command = re.search(r'^CMD \["--config", "(\S+)"\]$', last, re.MULTILINE)
    if not health or not command or health.group(1) != command.group(1):
        yield path, "the health check does not read the configuration that the service reads"


def check_compose(root):
    path = "deployments/compose.yaml"
    compose = load_yaml(root, path)
    if set(compose["services"]) != set(ROLES):
        yield path, "the services are not core and edge"
    for name, service in compose["services"].items():
        dockerfile = service.get("build", {}).get("dockerfile", "")
        if not os.path.isfile(os.path.join(root, dockerfile)):
            yield path, f"{name}: there is no {dockerfile or 'Dockerfile'}"
        if service["image"].endswith(":latest") or ":" not in service["image"]:
            yield path, f"{name}: the image has no tag of its own"
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"] or service.get("privileged"):
            yield path, f"{name}: runs with more rights than it needs"
        if "healthcheck" in service:
            yield path, f"{name}: repeats the health check of the image"
        if not service.get("stop_grace_period"):
            yield path, f"{name}: has no time to drain"
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable) and not re.fullmatch(r"\$\{\w+:\?.+\}", str(value)):
                yield path, f"{name}: {variable} is not taken from outside, or may be missing"
        for mounted in service.get("configs", []):
            declared = compose.get("configs", {}).get(mounted["source"], {}).get("file", "")
            if not os.path.isfile(os.path.join(root, "deployments", declared)):
                yield path, f"{name}: there is no settings file {declared or mounted['source']}"
            if f'"{mounted["target"]}"' not in read(root, dockerfile):
                yield path, f"{name}: the image does not read {mounted['target']}"
        for volume in service.get("volumes", []):
            if volume.split(":")[0] not in compose.get("volumes", {}):
                yield path, f"{name}: {volume} is not a declared volume"
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield path, f"{name}: {port} is open to the network"


def check_settings(root):
    for role in ROLES:
        path = f"deployments/{role}.toml"
        try:
            settings = tomllib.loads(read(root, path))
        except tomllib.TOMLDecodeError as error:
            yield path, str(error)
            continue
        if "secret" in settings.get("token", {}) or any("key" in key for key in settings.get("keys", {}).get("ring", [])):
            yield path, "holds a secret"


def check_workflow(root):
    """Steps are make targets that exist; actions are pinned by commit; no image or tool floats."""
    path = ".github/workflows/ci.yml"
    workflow = load_yaml(root, path)
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", read(root, "Makefile"), re.MULTILINE))
    if not workflow.get("concurrency", {}).get("cancel-in-progress"):
        yield path, "superseded runs are not cancelled"
    for name, job in workflow["jobs"].items():
        if str(job["runs-on"]).endswith("latest"):
            yield path, f"{name}: runs on whatever is latest"
        for step in job["steps"]:
            if "uses" in step and not re.search(r"@[0-9a-f]{40}$", step["uses"]):
                yield path, f"{name}: {step['uses']} is not pinned by commit"
            target = re.fullmatch(r"make ([\w-]+)", step.get("run", "make ci"))
            if not target or target.group(1) not in targets:
                yield path, f"{name}: `{step['run']}` is not a make target"


def check_prerequisites(root):
    """The deploy check refuses an empty folder of secrets and placeholders, and takes real ones."""
    path = "deployments/check.py"
    random = [base64.b64encode(hashlib.sha256(name.encode()).digest()).decode() for name in ("one", "two", "cut")]
    good = {"CHATBOX_TOKEN_SECRET": random[0], "CHATBOX_CORE_KEYS_RING_0_KEY": random[1]}
    cases = [(good, 0), ({}, 1), ({**good, "CHATBOX_TOKEN_SECRET": "PLACEHOLDER" * 4}, 1)]
    cases += [({**good, "CHATBOX_CORE_KEYS_RING_0_KEY": random[2][:24]}, 1)]
    with tempfile.TemporaryDirectory() as folder:
        # Without the secrets that this machine may have.
        for name in ("compose.yaml", "core.toml", "edge.toml"):
            shutil.copy(os.path.join(root, "deployments", name), folder)
        for values, expected in cases:
            done = subprocess.run(
                [sys.executable, os.path.join(root, path), folder],
                env={"PATH": os.environ["PATH"], **values}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            if done.returncode != expected:
                yield path, f"ends with {done.returncode} for {sorted(values)}: {done.stderr.strip()}"
            if any(value in done.stderr for value in values.values()):
                yield path, "shows a secret"


def findings_in(root):
    found = [finding for role in ROLES for finding in check_dockerfile(root, role)]
    for check in (check_compose, check_settings, check_workflow, check_prerequisites):
        found.extend(check(root))
    return found


# (file, what to replace, by what, a word of the finding that must follow)
BREAKS = [
    ("Dockerfile.core", r"@sha256:[0-9a-f]{64}", "", "digest"),
    ("Dockerfile.core", r"FROM \$\{RUNTIME_IMAGE\}", "FROM debian:12", "pinned default"),
    ("Dockerfile.edge", r"USER 65532:65532", "USER root", "not root"),
    ("Dockerfile.edge", r'"health", "--config", "/etc/chatbox/edge.toml"', '"health", "--config", "/edge.toml"', "health"),
    ("Dockerfile.edge", r"STOPSIGNAL", "ENV CHATBOX_EDGE_PATH_PREFIX=/chat\nSTOPSIGNAL", "baked in"),
    ("Dockerfile.core", r"STOPSIGNAL", "COPY deployments/core.toml /etc/chatbox/core.toml\nSTOPSIGNAL", "baked in"),
    ("deployments/compose.yaml", r"\$\{CHATBOX_TOKEN_SECRET:\?[^}]*\}", "abc", "from outside"),
    ("deployments/compose.yaml", r":local", ":latest", "tag"),
    ("deployments/compose.yaml", r"cap_drop: \[ALL\]", "privileged: true", "rights"),
    ("deployments/compose.yaml", r"127\.0\.0\.1:", "", "network"),
    ("deployments/compose.yaml", r"file: core.toml", "file: cores.toml", "settings file"),
    ("deployments/compose.yaml", r"/etc/chatbox/edge.toml", "/etc/edge.toml", "does not read"),
    ("deployments/compose.yaml", r"stop_grace_period: \w+", "", "drain"),
    ("deployments/core.toml", r"profile = ", "profile ", "core.toml"),
    ("deployments/edge.toml", r"\Z", "\n[token]\nsecret = 'x'\n", "secret"),
    ("deployments/core.toml", r"\Z", "key = 'x'\n", "secret"),
    (".github/workflows/ci.yml", r"@[0-9a-f]{40}", "@v6", "pinned"),
    (".github/workflows/ci.yml", r"make lint", "cargo clippy", "make target"),
    (".github/workflows/ci.yml", r"cancel-in-progress: true", "cancel-in-progress: false", "cancelled"),
    ("deployments/check.py", r"return 1\n", "return 0\n", "ends with 0"),
]


def self_test():
    failures = 0
    needed = ["Dockerfile.core", "Dockerfile.edge", "deployments", ".github", "Makefile"]
    for path, pattern, replacement, word in BREAKS:
        with tempfile.TemporaryDirectory() as root:
            for name in needed:
                source, target = os.path.join(ROOT, name), os.path.join(root, name)
                (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, target)
            text = read(root, path)
            broken = re.sub(pattern, lambda _: replacement, text)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(broken)
            found = findings_in(root)
            if broken == text or not any(word in f"{where}: {what}" for where, what in found):
                print(f"self-test: {path} with {replacement!r} for {pattern!r} was not found: {found}")
                failures += 1
    print(f"self-test: {len(BREAKS) - failures} of {len(BREAKS)} defects found")
    return 1 if failures else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    found = findings_in(ROOT)
    for path, what in found:
        print(f"{path}: {what}")
    print(f"checked images, compose file, settings and workflow: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
