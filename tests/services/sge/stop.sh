#!/usr/bin/env bash
# Ends the daemons that start.sh started in FOLDER, their shepherds and jobs, by their pids, and removes the folder.
set -uo pipefail
folder=$1

is_ours() { # PID COMM
    [[ $1 && $(cat "/proc/$1/comm" 2>/dev/null) == "$2" ]] && ! grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null
}

end() { # FILE COMM: KILL, for there is nothing to be kept, and nothing to wait for
    local pid tries
    pid=$(cat "$1" 2>/dev/null) || return 0
    is_ours "$pid" "$2" || return 0
    kill -KILL "$pid"
    for ((tries = 200; tries > 0; tries--)); do
        is_ours "$pid" "$2" || return 0
        sleep 0.05
    done
    echo "tests/services/sge: $2 $pid does not end" >&2
}

end "$folder/run/qmaster.pid" sge_qmaster
end "$folder/run/execd.pid" sge_execd
for file in "$folder"/spool/execd/*/active_jobs/*/pid; do end "$file" sge_shepherd; done
# The jobs: the sessions of those that run a script of this folder.
sessions=" "
for file in /proc/[0-9]*; do
    if grep -qsF "$folder/spool/execd/" "$file/cmdline"; then sessions+="${file#/proc/} "; fi
done
for file in /proc/[0-9]*/stat; do
    read -r line <"$file" || continue
    read -r _ _ _ session _ <<<"${line##*) }"
    if [[ $sessions == *" $session "* ]]; then kill -KILL "${line%% *}"; fi
done 2>/dev/null
rm -rf "$folder"
