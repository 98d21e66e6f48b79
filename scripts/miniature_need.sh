# Sourced by miniature.sh, whose names and functions it uses: whether to crop, on a world in which half of the questions
# need no crop. Two croppers are trained on it: `decide` from labelled rows and with a price for crops, `always` from the
# same boxes without either.
COST=0.5 # nats: the price of a crop in GRPO, and by the labels what a needed one gains at least

step "$WORLD" python3 -m miniature.world --output_path "$WORLD" --seed "$SEED" --train 1600 --need

# 1. The teacher's boxes. Meanwhile the answers without a crop.
TEACHER+=(--dataset_path "$WORLD" --split train)
boxes_to_learn() {
    step "${WORLD}_always_grpo" python3 create_dataset.py "${TEACHER[@]}" --output_path "${WORLD}_always"
}
base_answers() {
    step "${P}_base_answers.json" python3 generate_final_answers.py --modes base --name "$NAME" \
        --dataset_path "$WORLD" --split test "${SMALL[@]}"
    step "${P}_unseen_base_answers.json" python3 generate_final_answers.py --modes base --name "${NAME}_unseen" \
        --dataset_path "$WORLD" --split test "${LARGE[@]}"
}
together boxes_to_learn base_answers

# 2. SFT, 3. GRPO, 4. boxes, 5. answers of both answerers with a crop of every box: cropper NAME [FLAGS OF GRPO] -- [FLAGS
# OF THE BOXES]. Both start from a base that can spell `Not needed.`; the other one's adapter writes `Neeee.`.
BASE=models/${NAME}_base
step "$BASE/model.safetensors" python3 -m miniature.letters --model_path $SMOLVLM --output_path "$BASE"
cropper() {
    local name=${NAME}_$1 data=${WORLD}_$1 boxes=predictions/${NAME}_$1_bbox.json grpo=()
    local unseen=${NAME}_unseen_$1
    shift
    while [[ $1 != -- ]]; do
        grpo+=("$1")
        shift
    done
    step "models/${name}_sft/run.json" python3 train_sft.py \
        --base_model "$BASE" --dataset_path "${data}_sft" --output_dir "models/${name}_sft" --longest_edge 64 \
        --num_train_epochs 2 --learning_rate 3e-4 --logging_steps 20 --save_steps 1000 --seed "$SEED" --report_to none
    step "models/${name}_grpo/run.json" python3 train_grpo.py "${grpo[@]}" \
        --base_model "models/${name}_sft" --vqa_model $SMOLVLM --dataset_path "${data}_grpo" \
        --output_dir "models/${name}_grpo" --longest_edge 64 --vqa_longest_edge 64 \
        --learning_rate 8e-5 --logging_steps 5 --save_steps 1000 --seed "$SEED" --report_to none
    step "$boxes" python3 generate_bbox.py --model_path "models/${name}_grpo" --dataset_path "$WORLD" --split test \
        --longest_edge 64 --output "$boxes" "${@:2}"
    step "predictions/${name}_cropvlm_answers.json" python3 generate_final_answers.py --modes cropvlm \
        --bbox "$boxes" --name "$name" "${SMALL[@]}"
    step "predictions/${unseen}_cropvlm_answers.json" python3 generate_final_answers.py --modes cropvlm \
        --bbox "$boxes" --name "$unseen" "${LARGE[@]}"
}
always() { cropper always --; }
# The labels of the same boxes, the teacher's responses being known. The need of a held-out row is read from the first
# token; its box is kept in any case, so that one file, with the answers without a crop, has every share of crops.
decide() {
    if [[ ! -e ${WORLD}_decide.journal.jsonl ]]; then
        cp "${WORLD}_always.journal.jsonl" "${WORLD}_decide.journal.jsonl"
    fi
    step "${WORLD}_decide_grpo" python3 create_dataset.py "${TEACHER[@]}" --output_path "${WORLD}_decide" \
        --label_need --need_threshold $COST --reward_model $SMOLVLM --reward_longest_edge 64
    cropper decide --crop_cost $COST -- --need
    # The threshold of the claims is chosen on the labelled rows, anew for every training: see generate_bbox.py --need.
    step "${P}_labelled_bbox.json" python3 generate_bbox.py --need --model_path "models/${NAME}_decide_grpo" \
        --dataset_path "${WORLD}_decide_sft" --longest_edge 64 --output "${P}_labelled_bbox.json"
}
together decide always

# 6. The curve, and verdicts on the claims: 3 where one does not hold.
code=0 chosen=$(threshold "$NAME")
run python3 scripts/report.py --predictions predictions --claims scripts/claims/miniature_need.yaml \
    --names name="$NAME" threshold="$chosen" --output "${P}_report" || code=$?
echo "$((SECONDS - start)) s; curve: ${P}_report/report.html"
exit $code
