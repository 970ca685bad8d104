#!/usr/bin/env python3
"""A mail server for tests: smtp_server.py PORT FOLDER CERT KEY [refuse]. STARTTLS and a password are required.

Mails lie in FOLDER/new, one file each, with the envelope's X-MailFrom and X-RcptTo. With `refuse` every recipient is
answered 451, as a server does that is full. The tests start it with PYTHONPATH set to the folder that `fetch.py aiosmtpd`
made, and end it with SIGTERM.
"""

import signal
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult


class Refusing(Mailbox):
    async def handle_RCPT(self, server, session, envelope, address, options):
        return "451 4.3.1 mail system full"


def main():
    port, folder, cert, key, *refuse = sys.argv[1:]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    def authenticate(server, session, envelope, mechanism, data):
        known = getattr(data, "login", b"") == b"chatbox" and getattr(data, "password", b"") == b"mail-password"
        return AuthResult(success=known)

    controller = Controller(
        (Refusing if refuse else Mailbox)(folder),
        hostname="127.0.0.1",
        port=int(port),
        tls_context=context,
        require_starttls=True,
        authenticator=authenticate,
        auth_required=True,
    )
    controller.start()
    print("listening", flush=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    controller.stop()


if __name__ == "__main__":
    main()
