#!/usr/bin/env bash
# Ends the daemons that start.sh started in FOLDER, their shepherds and jobs, by their pids, and removes the folder.
set -uo pipefail
folder=$1

is_ours() { # PID COMM
    [[ $1 && $(cat "/proc/$1/comm" 2>/dev/null) == "$2" ]] && ! grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null
}

end() { # FILE COMM: KILL, for there is nothing to be kept, and nothing to wait for
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    is_ours "$pid" "$2" || return 0
    kill -CONT "$pid" # a test may have stopped it
    kill -KILL "$pid"
    for ((tries = 200; tries > 0; tries--)); do
        is_ours "$pid" "$2" || return 0
        sleep 0.05
    done
    echo "tests/services/sge: $2 $pid does not end" >&2
}

if [[ -e $folder/env.sh ]]; then
    # shellcheck disable=SC1091  # made by start.sh
    . "$folder/env.sh"
    if is_ours "$(cat "$folder/run/qmaster.pid" 2>/dev/null)" sge_qmaster; then
        kill -CONT "$(cat "$folder/run/qmaster.pid")"
        timeout 10 qdel -u '*' >/dev/null 2>&1
        for ((tries = 100; tries > 0; tries--)); do
            [[ $(timeout 5 qstat -u '*' 2>/dev/null) ]] || break
            sleep 0.1
        done
    fi
fi
end "$folder/run/execd.pid" sge_execd
for file in "$folder"/spool/execd/*/active_jobs/*/pid; do end "$file" sge_shepherd; done
end "$folder/run/qmaster.pid" sge_qmaster
# Jobs that lost their shepherd: the sessions of those that run a script of this folder.
sessions=" "
for file in /proc/[0-9]*; do
    if grep -qsF "$folder/spool/execd/" "$file/cmdline"; then sessions+="${file#/proc/} "; fi
done
for file in /proc/[0-9]*/stat; do
    read -r line 2>/dev/null <"$file" || continue
    read -r _ _ _ session _ <<<"${line##*) }"
    if [[ $sessions == *" $session "* ]]; then kill -KILL "${line%% *}"; fi
done 2>/dev/null
rm -rf "$folder"
