# Sourced by the scripts that run several steps. A signal that ends the script also ends the steps that are running, and
# the step at which a script fails is named. What nohup has had ignored stays ignored: bash leaves such a signal alone.
set -m # every background command leads a process group of its own
STEP='' # the command that is running

# run COMMAND...: run it in the background, since only then does a signal interrupt bash's waiting. Returns its exit
# code; 2 where it cannot be started. Where the system has setpriv, a killed script takes the command with it.
run() {
    local code=0 bound=()
    if command -v setpriv >/dev/null; then bound=(setpriv --pdeathsig TERM --); fi
    STEP=$*
    hash "$1" 2>/dev/null || true
    # By its path: setpriv would look further in the PATH for a command that cannot be run.
    "${bound[@]}" "${BASH_CMDS[$1]-$1}" "${@:2}" </dev/null &
    wait $! || code=$?
    STEP=''
    if [[ $code == 126 || $code == 127 ]]; then code=2; fi # not executable, not found
    if [[ $code != 0 && $code != 3 ]]; then echo "error: exit code $code of: $*" >&2; fi
    return $code
}

# end_steps CODE: end everything in the background, then the script.
end_steps() {
    local job
    STEP=''
    for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done
    wait
    exit "$1"
}
trap 'end_steps 129' HUP
trap 'end_steps 130' INT
trap 'end_steps 138' USR1
trap 'end_steps 140' USR2
trap 'end_steps 143' TERM

# leave: the end of every script. Bash ends at once where it can start no process, in the middle of a step.
leave() {
    local code=$?
    if declare -F clean_up >/dev/null; then clean_up; fi
    if [[ $code == 0 || -z $STEP ]]; then return; fi
    echo "error: cannot start: $STEP" >&2
    exit 2
}
trap leave EXIT
