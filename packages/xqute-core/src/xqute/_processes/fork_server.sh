#!/bin/bash -p
# Has a process ready for the next wrapper: forking costs a running shell a quarter of what it costs
# to start another. stdin and stdout are one socket to the driver. By turns it is told
#
#   PID    a process that leads a group of its own waits for a wrapper: it reads `PID:SCRIPT` and a NUL
#   RC     that process has ended, as has what it left in its group
#
# until stdin ends, which is when the driver closes it or is no more. What runs then runs on.
exec 2>/dev/null
while :; do
    set -m # each to a group of its own
    (
        set +m
        while :; do
            IFS= read -r -d '' xq_turn || exit 121
            # Not what was meant for one that was killed while it waited.
            if [[ ${xq_turn%%:*} == "$BASHPID" ]]; then break; fi
        done
        exec </dev/null >/dev/null
        # shellcheck disable=SC1090  # the wrapper
        . "${xq_turn#*:}"
    ) &
    set +m # or a job that is stopped for a while would pass for one that has ended
    printf '%s\n' "$!"
    wait "$!"
    xq_rc=$?
    kill -s KILL -- "-$!"
    printf '%s\n' "$xq_rc"
    # Nothing is sent before the next process is there: what can be read is the end.
    if read -r -t 0; then exit; fi
done
