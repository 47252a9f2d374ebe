#!/usr/bin/env bash
# A Ray head on this machine: token authentication, its dashboard on localhost.
# Ray's own ports listen on every address of the machine; only the token protects them.
#
#   cluster/local.sh           start it, and print the two lines that submit a job
#   cluster/local.sh --stop    stop the processes that were started
#
# Variables: GTVRAY_CLUSTER (folder for token, process ids and log), RAY_PORT (6379), DASHBOARD_PORT (8265), CPUS (all).
set -euo pipefail

home=${GTVRAY_CLUSTER:-${XDG_STATE_HOME:-$HOME/.local/state}/gtvray-cluster}
ray_port=${RAY_PORT:-6379}
dashboard=http://127.0.0.1:${DASHBOARD_PORT:-8265}
repository=$(cd "$(dirname "$0")/.." && pwd)
bin=$repository/.venv/bin
[ -x "$bin/ray" ] || bin=$(dirname "$(command -v ray)") || { echo "error: ray is missing: run make .venv/run" >&2; exit 1; }

# A process id may be reused later; process id and start time together identify a process.
started() { cut -d ')' -f 2- "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 21; }
alive() { [ -n "${1:-}" ] && [ "$(started "$1")" = "$2" ]; }
family() {
    echo "$1"
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do family "$child"; done
}

stop() {
    [ -f "$home/head" ] || { echo "nothing to stop: no head was started from $home"; return; }
    read -r pid since sessions <"$home/head"
    if alive "$pid" "$since"; then
        # Listed before the head is stopped: afterwards its children can no longer be found through it.
        family "$pid" | while read -r id; do echo "$id $(started "$id")"; done >"$home/family"
        kill -TERM "$pid"
        for _ in $(seq 60); do alive "$pid" "$since" && sleep 0.5 || break; done
        while read -r id time; do
            if alive "$id" "$time"; then kill -KILL "$id" 2>/dev/null || true; fi
        done <"$home/family"
    fi
    rm -rf "$sessions"
    rm -f "$home/head" "$home/family"
    echo "stopped"
}

answers() {
    "$bin/python" - "$dashboard" "$home/token" <<'PYTHON' 2>/dev/null
import pathlib, sys, urllib.request
token = pathlib.Path(sys.argv[2]).read_text().strip()
request = urllib.request.Request(sys.argv[1] + "/api/jobs/", headers={"Authorization": f"Bearer {token}"})
# The request must not go through a proxy of the environment.
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5)
PYTHON
}

start() {
    mkdir -p "$home"
    chmod 700 "$home"
    if [ -f "$home/head" ]; then
        read -r pid since sessions <"$home/head"
        alive "$pid" "$since" && { echo "error: it is already running as process $pid; stop it with $0 --stop" >&2; exit 1; }
    fi
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$home/token")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token RAY_USAGE_STATS_ENABLED=0
    unset RAY_AUTH_TOKEN RAY_ADDRESS
    # Ray's agent has a fixed port by default, so a second head on the machine would accept no jobs: use a free port.
    agent_port=$("$bin/python" -c 'import socket; probe = socket.create_server(("127.0.0.1", 0)); print(probe.getsockname()[1])')
    # With sessions in /tmp/ray, every ray.init() on this machine would connect to this head.
    sessions=$(mktemp -d /tmp/gtvray-ray.XXXXXX)
    # In a batch job or container, Ray would count the CPUs of the host.
    cpus=${CPUS:-$("$bin/python" -c 'from gtvray.runtime import usable_cpus; print(usable_cpus())')}
    # `ray start` without the module that queries cloud metadata and reports that usage reports are off.
    quiet='
from gtvray.runtime import without_usage_module
from ray.scripts.scripts import main
with without_usage_module():
    main()
'
    # A separate session, so that Ctrl-C here does not stop the head.
    setsid "$bin/python" -c "$quiet" start --head --block --temp-dir "$sessions" --port "$ray_port" \
        --dashboard-host 127.0.0.1 --dashboard-port "${dashboard##*:}" \
        --dashboard-agent-listen-port "$agent_port" --num-cpus "$cpus" \
        >"$home/head.log" 2>&1 </dev/null &
    pid=$!
    since=$(started "$pid")
    echo "$pid $since $sessions" >"$home/head"
    for _ in $(seq 120); do
        answers && break
        alive "$pid" "$since" || { echo "error: Ray did not start; see $home/head.log" >&2; rm -f "$home/head"; exit 1; }
        sleep 0.5
    done
    echo "Ray listens on port $ray_port, its dashboard at $dashboard. Submit a job with:"
    echo
    echo "  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token"
    echo "  $bin/gtvray submit --address $dashboard -- doctor"
}

case ${1:-} in
    "") start ;;
    --stop) stop ;;
    *) echo "usage: $0 [--stop]" >&2; exit 2 ;;
esac
