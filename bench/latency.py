"""From a commit to its being durable in the spool and in the vault: latency.py WORK PGURI REDISURI [SAMPLES [VAULT_SAMPLES]].

The spool: what was written has a mark in it; it is durable when the mark is in a file of the spool and an fdatasync of that file has returned. The
vault: the names of a log's objects say how far they reach. Prints what, median, 99th percentile and maximum, in seconds, separated by tabs.
"""

import os
import random
import socket
import subprocess
import sys
import time
from urllib.parse import unquote, urlparse

DEADLINE_SECONDS = 30


class Sql:
    def __init__(self, uri):
        self.psql = subprocess.Popen(["psql", uri, "-qAt"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, text):
        self.psql.stdin.write(text + "\n")
        return self.psql.stdout.readline().strip()

    @staticmethod
    def lsn(text):
        high, _, low = text.partition("/")
        return (int(high, 16) << 32) + int(low, 16)


class Redis:
    def __init__(self, uri):
        uri = urlparse(uri)
        self.link = socket.create_connection((uri.hostname, uri.port))
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.link.makefile("rb")
        if uri.password:
            self.ask("AUTH", unquote(uri.username or "default"), unquote(uri.password))

    def ask(self, *parts):
        parts = [part.encode() for part in parts]
        self.link.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        line = self.stream.readline()
        if line[:1] == b"-":
            raise RuntimeError(line.decode())
        if line[:1] == b"$":
            return self.stream.read(int(line[1:]) + 2)[:-2].decode()
        return line[1:].strip().decode()


class Spool:
    """The files of a cluster's spool, as they grow."""

    def __init__(self, home, cluster):
        self.folder, self.read = os.path.join(home, "spool", "bench", "local", cluster), {}
        self.has(b"")

    def has(self, mark):
        for folder, _, names in os.walk(self.folder):
            for path in (os.path.join(folder, name) for name in names):
                try:
                    with open(path, "rb") as file:
                        # From a little before where it ended last, should the mark lie across.
                        file.seek(max(0, self.read.get(path, 0) - 256))
                        tail = file.read()
                        self.read[path] = file.tell()
                        if mark and mark in tail:
                            os.fdatasync(file.fileno())
                            return True
                except FileNotFoundError:
                    pass
        return False


def reach(folder):
    """How far the objects of a cluster's log reach."""
    furthest = 0
    for _, _, names in os.walk(folder):
        for name in names:
            parts = name.split("_")
            if len(parts) == 9 and parts[1] in "ts":
                furthest = max(furthest, int(parts[4], 16))
    return furthest


def until(test):
    begun = time.monotonic()
    while not test():
        if time.monotonic() - begun > DEADLINE_SECONDS:
            raise TimeoutError(f"not durable after {DEADLINE_SECONDS} s")
        time.sleep(0.0005)


def tell(what, took):
    took.sort()
    print(what, f"{took[len(took) // 2]:.4f}", f"{took[len(took) * 99 // 100]:.4f}", f"{took[-1]:.4f}", sep="\t", flush=True)


def main():
    work, sql, redis = sys.argv[1], Sql(sys.argv[2]), Redis(sys.argv[3])
    samples, vault_samples = (int(n) for n in (sys.argv[4:] + ["300", "15"])[:2])
    vault = os.path.join(work, "vault", "c", "bench", "local")

    def commit():
        return Sql.lsn(sql.ask("INSERT INTO mark (note) VALUES ('here'); SELECT pg_current_wal_flush_lsn();"))

    def written(key):
        redis.ask("SET", key, "v")
        return next(int(line.split(":")[1]) for line in redis.ask("INFO", "replication").splitlines() if line.startswith("master_repl_offset"))

    for what, write, cluster in (
        ("commit to spool, PostgreSQL", lambda mark: sql.ask(f"INSERT INTO mark (note) VALUES ('{mark}'); SELECT 1;"), "data"),
        ("write to spool, Redis", lambda mark: redis.ask("SET", "mark", mark), "cache"),
    ):
        took, spool = [], Spool(os.path.join(work, "home"), cluster)
        for n in range(samples):
            mark = f"mark-{os.getpid()}-{n}-{random.getrandbits(64):016x}"
            # Twice, since a page's header or a record's may lie across one of them.
            write(mark + "-" * 200 + mark)
            begun = time.monotonic()
            until(lambda: spool.has(mark.encode()))
            took.append(time.monotonic() - begun)
            time.sleep(random.random() / 20)
        tell(what, took)

    for what, make, folder in (
        ("commit to vault, PostgreSQL", commit, os.path.join(vault, "data")),
        ("write to vault, Redis", lambda: written("mark"), os.path.join(vault, "cache")),
    ):
        took = []
        for _ in range(vault_samples):
            place, begun = make(), time.monotonic()
            until(lambda: reach(folder) >= place)
            took.append(time.monotonic() - begun)
            time.sleep(random.random())
        tell(what, took)


main()
