# shellcheck shell=bash disable=SC2153,SC2034
# Redis: a snapshot against `redis-cli --rdb`, which neither compresses, encrypts nor checks; a restore against `redis-cli --pipe`.

redis_up() {
  write_fleet
  quietly mainstay up cache
  REDIS=$(uri cache)
}

redis() { redis-cli --no-auth-warning -u "$REDIS" "$@"; }

# fill_redis GB: sessions (JSON), counters, hashes, lists and random bytes, as the protocol's own commands in $WORK/commands.
fill_redis() {
  local gb=$1
  say "Redis, $gb GB"
  python3 - "$gb" "$WORK/commands" <<'PY'
import json, os, random, sys
random.seed(7)
want, made, n = float(sys.argv[1]) * 1e9, 0, 0
words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randint(3, 9))) for _ in range(4000)]
def command(*parts):
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
with open(sys.argv[2], "wb", 1 << 20) as out:
    while made < want:
        n += 1
        key = b"%08d" % n
        kind = n % 8
        if kind < 4:
            text = b" ".join(random.choices(words, k=60)).decode()
            value = json.dumps({"user": random.randrange(10**6), "token": os.urandom(16).hex(), "page": "/shop/%d" % random.randrange(9999),
                                "cart": [random.randrange(10**5) for _ in range(6)], "text": text}).encode()
            line = command(b"SET", b"session:" + key, value)
        elif kind == 4:
            line = command(b"SET", b"blob:" + key, os.urandom(700))
        elif kind == 5:
            fields = [f for i in range(8) for f in (b"f%d" % i, b" ".join(random.choices(words, k=6)))]
            line = command(b"HSET", b"item:" + key, *fields)
        elif kind == 6:
            line = command(b"RPUSH", b"queue:" + key, *[b" ".join(random.choices(words, k=8)) for _ in range(8)])
        else:
            line = command(b"SET", b"count:" + key, b"%d" % random.randrange(10**9), b"EX", b"864000")
        made += len(line)
        out.write(line)
PY
  redis --pipe <"$WORK/commands" >/dev/null
}

bench_redis() {
  local gb round target
  gb=$(awk -v gb="$GB" 'BEGIN { print gb / 2 }')
  redis_up
  fill_redis "$gb"
  for ((round = 1; round <= ROUNDS; round++)); do
    forget_backups
    measure "Redis, snapshot" mainstay "${M[@]}" backup run cache
    say "  $(mainstay_note)"
    rm -f "$WORK/dump.rdb"
    measure "Redis, snapshot" redis-cli redis-cli --no-auth-warning -u "$REDIS" --rdb "$WORK/dump.rdb"
    say "  RDB $(size_mb "$WORK/dump.rdb") MB"
  done
  measure "Redis, second snapshot" mainstay "${M[@]}" backup run cache
  say "  $(mainstay_note)"
  for ((round = 1; round <= ROUNDS; round++)); do
    measure "Redis, restore" mainstay "${M[@]}" recover run cache --latest --into sandbox
    target=$(jq -r '.clusters[0].uris[0]' "$WORK/out")
    [ "$(redis DBSIZE)" = "$(redis-cli --no-auth-warning -u "$target" DBSIZE)" ] || die "not as many keys were restored"
    quietly mainstay recover drop --all
    redis FLUSHALL SYNC >/dev/null
    # shellcheck disable=SC2016 # the inner shell expands it
    measure "Redis, restore" redis-cli bash -c 'redis-cli --no-auth-warning -u "$1" --pipe <"$2"' - "$REDIS" "$WORK/commands"
  done
  rm -f "$WORK/dump.rdb" "$WORK/commands"
}
