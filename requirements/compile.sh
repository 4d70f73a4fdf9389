#!/bin/sh
# Writes the lists of this folder, with the hashes of every file of the package index: versions are those of
# constraints.txt, for each Python and system that lorasweep runs on. From the root: make requirements
# torch-cpu.txt is written by hand: its head says from what.
set -eu
cd "$(dirname "$0")/.."
uv=${1:-.venv/bin/uv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # compile INPUT ARGUMENTS...: its list, one package a block
    "$uv" pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt --generate-hashes \
        --no-annotate --no-header "$@"
}
blocks() { # blocks PATTERN: of standard input those whose package has such a name; an empty list is an error
    awk -v pattern="^($1)==" '/^[^ ]/ { keep = $0 ~ pattern } keep { print; some = 1 } END { exit !some }'
}
without() { # without LIST...: of standard input what is in none of these lists
    awk 'FILENAME != "-" { if (split($0, part, "==") > 1) listed[part[1]]; next }
        /^[^ ]/ { split($0, part, "=="); keep = !(part[1] in listed) } keep' "$@" -
}
list() { # list NAME COMMENT: standard input as a list of this folder
    { echo "# $2"; echo "# Written by: make requirements"; cat; } > "$work/$1.txt"
}

compile pyproject.toml > "$work/all"
blocks 'torch|triton|nvidia-.*|cuda-.*' < "$work/all" |
    list torch-cuda "PyPI's build of torch with the packages that it takes: CUDA's on Linux, the only build there is on macOS."
blocks setuptools < "$work/all" | list build "What builds the packages that come as source, lorasweep among them."
without "$work/torch-cuda.txt" "$work/build.txt" < "$work/all" |
    list run "What a command needs, without torch (torch-cpu.txt, torch-cuda.txt) and what builds (build.txt)."
for extra in mlflow wandb-report dev; do
    compile pyproject.toml --extra "$extra" > "$work/all"
    without "$work/torch-cuda.txt" "$work/build.txt" "$work/run.txt" < "$work/all" > "$work/more"
    if [ "$extra" = dev ]; then blocks triton < "$work/all" >> "$work/more"; fi
    list "$extra" "What the extra '$extra' adds to run.txt." < "$work/more"
done
mv "$work"/*.txt requirements/
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --output-file requirements/audit.txt requirements/audit.in # versions stay those of the file, where it has them
