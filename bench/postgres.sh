# shellcheck shell=bash disable=SC2034,SC2153
# PostgreSQL against pgBackRest: a full backup, a second one after 1 % of the rows changed, and a restore.
#
# pgBackRest runs as the server's own user, as it is meant to, with two processes, zstd 3 and aes-256-cbc, its repository on the same disk and
# the server's log pushed into it. Both copy the same running server.

PG_BIN=/usr/lib/postgresql/15/bin

as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

pg_up() { # pg_up: starts an empty server, with pgBackRest's repository beside it
  ARCHIVE_MODE=${1:-off} write_fleet
  install -d -m 755 "$WORK/repo" "$WORK/pgbackrest-log" "$WORK/pgbackrest-lock"
  : >"$WORK/pgbackrest.conf"
  [ "$(id -u)" != 0 ] || chown postgres "$WORK/repo" "$WORK/pgbackrest-log" "$WORK/pgbackrest-lock" "$WORK/pgbackrest.conf"
  quietly mainstay up data
  PGURI=$(uri data)
  local rest=${PGURI#*://*:}
  PGPASSWORD=${rest%%@*}
  PGPORT=${PGURI##*:}
  PGPORT=${PGPORT%%/*}
  PGDATA=$(psql "$PGURI" -qAtc 'SHOW data_directory')
  export PGPASSWORD
}

pgbackrest_ready() { # once there is data
  cat >"$WORK/pgbackrest.conf" <<CONF
[global]
repo1-path=$WORK/repo
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=for-this-measurement-only
repo1-retention-full=2
compress-type=zst
compress-level=3
process-max=2
start-fast=y
log-level-console=warn
log-level-file=off
log-path=$WORK/pgbackrest-log
lock-path=$WORK/pgbackrest-lock
[bench]
pg1-path=$PGDATA
pg1-port=$PGPORT
pg1-socket-path=$(dirname "$PGDATA")
pg1-user=mainstay
pg1-database=postgres
CONF
  pgbackrest_do stanza-create
}

P=()
if [ "$(id -u)" = 0 ]; then P=(runuser -u postgres --); fi
pgbackrest_do() {
  "${P[@]}" env PGPASSWORD="$PGPASSWORD" pgbackrest --config="$WORK/pgbackrest.conf" --stanza=bench "$@" >"$WORK/err" 2>&1 ||
    { tail -n 20 "$WORK/err" >&2; die "pgbackrest $*"; }
}
pgbackrest_command() { # the command line, for `measure`
  PEER=("${P[@]}" env PGPASSWORD="$PGPASSWORD" pgbackrest --config="$WORK/pgbackrest.conf" --stanza=bench "$@")
}

sql() { psql "$PGURI" -qAt -v ON_ERROR_STOP=1 -c "$1"; }

# --- data -------------------------------------------------------------------------------------------------------------

fill_pgbench() { # fill_pgbench GB
  local scale
  scale=$(awk -v gb="$1" 'BEGIN { s = int(gb * 1000 / 15); print s < 1 ? 1 : s }')
  say "pgbench, scale $scale"
  "$PG_BIN/pgbench" -i -q -s "$scale" "$PGURI" >/dev/null 2>&1
  sql 'CHECKPOINT'
  ROWS=$((scale * 100000))
  CHANGE_RANGE="UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN @FROM AND @FROM + $((ROWS / 100)) - 1"
  CHANGE_RANDOM="UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE hashint4(aid + @FROM) % 100 = 0"
}

# Prose (words of the server's own manual, by their frequency), JSON, UUIDs, and random bytes: zstd 3 makes about a third of it.
fill_mix() { # fill_mix GB
  local rows noise copies=8
  rows=$(awk -v gb="$1" -v copies=$copies 'BEGIN { printf "%d", gb * 1e9 / 1300 / copies }')
  # 240 random bytes.
  noise=$(printf ' || uuid_send(gen_random_uuid())%.0s' {1..15})
  noise=${noise# || }
  say "a mix, $copies times $rows rows"
  sql "
    CREATE TABLE words AS SELECT row_number() OVER () AS n, w FROM
      (SELECT DISTINCT unnest(regexp_split_to_array(description, '[^a-z]+')) AS w FROM pg_description) AS all_words WHERE length(w) > 1;
    CREATE TABLE mix (id bigint, tag uuid, doc jsonb, body text, noise bytea);
    INSERT INTO mix SELECT g, gen_random_uuid(),
      jsonb_build_object('customer', (random() * 1e6)::int, 'state', (ARRAY['new','paid','sent','done'])[1 + (random() * 3)::int],
        'total', round((random() * 1000)::numeric, 2), 'currency', 'EUR', 'at', now() - random() * interval '300 days',
        'token', md5(random()::text), 'lines', jsonb_build_array(
          jsonb_build_object('sku', 'SKU-' || (random() * 1e5)::int, 'quantity', (random() * 9)::int, 'gift', random() > 0.9),
          jsonb_build_object('sku', 'SKU-' || (random() * 1e5)::int, 'quantity', (random() * 9)::int, 'gift', random() > 0.9))),
      (SELECT string_agg(list[1 + 0 * (k + g) + floor(size * pow(random(), 3))::int], ' ') FROM generate_series(1, 60) AS k),
      $noise
    FROM generate_series(1, $rows) AS g, (SELECT array_agg(w ORDER BY n) AS list, count(*) AS size FROM words) AS vocabulary;
    INSERT INTO mix SELECT id + k * $rows, gen_random_uuid(), doc || jsonb_build_object('token', md5(random()::text), 'customer', (random() * 1e6)::int),
      substr(body, 1 + k * 17) || ' ' || substr(body, 1, k * 17), $noise
    FROM mix, generate_series(1, $copies - 1) AS k;
    ALTER TABLE mix ADD PRIMARY KEY (id)"
  sql 'VACUUM ANALYZE mix'
  sql 'CHECKPOINT'
  ROWS=$((rows * copies))
  CHANGE_RANGE="UPDATE mix SET tag = gen_random_uuid() WHERE id BETWEEN @FROM AND @FROM + $((ROWS / 100)) - 1"
  CHANGE_RANDOM="UPDATE mix SET tag = gen_random_uuid() WHERE hashint8(id + @FROM) % 100 = 0"
}

# --- measurements -----------------------------------------------------------------------------------------------------

bench_pgbench() { against_pgbackrest pgbench; }
bench_mix() { against_pgbackrest mix; }

mainstay_note() { jq -r '"read \(.bytes_read / 1e6 | floor) MB, new \(.bytes_new / 1e6 | floor) MB, stored \(.bytes_stored / 1e6 | floor) MB"' "$WORK/out"; }

mainstay_backup() { # mainstay_backup WHAT
  measure "$1" mainstay "${M[@]}" backup run data --jobs "$JOBS"
  say "  $(mainstay_note)"
}

against_pgbackrest() {
  local data=$1 round
  rm -rf "$WORK/repo"
  pg_up on
  "fill_$data" "$GB"
  pgbackrest_ready
  say "PGDATA $(size_mb "$PGDATA") MB"
  warm "$PGDATA"

  for ((round = 1; round <= ROUNDS; round++)); do
    forget_backups
    sql CHECKPOINT
    mainstay_backup "$data, full"
    pgbackrest_command backup --type=full
    measure "$data, full" pgbackrest "${PEER[@]}"
    say "  stored $(size_mb "$WORK/vault") MB; all of pgBackRest's repository with log: $(size_mb "$WORK/repo") MB"
  done
  NOTE='by the replication protocol' mainstay_protocol "$data"

  second "$data, second, 1 % in a range" "$CHANGE_RANGE" incr
  second "$data, second, 1 % at random" "$CHANGE_RANDOM" incr

  restores "$data"
}

mainstay_protocol() {
  forget_backups
  measure "$1, full, by protocol" mainstay "${M[@]}" backup run data --jobs "$JOBS" --way protocol
  say "  $(mainstay_note)"
}

second() { # second WHAT SQL TYPE: each takes its next backup of the same change; who is first changes every round
  local what=$1 change=$2 type=$3 round
  for ((round = 1; round <= ROUNDS; round++)); do
    sql "${change//@FROM/$((1 + round * ROWS / 100))}"
    sql CHECKPOINT
    warm "$PGDATA"
    pgbackrest_command backup --type="$type"
    if ((round % 2)); then mainstay_backup "$what"; measure "$what" pgbackrest "${PEER[@]}"
    else measure "$what" pgbackrest "${PEER[@]}"; mainstay_backup "$what"; fi
  done
}

# From a backup to a server that answers and is a primary again. pgBackRest's own part of it (the files alone) is told apart.
restores() {
  local data=$1 round target=$WORK/restored from
  for ((round = 1; round <= ROUNDS; round++)); do
    measure "$data, restore and start" mainstay "${M[@]}" recover run data --latest --into sandbox --jobs "$JOBS"
    quietly mainstay recover drop --all

    rm -rf "$target"
    install -d -m 700 "$target"
    [ "$(id -u)" != 0 ] || chown postgres "$target"
    pgbackrest_command --pg1-path="$target" --type=immediate --target-action=promote restore
    cat >"$WORK/restore.sh" <<SH
set -e
"\$@"
sync -f $WORK
date +%s.%N >$WORK/placed
${P[*]} $PG_BIN/pg_ctl -D $target -w -t 600 -l $WORK/restored.log -o "-c port=$((PGPORT + 1)) -c archive_mode=off -c max_wal_senders=16 -c listen_addresses= -c unix_socket_directories=$target -c shared_buffers=256MB" start >/dev/null
until [ "\$(PGPASSWORD='$PGPASSWORD' psql -h $target -p $((PGPORT + 1)) -U mainstay -d postgres -qAtc 'SELECT pg_is_in_recovery()')" = f ]; do sleep 0.05; done
SH
    : >"$WORK/restored.log"
    [ "$(id -u)" != 0 ] || chown postgres "$WORK/restored.log"
    from=$EPOCHREALTIME
    measure "$data, restore and start" pgbackrest bash "$WORK/restore.sh" "${PEER[@]}"
    record "$data, files alone" pgbackrest "$(awk -v from="$from" '{ printf "%.3f", $1 - from }' "$WORK/placed")"
    as_postgres "$PG_BIN/pg_ctl" -D "$target" -m immediate stop >/dev/null
    rm -rf "$target"
  done
}

# Memory at 1, 2 and 8 GB (8 only if the disk has room for it).
bench_memory() {
  local gb sizes=(1 2 8) free
  [ "$GB" != 0.2 ] || sizes=(0.1 0.2)
  for gb in "${sizes[@]}"; do
    free=$(df -m --output=avail "$WORK" | tail -n 1)
    if awk -v free="$free" -v gb="$gb" 'BEGIN { exit !(free < gb * 1000 * 4) }'; then
      say "$gb GB: the disk has not enough room"
      continue
    fi
    fresh
    pg_up off
    fill_pgbench "$gb"
    measure "memory, $gb GB, full" mainstay "${M[@]}" backup run data
    sql "${CHANGE_RANDOM//@FROM/1}"
    measure "memory, $gb GB, second at random" mainstay "${M[@]}" backup run data
    measure "memory, $gb GB, restore" mainstay "${M[@]}" recover run data --latest --into sandbox
    quietly mainstay recover drop --all
  done
}
