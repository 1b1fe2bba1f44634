#!/usr/bin/env bash
# Download COCO 2017 in the layout that data.path= expects: DIR/train2017, DIR/val2017 and DIR/annotations.
#
#   scripts/download_coco.sh DIR
#
# Downloads 20.4 GB. Needs 40 GB of disk while train2017 is unpacked, 22 GB in the end. After a stop, the same
# command continues. A folder gets its name only once it is complete, and is not touched again.
# COCO_URL=… names a mirror; COCO_ARCHIVES=FILE replaces the list of archives below, for the tests.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 1; }

[[ $# -eq 1 && $1 != -* ]] || fail "usage: $0 DIR"
for tool in curl unzip; do command -v "$tool" >/dev/null || fail "$tool is missing; install it"; done
# No https: the host is a storage bucket with dots in its name, and no certificate is valid for it. The
# checksums verify the bytes instead.
url=${COCO_URL:-http://images.cocodataset.org}
# sha256 (as in torchvision's prototype/datasets/_builtin/coco.py), path below the URL, the folder it unpacks to,
# GB of both. Largest first: each archive is deleted before the next one is downloaded.
archives=$(cat "${COCO_ARCHIVES:-/dev/stdin}" <<'END'
69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929 zips/train2017.zip train2017 40
4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05 zips/val2017.zip val2017 2
113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268 annotations/annotations_trainval2017.zip annotations 2
END
)
mkdir -p "$1"
cd "$1"
exec 9>>.download_coco.lock
flock --nonblock 9 || fail "another download is running in $PWD; wait for it"

while read -r sha256 path folder gigabytes <&3; do
  [[ ! -d $folder ]] || { echo "$folder: already there"; continue; }
  archive=${path##*/}
  rm -rf "$folder.unpacking" # from a run that was stopped
  needed=$((gigabytes * 10 ** 9 - $(stat --format=%s "$archive" 2>/dev/null || echo 0)))
  free=$(df --block-size=1 --output=avail . | tail -n 1)
  echo "$folder: needs $((needed / 10 ** 9)) GB of disk, $((free / 10 ** 9)) GB are free"
  [[ $needed -le $free ]] || fail "$PWD: the disk is too small; free some space or give a folder on another disk"

  # --retry can't handle a broken connection: it would restart at the offset where this curl began.
  breaks=0
  until curl --fail --location --continue-at - --retry 5 --speed-limit 1 --speed-time 60 \
    --output "$archive" "$url/$path"; do
    [[ $? =~ ^(18|28|56)$ && $((breaks += 1)) -lt 100 ]] || fail "$url/$path failed; run again, or set COCO_URL to a mirror"
  done
  if ! sha256sum --check --status <<<"$sha256  $archive"; then
    rm "$archive"
    fail "$url/$path: its sha256 is not $sha256. The file was deleted; run again, or set COCO_URL to a mirror"
  fi
  unzip -q "$archive" -d "$folder.unpacking"
  sync # the files must be on disk before their folder gets its name
  mv "$folder.unpacking/$folder" "$folder"
  rm -r "$folder.unpacking" "$archive"
done 3<<<"$archives"
echo "ready: data.path=$PWD"
