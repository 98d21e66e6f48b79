# Sourced by the scripts that run several steps: a signal that ends the script also ends the steps that are running.
set -m # every background command leads a process group of its own

# run COMMAND...: run it in the background, since only then does a signal interrupt bash's waiting.
run() {
    "$@" </dev/null &
    wait $!
}

# end_steps CODE: end everything in the background, then the script.
end_steps() {
    local job
    for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done
    wait
    exit "$1"
}
trap 'end_steps 129' HUP
trap 'end_steps 130' INT
trap 'end_steps 143' TERM
