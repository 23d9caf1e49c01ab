#!/bin/sh
# Write the lists of this folder anew: the versions of constraints.txt, each with the SHA-256 of every file of its release.
# usage: refresh.sh UV, from the repository's root. The hashes come from the package index that UV is configured for.
set -eu
uv=$1

# lock NAME ARGUMENTS: what they ask for, for every system and Python, in locks/NAME.txt
lock() {
    name=$1
    shift
    {
        echo '# Written by `make locks`: docs/security.md says where these hashes are checked.'
        "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
            --constraints constraints.txt "$@"
    } > "locks/$name.new"
    mv "locks/$name.new" "locks/$name.txt"
}

# without_torch NAME: take out torch and the CUDA libraries, which are in torch.txt
without_torch() {
    awk '/^[a-z]/ { skip = /^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } !skip' "locks/$1.txt" > "locks/$1.new"
    mv "locks/$1.new" "locks/$1.txt"
}

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
grep '^torch==' constraints.txt > "$work/torch.in"
grep '^setuptools==' constraints.txt > "$work/build.in"

lock torch "$work/torch.in"
lock build "$work/build.in"
lock runtime pyproject.toml --extra postgres --extra encryption --extra parquet --extra tracing
lock dev pyproject.toml --extra dev
lock page locks/page.in
lock tools locks/tools.in
without_torch runtime
without_torch dev
