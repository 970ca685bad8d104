#!/usr/bin/env python3
"""Runs llama.cpp's own HTTP server on loopback: llama_server.py MODEL.gguf PORT. Ready when GET /health answers 200.

The tests start it with PYTHONPATH set to the folder that `fetch.py llama` made, and end it with SIGTERM.
"""

import signal
import sys
import threading

import xllamacpp


def main():
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    # The likeliest words each time: with the usual sampling an answer may be empty, and a test would fail once in a while.
    parameters.sampling.temp = 0.0
    parameters.n_ctx = 4096
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 2
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(sys.argv[2])
    server = xllamacpp.Server(parameters)
    print("listening", server.listening_address, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Event().wait()


if __name__ == "__main__":
    main()
