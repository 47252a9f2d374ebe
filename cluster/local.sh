#!/usr/bin/env bash
# A Ray head on this machine: token authentication, its dashboard on localhost.
# Ray's own ports listen on every address; the token is what protects them.
#
#   cluster/local.sh           start it, and print the two lines that submit a job
#   cluster/local.sh --stop    end it, by the process ids it was started with
#
# Variables: GTVRAY_CLUSTER (folder of token, ids and log), RAY_PORT (6379), DASHBOARD_PORT (8265), CPUS (all).
set -euo pipefail

home=${GTVRAY_CLUSTER:-${XDG_STATE_HOME:-$HOME/.local/state}/gtvray-cluster}
ray_port=${RAY_PORT:-6379}
dashboard=http://127.0.0.1:${DASHBOARD_PORT:-8265}
repository=$(cd "$(dirname "$0")/.." && pwd)
bin=$repository/.venv/bin
[ -x "$bin/ray" ] || bin=$(dirname "$(command -v ray)") || { echo "error: ray is missing: run make .venv/run" >&2; exit 1; }

# A process id may be given to another process later; id and start time together are not.
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
        # Noted first: when the head ends, its children lose the tie by which they could be found.
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
# This machine is not asked through a proxy of the environment.
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5)
PYTHON
}

start() {
    mkdir -p "$home"
    chmod 700 "$home"
    if [ -f "$home/head" ]; then
        read -r pid since sessions <"$home/head"
        alive "$pid" "$since" && { echo "error: it runs already, as process $pid; end it with $0 --stop" >&2; exit 1; }
    fi
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$home/token")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token RAY_USAGE_STATS_ENABLED=0
    # The layer that gtvray's endpoint needs in Ray Serve's proxies, also for `serve deploy`.
    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=gtvray.serving.edge.middlewares
    unset RAY_AUTH_TOKEN RAY_ADDRESS
    # Ray gives every agent one fixed port, and the second head on a machine then takes no jobs: ask for a free one.
    agent_port=$("$bin/python" -c 'import socket; probe = socket.create_server(("127.0.0.1", 0)); print(probe.getsockname()[1])')
    # In /tmp/ray the head would become the one that every ray.init() of this machine connects to.
    sessions=$(mktemp -d /tmp/gtvray-ray.XXXXXX)
    # Ray would count the host's CPUs in a batch job.
    cpus=${CPUS:-$("$bin/python" -c 'from gtvray.runtime import usable_cpus; print(usable_cpus())')}
    # `ray start`, without the module that asks for cloud metadata and reports that usage reports are off.
    quiet='
from gtvray.runtime import without_usage_module
from ray.scripts.scripts import main
with without_usage_module():
    main()
'
    # In a session of its own, so that Ctrl-C here does not end it.
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
    echo "Ray listens on port $ray_port, its dashboard on $dashboard. Submit a job with:"
    echo
    echo "  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token"
    echo "  $bin/gtvray submit --address $dashboard -- doctor"
}

case ${1:-} in
    "") start ;;
    --stop) stop ;;
    *) echo "usage: $0 [--stop]" >&2; exit 2 ;;
esac
