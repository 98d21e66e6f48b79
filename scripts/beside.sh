# Sourced after setup.sh: beside NAME makes .venv/NAME, an environment over .venv with requirements-NAME.txt, whose
# packages want other versions than requirements.txt has, and sets BESIDE to its Python.
beside() {
    local folder=.venv/$1 file=requirements-$1.txt site='import sysconfig; print(sysconfig.get_path("purelib"))' inner
    BESIDE=$folder/bin/python3
    cmp -s "$file" "$folder/installed.txt" && return
    echo "setup: installing $file into $folder" >&2
    rm -rf "$folder"
    python3 -m venv --without-pip "$folder"
    inner=$($BESIDE -c "$site")
    realpath --relative-to="$inner" "$(python3 -c "$site")" >"$inner/below.pth" # relative: the clone may move
    python3 -m pip --python "$BESIDE" install --quiet --disable-pip-version-check -r "$file" >&2 ||
        stop "pip could not install $file (its reason is above); fix that and run the same command again"
    cp "$file" "$folder/installed.txt"
}
