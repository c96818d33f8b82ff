# shellcheck shell=bash disable=SC2153,SC2034
# Following: how soon a commit is durable in the spool and in the vault, and how often an exact point succeeds under load.

SERVING=''
serve() {
  # Not by the function: what is to be stopped is the daemon, not a shell around it.
  "$MAINSTAY" --fleet "$WORK/fleet.yaml" serve --listen 127.0.0.1:0 >"$WORK/serve.log" 2>&1 &
  SERVING=$!
}
stop_serving() {
  [ -n "$SERVING" ] || return 0
  kill "$SERVING" 2>/dev/null || true
  wait "$SERVING" 2>/dev/null || true
  SERVING=''
}

pair_up() { # both clusters, with the daemon following them
  FOLLOW=true pg_up off
  quietly mainstay up cache
  REDIS=$(uri cache)
  sql 'CREATE TABLE IF NOT EXISTS mark (id bigserial, note text)'
  quietly mainstay backup run data
  quietly mainstay backup run cache
  serve
  local tries
  for ((tries = 0; tries < 120; tries++)); do
    if [ "$(sql "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")" -gt 0 ] && redis INFO replication | grep -q '^slave0:.*online'; then return; fi
    kill -0 "$SERVING" || { tail "$WORK/serve.log" >&2; die "the daemon is gone"; }
    sleep 0.5
  done
  die "the daemon does not follow"
}

bench_latency() {
  pair_up
  python3 bench/latency.py "$WORK" "$PGURI" "$REDIS" >"$WORK/latency.tsv" || { tail "$WORK/serve.log" >&2; die "latency"; }
  local what p50 p99 most
  while IFS=$'\t' read -r what p50 p99 most; do
    record "$what" mainstay "$p50" 0 "p99 $p99 s, most $most s"
  done <"$WORK/latency.tsv"
  stop_serving
}

# Exact points while 20,000 writes a second run: a fifth in PostgreSQL (ten rows a transaction), the rest in Redis.
bench_points() {
  local points=${BENCH_POINTS:-200} pids=() rates n exact=0 idle
  pair_up
  sql 'CREATE TABLE IF NOT EXISTS written (id bigserial, a int, b text)'
  cat >"$WORK/write.sql" <<'SQL'
INSERT INTO written (a, b) SELECT g, 'some text that is written here' FROM generate_series(1, 10) AS g;
SQL
  "$PG_BIN/pgbench" -n -c 4 -T 3600 -R 400 -f "$WORK/write.sql" "$PGURI" >"$WORK/pgbench.log" 2>&1 &
  pids+=($!)
  python3 bench/write_redis.py "$REDIS" 16000 >"$WORK/write_redis.log" 2>&1 &
  pids+=($!)
  sleep 5
  local rows keys from
  rows=$(sql "SELECT coalesce(max(id), 0) FROM written")
  keys=$(redis INFO commandstats | sed -n 's/^cmdstat_set:calls=\([0-9]*\).*/\1/p')
  from=$EPOCHREALTIME
  read -r _ u1 n1 s1 i1 w1 _ </proc/stat
  : >"$WORK/points.json"
  for ((n = 0; n < points; n++)); do
    mainstay point pair --exact --output json >>"$WORK/points.json" 2>>"$WORK/points.err" || true
  done
  read -r _ u2 n2 s2 i2 w2 _ </proc/stat
  local took
  took=$(since "$from")
  idle=$(awk -v i="$((i2 + w2 - i1 - w1))" -v all="$((u2 + n2 + s2 + i2 + w2 - u1 - n1 - s1 - i1 - w1))" 'BEGIN { printf "%.0f", 100 * i / all }')
  rates=$(awk -v rows="$(($(sql 'SELECT max(id) FROM written') - rows))" -v took="$took" \
    -v keys="$(($(redis INFO commandstats | sed -n 's/^cmdstat_set:calls=\([0-9]*\).*/\1/p') - keys))" 'BEGIN { printf "%.0f", (rows + keys) / took }')
  for n in "${pids[@]}"; do kill "$n" 2>/dev/null || true; done
  wait "${pids[@]}" 2>/dev/null || true
  exact=$(jq -s '[.[] | select(.exact and .stall_ms <= 20)] | length' "$WORK/points.json")
  record "exact points within 20 ms" mainstay "$(jq -s 'map(.stall_ms) | sort | .[length / 2 | floor] / 1000' "$WORK/points.json")" 0 \
    "$exact of $points exact; stall p99 $(jq -s 'map(.stall_ms) | sort | .[length * 99 / 100 | floor]' "$WORK/points.json") ms; $rates writes/s, $idle % idle"
  stop_serving
}
