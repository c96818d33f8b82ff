# shellcheck shell=bash disable=SC2153
# The vault alone against restic, on the same stopped data directory: first time, again after 1 % of the rows changed, and back.

bench_vault() {
  local data=$WORK/stopped round directory keys=$WORK/keys restored=$WORK/restored
  directory=$(dirname "$MAINSTAY")/examples/directory
  rm -rf "$data" "$keys" "$WORK/vault-alone" "$WORK/restic"
  pg_up off
  fill_mix "$GB"
  mainstay down data >/dev/null 2>&1 || mainstay down >/dev/null 2>&1
  cp -a "$PGDATA" "$data"
  warm "$data"
  export RESTIC_PASSWORD=for-this-measurement-only RESTIC_CACHE_DIR=$WORK/restic-cache
  local restic=(env GOMAXPROCS=2 restic -q -r "$WORK/restic")

  for ((round = 1; round <= ROUNDS; round++)); do
    rm -rf "$WORK/vault-alone" "$WORK/restic" "$WORK/restic-cache"
    "${restic[@]}" init
    measure "vault alone, first" mainstay "$directory" put "$WORK/vault-alone" "$keys" "$data" "$JOBS"
    measure "vault alone, first" restic "${restic[@]}" backup "$data"
    say "  stored: Mainstay $(size_mb "$WORK/vault-alone") MB, restic $(size_mb "$WORK/restic") MB"
  done

  change_pages "$data"
  # restic has not looked at these files since, and neither takes a time of modification for content.
  measure "vault alone, second" mainstay "$directory" put "$WORK/vault-alone" "$keys" "$data" "$JOBS"
  say "  $(cat "$WORK/out")"
  measure "vault alone, second" restic "${restic[@]}" backup --force "$data"
  measure "vault alone, third, nothing changed" mainstay "$directory" put "$WORK/vault-alone" "$keys" "$data" "$JOBS"
  measure "vault alone, third, nothing changed" restic "${restic[@]}" backup --force "$data"

  for ((round = 1; round <= ROUNDS; round++)); do
    rm -rf "$restored"
    measure "vault alone, restore" mainstay "$directory" get "$WORK/vault-alone" "$keys" "$restored" "$JOBS"
    [ "$round" != 1 ] || diff -rq "$data" "$restored" || die "what Mainstay restored is not what was stored"
    rm -rf "$restored"
    measure "vault alone, restore" restic "${restic[@]}" restore latest --target "$restored"
    rm -rf "$restored"
  done
  rm -rf "$data" "$WORK/vault-alone" "$WORK/restic" "$WORK/restic-cache"
}

# Rewrites one page of 8 KiB in every hundred, here and there.
change_pages() {
  python3 - "$1" <<'PY'
import os, random, sys
random.seed(1)
for folder, _, names in os.walk(os.path.join(sys.argv[1], "base")):
    for name in names:
        path = os.path.join(folder, name)
        with open(path, "r+b") as file:
            for page in range(os.path.getsize(path) // 8192):
                if random.random() < 0.01:
                    file.seek(page * 8192 + 4000)
                    file.write(os.urandom(200))
PY
}
