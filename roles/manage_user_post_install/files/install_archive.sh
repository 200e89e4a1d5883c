# shellcheck shell=bash
# Unpack the archive that arrives on standard input, then run what the user chose from it.
set -eu
rambin=$KADEPLOY_PREPOST_EXTRACTION_DIR
mkdir -p "$rambin"
case $KADEPLOY_ARCHIVE_KIND in
  tgz) unpack=-z ;;
  tbz2) unpack=-j ;;
  txz) unpack=-J ;;
  *) echo "unknown kind of archive: $KADEPLOY_ARCHIVE_KIND" >&2; exit 1 ;;
esac
tar -x "$unpack" -f - -C "$rambin"
case $KADEPLOY_ARCHIVE_SCRIPT in
  none | breakpoint) exit 0 ;;
esac
cd "$rambin"
script=${KADEPLOY_ARCHIVE_SCRIPT%% *}
if [ -f "$script" ] && head -n 1 "$script" | grep -q $'^#!.*\r$'; then
  echo "$script has the line ends of Windows, and Linux finds no such interpreter: convert it, with dos2unix" >&2
  exit 1
fi
exec bash -c "exec $rambin/$KADEPLOY_ARCHIVE_SCRIPT" < /dev/null
