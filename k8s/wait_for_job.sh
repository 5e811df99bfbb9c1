#!/bin/sh
# Wait until a RayJob has ended:  k8s/wait_for_job.sh train 3600
# Exit code 0 when it succeeded; 1 with KubeRay's reason when it failed for good, or when the seconds are over.
set -eu
job=$1
deadline=$(($(date +%s) + $2))
status=unknown
while [ "$(date +%s)" -lt "$deadline" ]; do
    status=$(kubectl -n brewclip get rayjob "$job" -o jsonpath='{.status.jobDeploymentStatus}')
    case "$status" in
        Complete)
            result=$(kubectl -n brewclip get rayjob "$job" -o jsonpath='{.status.jobStatus}')
            echo "$job: $result"
            [ "$result" = SUCCEEDED ]
            exit ;;
        Failed | ValidationFailed)
            kubectl -n brewclip get rayjob "$job" -o jsonpath='{.status.reason}: {.status.message}{"\n"}' >&2
            exit 1 ;;
    esac
    sleep 5
done
echo "$job has not ended in $2 s: $status" >&2
exit 1
