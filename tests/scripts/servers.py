#!/usr/bin/env python3
"""Starts the real servers that tests use, runs a command beside them, and ends them.

    servers.py run [mongo] [nats] -- COMMAND..

mongo: a MongoDB replica set of one node, with journal; its URI, without a database, is in CHATBOX_TEST_MONGODB.
nats:  a NATS server; its host:port is in CHATBOX_TEST_NATS.

COMMAND is started when the servers answer in their own protocols, and its exit status is passed on. Everything lies in a
temporary folder that is removed at the end. Only what was started here is ended: each server dies with this process even
when that is killed. The programs come from fetch.py. Python standard library only.
"""

import ctypes
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.path.abspath(os.environ.get("CHATBOX_CACHE") or os.path.join(ROOT, ".cache"))
READY_SECONDS = 60
STOP_SECONDS = 5
PR_SET_PDEATHSIG = 1
# Below the range for outgoing connections, so that none of those takes a port before the server binds it.
PORTS = (10_000, 32_000)
LOG_TAIL = 4_000


class Refused(Exception):
    """Something the reader can act on; printed without a trace."""


class Ended(Exception):
    """This process was asked to end."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


def program(name):
    path = os.path.join(CACHE, "bin", name)
    if not os.path.exists(path):
        raise Refused(f"{name} is missing: run tests/scripts/fetch.py {name}")
    return path


def free_port():
    for _ in range(100):
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Refused("no free port")


def dying_with(parent, signum):
    """For the child, before it becomes the program: the kernel sends it `signum` when this process is gone."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare():
        if libc.prctl(PR_SET_PDEATHSIG, signum) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        # It may have gone before that.
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)

    return prepare


class Server:
    """A server process with its log. A session of its own keeps the terminal's signals away from it."""

    def __init__(self, name, command, folder):
        self.name = name
        self.log = os.path.join(folder, f"{name}.out")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dying_with(os.getpid(), signal.SIGKILL),
            )

    def wait_for(self, answers):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Refused(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if answers():
                    return
            except (OSError, struct.error):
                pass
            time.sleep(0.03)
        raise Refused(f"{self.name} does not answer after {READY_SECONDS} s:\n{self.tail()}")

    def tail(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()[-LOG_TAIL:]

    def stop(self):
        """The process is our child and not yet reaped, so that its id cannot be another's."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(signum)
                try:
                    self.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue


def bson(document):
    """As much of BSON as commands to a server need."""
    out = b""
    for name, value in document.items():
        name = name.encode() + b"\0"
        if isinstance(value, bool):
            out += b"\x08" + name + bytes([value])
        elif isinstance(value, int):
            out += b"\x10" + name + struct.pack("<i", value)
        elif isinstance(value, str):
            text = value.encode() + b"\0"
            out += b"\x02" + name + struct.pack("<i", len(text)) + text
        elif isinstance(value, dict):
            out += b"\x03" + name + bson(value)
        else:
            out += b"\x04" + name + bson({str(index): item for index, item in enumerate(value)})
    return struct.pack("<i", len(out) + 5) + out + b"\0"


def mongo_command(port, command):
    """One OP_MSG and the raw answer to it, which is enough to look for a field."""
    body = struct.pack("<iB", 0, 0) + bson({**command, "$db": "admin"})
    with socket.create_connection(("127.0.0.1", port), 2) as connection:
        connection.settimeout(10)
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)
        answer = b""
        while len(answer) < 4 or len(answer) < struct.unpack("<i", answer[:4])[0]:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
        return answer


def says(answer, field):
    return b"\x08" + field + b"\0\x01" in answer


def start_mongo(folder, started):
    port = free_port()
    data = os.path.join(folder, "mongo")
    os.makedirs(data)
    server = Server(
        "mongod",
        [
            program("mongod"),
            *("--dbpath", data, "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"),
            *("--replSet", "rs0", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25"),
            # The journal's files are allocated in advance: 8 MB instead of 100 MB each.
            *("--wiredTigerEngineConfigString", "log=(file_max=8MB)"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
        ],
        folder,
    )
    started.append(server)
    server.wait_for(lambda: mongo_command(port, {"ping": 1}))
    members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
    settings = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200}
    mongo_command(port, {"replSetInitiate": {"_id": "rs0", "members": members, "settings": settings}})
    server.wait_for(lambda: says(mongo_command(port, {"hello": 1}), b"isWritablePrimary"))
    return "CHATBOX_TEST_MONGODB", f"mongodb://127.0.0.1:{port}/?replicaSet=rs0"


def nats_answers(port):
    with socket.create_connection(("127.0.0.1", port), 2) as connection:
        connection.settimeout(2)
        connection.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        answer = b""
        while b"PONG\r\n" not in answer:
            piece = connection.recv(4096)
            if not piece:
                return False
            answer += piece
        return answer.startswith(b"INFO ")


def start_nats(folder, started):
    port = free_port()
    server = Server("nats-server", [program("nats-server"), "-a", "127.0.0.1", "-p", str(port)], folder)
    started.append(server)
    server.wait_for(lambda: nats_answers(port))
    return "CHATBOX_TEST_NATS", f"127.0.0.1:{port}"


STARTS = {"mongo": start_mongo, "nats": start_nats}


def run(names, command):
    """The exit status of the command."""

    def end(signum, _frame):
        raise Ended(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)
    folder = tempfile.mkdtemp(prefix="chatbox-servers-")
    started = []
    child = None
    try:
        environment = {**os.environ}
        for name in names:
            variable, value = STARTS[name](folder, started)
            environment[variable] = value
        child = subprocess.Popen(command, env=environment, preexec_fn=dying_with(os.getpid(), signal.SIGTERM))
        status = child.wait()
        return status if status >= 0 else 128 - status
    except Ended as ended:
        if child is not None and child.poll() is None:
            # A terminal has told the child itself; more than one such signal does no harm.
            child.send_signal(ended.signum)
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        return 128 + ended.signum
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        for server in reversed(started):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments):
    if arguments[:1] != ["run"] or "--" not in arguments:
        print(__doc__, file=sys.stderr)
        return 64
    split = arguments.index("--")
    names, command = arguments[1:split], arguments[split + 1 :]
    unknown = [name for name in names if name not in STARTS]
    if unknown or not names or not command:
        print(f"{__doc__}\nknown names: {' '.join(STARTS)}", file=sys.stderr)
        return 64
    try:
        return run(names, command)
    except Refused as reason:
        print(f"servers: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
