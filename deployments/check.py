#!/usr/bin/env python3
"""Refuses a deployment whose prerequisites are missing or still placeholders: `make deploy-check`, run by `make up`.

    check.py [FOLDER]     look at FOLDER/.env and the variables of the environment (default: the folder of this file)
"""

import base64
import binascii
import os
import re
import sys

PLACEHOLDER = re.compile(r"placeholder|change.?me|replace|example|secret|password|your[-_ ]", re.IGNORECASE)


def read_variables(folder):
    """FOLDER/.env, laid over by the environment, as compose reads them."""
    values = {}
    path = os.path.join(folder, ".env")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                name, mark, value = line.strip().partition("=")
                if mark and not name.startswith("#"):
                    values[name.strip()] = value.strip().strip("'\"")
    values.update({name: value for name, value in os.environ.items() if name.startswith("CHATBOX_")})
    return values


def problem_of(name, value):
    """What is wrong with a secret, without showing it."""
    if not value:
        return "is not set"
    if PLACEHOLDER.search(value) or len(set(value)) < 12:
        return "is a placeholder"
    if name == "CHATBOX_TOKEN_SECRET" and len(value) < 32:
        return "is shorter than 32 bytes"
    if name.startswith("CHATBOX_CORE_KEYS_"):
        try:
            size = len(base64.b64decode(value, validate=True))
        except binascii.Error:
            return "is not base64"
        if size != 32:
            return f"holds {size} bytes, not 32"
    return None


def required(folder):
    """The variables that compose.yaml insists on."""
    with open(os.path.join(folder, "compose.yaml"), encoding="utf-8") as file:
        return sorted(set(re.findall(r"\$\{(\w+):\?", file.read())))


def main(arguments):
    folder = arguments[0] if arguments else os.path.dirname(os.path.abspath(__file__))
    problems = [
        f"{name}: {os.path.join(folder, name)} is missing"
        for name in ("compose.yaml", "core.toml", "edge.toml")
        if not os.path.isfile(os.path.join(folder, name))
    ]
    if not problems:
        values = read_variables(folder)
        found = ((name, problem_of(name, values.get(name, ""))) for name in required(folder))
        problems = [f"{name}: {problem}" for name, problem in found if problem]
    for problem in problems:
        print(f"deploy-check: {problem}", file=sys.stderr)
    if problems:
        print("deploy-check: copy deployments/secrets.example to deployments/.env and fill it in; nothing was started", file=sys.stderr)
        return 1
    print("deploy-check: ready")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
