# shellcheck shell=sh
# What OAR tells of a job, and what it is told of nodes. A script on the server is given the number of the job alone,
# and runs as oar; the rest is asked of oarstat.

# shellcheck source=contrib/jobs.sh
. "${0%/*}/../jobs.sh"

# begin_job NAME JOB: see begin; then user, nodes, end and is_deploy tell of the job.
# shellcheck disable=SC2034
begin_job() {
  begin "$1" "${2:-unknown}" || return
  case ${2:-} in
    '' | *[!0-9]*)
      say "the first argument has to be the number of a job: OAR has to call this script."
      return 1
      ;;
  esac
  facts=$(timeout -k 10 30 oarstat -f -j "$2" -J 2> /dev/null < /dev/null | python3 -c "$read_facts") || facts=''
  { read -r is_deploy && read -r user && read -r end && read -r nodes; } << TEXT && [ -n "$nodes" ] && return
$facts
TEXT
  say "oarstat -f -j $2 -J tells nothing of this job."
  return 1
}

read_facts='
import json, sys
(job,) = json.load(sys.stdin).values()
start = int(job.get("startTime") or job.get("start_time") or 0)
length = int(job.get("walltime") or 0)
print(int("deploy" in {kind.split("=")[0] for kind in job["types"]}))
print(job["owner"])
print(start + length if start and length else "")
print(",".join(sorted(set(job["assigned_network_address"]))))
'

# give_up NODES REASON: OAR gives them to no job until "oarnodesetting -h NODE -m off".
give_up() {
  run 30 oarnodesetting -h "$1" -m on || say "take $1 out of service: oarnodesetting -h $1 -m on"
}
