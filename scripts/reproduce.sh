#!/usr/bin/env bash
# The real experiment in order, at 512 px, scored on TextVQA:  bash scripts/reproduce.sh GPU [textvqa|mixture]
# Trains on TextVQA, like the released experiment, or with `mixture` on its four data sets. All of the paper's
# figures, at all its sizes, with all its answerers:  bash scripts/reproduce.sh GPU paper [--plan] [--seeds 3]
# Not in the paper, whether to crop:  bash scripts/reproduce.sh GPU need [--plan]
# Needs a CUDA GPU and the Hugging Face Hub. Finished stages are skipped, and an interrupted one continues from its
# journal or newest checkpoint: run the same command again. Times are from notes on the paper, at 2048 px on an A100.
[ -n "${BASH_VERSION-}" ] || { echo "error: run it with bash: bash $0" >&2; exit 2; }
set -euo pipefail
if [[ ! ${1-} =~ ^[0-9]+$ || ! ${2-} =~ ^(textvqa|mixture|paper|need)?$ || ($# -gt 2 && ! $2 =~ ^(paper|need)$) ]]; then
    echo "error: expected the index of a GPU, then nothing, textvqa, mixture, paper or need: bash scripts/reproduce.sh 0" >&2
    exit 2
fi
GPU=$1
if [[ ${2-} =~ ^(paper|need)$ ]]; then
    source "$(dirname "$(readlink -f "$0")")/setup.sh"
    exec python3 scripts/reproduce.py "$GPU" --claims "scripts/claims/$2.yaml" --predictions "predictions/$2" "${@:3}"
fi
# The four training splits hold 124,085 rows; their halves, for SFT and for GRPO, are the 62k of notes on the paper.
SOURCES=(textvqa docvqa infovqa stvqa)
DATA=datasets/cropvlm_mixture SFT=models/sft_512_mixture GRPO=models/grpo_512_mixture PREDICTIONS=predictions/mixture
if [[ ${2:-textvqa} == textvqa ]]; then
    SOURCES=(textvqa)
    DATA=datasets/cropvlm_dataset SFT=models/sft_512 GRPO=models/grpo_512 PREDICTIONS=predictions
fi
source "$(dirname "$(readlink -f "$0")")/setup.sh"
source scripts/steps.sh

# Run a stage unless all files named before `--` exist; a trainer writes run.json last. Exit code 3 (complete, some rows
# failed) does not stop the experiment.
stage() {
    local missing=0 code=0
    while [[ $1 != -- ]]; do
        [[ -e $1 ]] || missing=1
        shift
    done
    shift
    if [[ $missing == 0 ]]; then
        echo "skipped, its output exists: $*" >&2
        return
    fi
    echo "running: $*" >&2
    run "$@" || code=$?
    [[ $code == 0 || $code == 3 ]] || exit "$code"
}

# 1. Data set construction: the teacher outlines a region for the first half of the rows; small boxes grow.
stage "${DATA}_sft" "${DATA}_grpo" -- \
    python3 create_dataset.py --dataset_path "${SOURCES[@]}" --output_path $DATA --gpu "$GPU"

# 2. SFT: the cropper learns to write the teacher's boxes. About 3 h.
stage $SFT/adapter_model.safetensors $SFT/run.json -- \
    bash scripts/train_sft.sh "$GPU" --dataset_path ${DATA}_sft --output_dir $SFT --resume_from_checkpoint True

# 3. GRPO with the log-likelihood reward: it learns which box helps the answerer. About 24 h.
stage $GRPO/adapter_model.safetensors $GRPO/run.json -- \
    bash scripts/train_grpo.sh "$GPU" --base_model $SFT --dataset_path ${DATA}_grpo --output_dir $GRPO \
    --resume_from_checkpoint True

# 4. Boxes for the 5,000 validation questions of TextVQA.
BOXES=$PREDICTIONS/textvqa_bbox.json
stage $BOXES -- python3 generate_bbox.py --model_path $GRPO --dataset textvqa --output $BOXES --gpu "$GPU"

# 5. Answers of the frozen answerer without and with the crop.
BASE=$PREDICTIONS/textvqa_base_answers.json
CROPVLM=$PREDICTIONS/textvqa_cropvlm_answers.json
stage $BASE $CROPVLM -- \
    python3 generate_final_answers.py --bbox $BOXES --output_path $PREDICTIONS --gpu "$GPU"

# 6. VQA accuracy without and with the crop, and the paired difference.
python3 vqa_accuracy.py --predictions_file $BASE
python3 vqa_accuracy.py --predictions_file $CROPVLM --compare $BASE
