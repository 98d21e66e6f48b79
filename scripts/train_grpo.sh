#!/usr/bin/env bash
# Stage 2, GRPO:  bash scripts/train_grpo.sh GPU [flags of train_grpo.py]
# Starts from the newest whole SFT model under models/sft_* (a finished one or a checkpoint) unless --base_model names
# one. With --resume_from_checkpoint it keeps the model that the run started from, which train_grpo.py has recorded.
# Without a GPU the CPU is used, whatever the number.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
if [[ ! ${1-} =~ ^[0-9]+$ ]]; then
    echo "error: expected the index of a GPU, then flags of train_grpo.py: bash scripts/train_grpo.sh 0" >&2
    exit 2
fi
GPU=$1
shift
source "$(dirname "$(readlink -f "$0")")/setup.sh"

base=() named='' resume='' output=models/grpo_512 previous=''
for word in "$@"; do
    case $word in
        --base[-_]model | --base[-_]model=* | --config | --config=*) named=yes ;;
        --output[-_]dir=*) output=${word#*=} ;;
        --resume[-_]from[-_]checkpoint=*) resume=${word#*=} ;;
    esac
    case $previous in
        --output[-_]dir) output=$word ;;
        --resume[-_]from[-_]checkpoint) resume=$word ;;
    esac
    previous=$word
done
# whole FOLDER: whether it holds a complete checkpoint or model, whose record is written last, or a model from elsewhere.
whole() {
    [[ -f $1/run.json ]] && return
    [[ $1 != */checkpoint-* && ! -f $1/base_model.txt && (-f $1/adapter_config.json || -f $1/config.json) ]]
}

noted=$output/base_model.txt
if [[ -z $named && -s $noted && ! $resume =~ ^([Ff]alse|None|)$ ]]; then
    base=(--base_model "$(<"$noted")")
    echo "continuing with the SFT model that this run started from: ${base[1]}" >&2
elif [[ -z $named ]]; then
    newest=''
    for weights in models/sft_*/{,checkpoint-*/}{adapter_model,model}.safetensors; do
        if [[ -f $weights && (-z $newest || $weights -nt $newest) ]] && whole "$(dirname "$weights")"; then
            newest=$weights
        fi
    done
    if [[ -z $newest ]]; then
        empty=$([[ ! -f $noted || -s $noted ]] || echo ", and $noted is empty")
        echo "error: no complete SFT model under models/sft_*$empty;" \
            "run scripts/train_sft.sh first, or name one with --base_model" >&2
        exit 2
    fi
    base=(--base_model "$(dirname "$newest")")
    echo "starting from the newest SFT model: ${base[1]}" >&2
fi
exec python3 train_grpo.py --gpu "$GPU" "${base[@]}" "$@"
