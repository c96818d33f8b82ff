# shellcheck shell=bash
# What all measurements share: the fleet that is measured, timing, and the table of results.
#
# A measurement is a line in $RESULTS: what, who, seconds, KiB of resident memory at most, and a note. Those of one thing are made in turns
# (Mainstay, its peer, Mainstay, its peer, …), each behind a `sync` and with the data in the page cache, and each includes
# the `sync` behind it. What is told of several is their median.

die() { printf 'bench: %s\n' "$*" >&2; exit 1; }
say() { printf '%s  %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }

now() { printf '%s\n' "$EPOCHREALTIME"; }
since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.3f\n", to - from }'; }

# record WHAT WHO SECONDS [KIB [NOTE]]
record() {
  printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-0}" "${5:-}" >>"$RESULTS"
  say "$(printf '%-32s %-10s %9s s %8s KiB  %s' "$1" "$2" "$3" "${4:-0}" "${5:-}")"
}

# measure WHAT WHO COMMAND…: runs it, and the sync behind it. Its stdout stays in $WORK/out, its stderr in $WORK/err.
measure() {
  local what=$1 who=$2 from seconds kib
  shift 2
  sync -f "$WORK"
  from=$EPOCHREALTIME
  if ! /usr/bin/time -q -f '%M' -o "$WORK/kib" -- "$@" >"$WORK/out" 2>"$WORK/err" </dev/null; then
    tail -n 20 "$WORK/err" "$WORK/out" >&2
    die "$what: $who failed: $*"
  fi
  sync -f "$WORK"
  seconds=$(since "$from")
  kib=$(tail -n 1 "$WORK/kib")
  record "$what" "$who" "$seconds" "$kib" "${NOTE:-}"
}

# warm FOLDER: its files, into the page cache.
warm() { find "$1" -type f -print0 | xargs -0 -r cat >/dev/null 2>&1 || true; } # some vanish meanwhile

size_mb() { du -sm --apparent-size "$1" | cut -f 1; }

quietly() { "$@" >"$WORK/out" 2>"$WORK/err" </dev/null || { tail -n 20 "$WORK/err" "$WORK/out" >&2; die "failed: $*"; }; }

# --- the fleet --------------------------------------------------------------------------------------------------------

# One fleet and one home for all; clusters are started when they are wanted.
mainstay() { MAINSTAY_HOME="$WORK/home" "$MAINSTAY" --fleet "$WORK/fleet.yaml" "$@"; }
export_mainstay() {
  # shellcheck disable=SC2034
  export MAINSTAY_HOME="$WORK/home"
  # shellcheck disable=SC2034 # the files that source this one use it
  M=("$MAINSTAY" --fleet "$WORK/fleet.yaml" --output json)
}

write_fleet() {
  cat >"$WORK/fleet.yaml" <<YAML
fleet: bench
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  data:
    engine: postgres
    version: "15"
    config:
      shared_buffers: 256MB
      max_wal_size: 4GB
      checkpoint_timeout: 1h
      synchronous_commit: "${SYNCHRONOUS_COMMIT:-on}"
      archive_mode: "${ARCHIVE_MODE:-off}"
      archive_command: "pgbackrest --config=$WORK/pgbackrest.conf --stanza=bench archive-push %p"
    backup: { snapshot: never, follow: ${FOLLOW:-false} }
  cache:
    engine: redis
    version: "7.0"
    config: { save: "", appendonly: "no" }
    backup: { snapshot: never, follow: ${FOLLOW:-false} }
YAML
  [ "${FOLLOW:-false}" = false ] || cat >>"$WORK/fleet.yaml" <<'YAML'
recovery_groups:
  pair: { members: [data, cache], every: 10m, exact: { every: 1h, stall: 20ms } }
YAML
}

down() { [ ! -d "$WORK/home" ] || mainstay down >/dev/null 2>&1 || true; }

fresh() { # fresh: no cluster, no vault
  if [ -d "$WORK/home" ]; then
    mainstay recover drop --all >/dev/null 2>&1 || true
    mainstay down --erase --yes >/dev/null 2>&1 || true
  fi
  rm -rf "${WORK:?}/home" "$WORK/vault"
}

# An empty vault: making one, which tries the store, is no part of a backup.
forget_backups() {
  rm -rf "$WORK/vault"
  quietly mainstay vault init
}

uri() { mainstay connect "$1" --uri | head -n 1; }

# --- the table --------------------------------------------------------------------------------------------------------

# Prints the medians of $RESULTS, side by side: Mainstay's, the peer's, and how many times as fast Mainstay is.
table() {
  awk -F '\t' '
    function median(list, n, i, j, t, v) {
      n = split(list, v, " ")
      for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
      return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    function short(s) { return sprintf(s < 1 ? "%.3f" : "%.2f", s) }
    {
      if (!($1 in seen)) { seen[$1] = 1; order[++count] = $1 }
      if ($2 == "mainstay") { ours[$1] = ours[$1] " " $3; if ($4 > kib[$1]) kib[$1] = $4 }
      else { theirs[$1] = theirs[$1] " " $3; peer[$1] = $2; if ($4 > peer_kib[$1]) peer_kib[$1] = $4 }
      if ($5 != "") note[$1] = $5
    }
    END {
      print "| what | Mainstay, s | peer, s | times as fast | Mainstay, MiB | peer, MiB | |"
      print "|--|--|--|--|--|--|--|"
      for (i = 1; i <= count; i++) {
        w = order[i]
        a = ours[w] == "" ? "" : median(ours[w]); b = theirs[w] == "" ? "" : median(theirs[w])
        printf "| %s | %s | %s | %s | %s | %s | %s |\n", w, a == "" ? "" : short(a),
          b == "" ? "" : peer[w] " " short(b), a == "" || b == "" || a == 0 ? "" : sprintf("%.2f", b / a),
          kib[w] ? sprintf("%.0f", kib[w] / 1024) : "", peer_kib[w] ? sprintf("%.0f", peer_kib[w] / 1024) : "", note[w]
      }
    }' "$RESULTS"
}
