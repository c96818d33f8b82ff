#!/usr/bin/env bash
# Restores the files of one snapshot from a vault in a folder, without Mainstay: with age, zstd, jq and dd.
#
#   restore-without-mainstay.sh VAULT IDENTITY                      lists the snapshots
#   restore-without-mainstay.sh VAULT IDENTITY SNAPSHOT TARGET      restores one into TARGET, which must not exist
#
# VAULT is the vault's folder (of a bucket: what `aws s3 sync` or `mc mirror` made of it), IDENTITY the file of an age
# identity of one of its recipients. docs/vault-format.md says what all this is.
#
# age refuses whatever is not, to the bit, what was encrypted; pieces' hashes are keyed and are not looked at here.
set -euo pipefail
umask 077

die() { printf 'restore: %s\n' "$*" >&2; exit 1; }

[ $# -eq 2 ] || [ $# -eq 4 ] || die "usage: $0 VAULT IDENTITY [SNAPSHOT TARGET]"
vault=$1 identity=$2 snapshot=${3:-} target=${4:-}
for tool in age zstd jq dd base64; do command -v "$tool" >/dev/null || die "$tool is not installed"; done
[ "$(jq -r .mainstay_vault "$vault/format.json")" = 1 ] || die "$vault is not a vault of version 1"

# A small object's body is JSON, or base64 of an age file of JSON.
body() {
  if [ "$(jq -r .sealed "$1")" = true ]; then
    jq -r .body "$1" | base64 -d | age -d -i "$identity"
  else
    jq -r .body "$1"
  fi
}

if [ -z "$snapshot" ]; then
  for manifest in "$vault"/c/*/*/*/*/snap/*/manifest; do
    [ -e "$manifest" ] || die "there is no snapshot in $vault"
    body "$manifest" | jq -r --arg path "$manifest" \
      '[.id, .taken.at.latest, .incarnation, ($path | split("/") | .[-5]), "\(.bytes_total) bytes"] | @tsv'
  done
  exit
fi

folder=$(compgen -G "$vault/c/*/*/*/*/snap/$snapshot" | head -n 1) || die "there is no snapshot $snapshot"
[ -e "$folder/manifest" ] || die "snapshot $snapshot was never finished"
packs=${folder%/snap/*}/packs
[ ! -e "$target" ] || die "$target is there already"
mkdir -p "$target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The index: lines of JSON, in parts.
body "$folder/manifest" | jq -r '.index[].name' | while IFS= read -r part; do
  age -d -i "$identity" "$folder/$part" | zstd -dcq
done > "$work/index"

# Directories, files at their full size (what is not written below stays a hole of zeros), links.
jq -r 'select(.t == "file") | [.kind, .size, .path, .target // ""] | @tsv' "$work/index" |
  while IFS=$'\t' read -r kind size path link; do
    mkdir -p "$(dirname "$target/$path")"
    case $kind in
      directory) mkdir -p "$target/$path" ;;
      link) ln -s "$link" "$target/$path" ;;
      file) truncate -s "$size" "$target/$path" ;;
    esac
  done

# Extents, pack by pack and frame by frame, so that each pack is decrypted once and each frame decompressed once.
jq -r 'select(.t == "pack") | [.n, .id] | @tsv' "$work/index" > "$work/packs"
jq -r 'select(.t == "run") | .path as $path | .extents[] | [.[2], .[3], .[4], .[5], .[0], .[1], $path] | @tsv' \
  "$work/index" | sort -n -k 1,1 -k 2,2 > "$work/extents"

at_pack='' at_frame=''
while IFS=$'\t' read -r pack offset packed skip at length path; do
  if [ "$pack" != "$at_pack" ]; then
    id=$(awk -F '\t' -v n="$pack" '$1 == n { print $2; exit }' "$work/packs")
    random=${id#*-}
    age -d -i "$identity" -o "$work/pack" "$packs/${random:0:2}/$id" </dev/null
    at_pack=$pack at_frame=''
  fi
  if [ "$offset" != "$at_frame" ]; then
    dd if="$work/pack" iflag=skip_bytes,count_bytes skip="$offset" count="$packed" bs=64K status=none |
      zstd -dcq > "$work/frame"
    at_frame=$offset
  fi
  dd if="$work/frame" of="$target/$path" iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc \
    skip="$skip" count="$length" seek="$at" bs=64K status=none
done < "$work/extents"

# Modes last, and those of directories from the inside out: one that may not be written to would have been in the way.
jq -r 'select(.t == "file" and .kind != "link") | [.mode, .path] | @tsv' "$work/index" | sort -r -k 2 |
  while IFS=$'\t' read -r mode path; do chmod "$(printf '%o' $((mode & 07777)))" "$target/$path"; done

printf 'restore: %s is in %s\n' "$snapshot" "$target" >&2
