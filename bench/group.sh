# shellcheck shell=bash disable=SC2153
# From "lost" to "an instant, started, checked": PostgreSQL and half as much Redis, restored together to one instant and proven.

bench_rto() {
  local round seconds
  pair_up
  fill_mix "$GB"
  fill_redis "$(awk -v gb="$GB" 'BEGIN { print gb / 2 }')"
  quietly mainstay backup run data
  quietly mainstay backup run cache
  # Some log behind the snapshots.
  sql "${CHANGE_RANGE//@FROM/1}"
  sleep 12
  for ((round = 1; round <= ROUNDS; round++)); do
    measure "group, lost to started" mainstay "${M[@]}" recover run pair --latest --into sandbox --jobs "$JOBS"
    seconds=$(jq -r '.rto_seconds' "$WORK/out")
    quietly mainstay recover drop --all
    say "  rto_seconds $seconds"
    measure "group, lost to proven" mainstay "${M[@]}" prove pair --latest
    say "  rto_seconds $(jq -r '.rto_seconds' "$WORK/out"), $(jq -r '.checks | length' "$WORK/out") checks, $(jq -r '.differences | length' "$WORK/out") differences"
  done
  stop_serving
  rm -f "$WORK/commands"
}

# The ceiling of each stage on this machine, and what the whole pipeline reaches, over PostgreSQL's files.
bench_ceiling() {
  pg_up off
  fill_pgbench "$GB"
  quietly mainstay down
  "$(dirname "$MAINSTAY")/examples/ceiling" "$PGDATA/base" "$WORK" >&2
}
