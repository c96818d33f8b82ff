"""Writes keys to Redis at a steady rate, in small pipelines: write_redis.py URI PER_SECOND."""

import socket
import sys
import time
from urllib.parse import unquote, urlparse

STEP_SECONDS = 0.005


def main():
    uri, rate = urlparse(sys.argv[1]), int(sys.argv[2])
    link = socket.create_connection((uri.hostname, uri.port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = link.makefile("rb")
    if uri.password:
        user, password = unquote(uri.username or "default"), unquote(uri.password)
        link.sendall(f"AUTH {user or 'default'} {password}\r\n".encode())
        assert stream.readline().startswith(b"+OK")
    value = b"v" * 40
    begun, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - begun) * rate) - sent
        # Never more at once than a tenth of a second's worth: after a stall it falls behind, as applications do.
        due = min(due, rate // 10)
        if due > 0:
            keys = range(sent, sent + due)
            link.sendall(b"".join(b"*3\r\n$3\r\nSET\r\n$10\r\nk%09d\r\n$40\r\n%s\r\n" % (n % 10**6, value) for n in keys))
            for _ in keys:
                assert stream.readline().startswith(b"+")
            sent += due
        time.sleep(STEP_SECONDS)


main()
