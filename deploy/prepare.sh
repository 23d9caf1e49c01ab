#!/bin/sh
# Write the file that compose.yaml is filled from: secrets drawn on this machine, and the images' digests of today.
# usage: sh deploy/prepare.sh [FILE], .env if not given. Needs openssl, and docker with its buildx plugin. The file is for its owner only.
set -eu
umask 077
file=${1:-.env}
if [ -e "$file" ]; then
    echo "$file exists already. Running services have its secrets, so it is not overwritten; move it away to draw new ones." >&2
    exit 1
fi

# digest IMAGE: what the tag means today; later starts get exactly these bytes
digest() {
    found=$(docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}') || found=
    case $found in
        sha256:*) echo "$found" ;;
        *) echo "The digest of $1 cannot be looked up, so nothing was written. Is its registry reachable?" >&2; return 1 ;;
    esac
}

python=$(digest python:3.11-slim)
vllm=$(digest vllm/vllm-openai:v0.32.0)
postgres=$(digest postgres:17)
caddy=$(digest caddy:2.10)
cat > "$file" <<EOF
# fill in: what docs/scale.md says
MODEL_FOLDER=
MODEL_NAME=
PAGE_HOST=

# drawn at random. Without HISTORY_KEY, stored conversations cannot be read: keep a copy elsewhere
PAGE_PASSWORD=$(openssl rand -hex 24)
ENGINE_KEY=$(openssl rand -hex 24)
OPERATOR_TOKEN=$(openssl rand -hex 24)
DATABASE_PASSWORD=$(openssl rand -hex 24)
DATABASE_ADMIN_PASSWORD=$(openssl rand -hex 24)
HISTORY_KEY=$(openssl rand -base64 32)

# optional: tokens of API clients, and where finished turns are posted
API_TOKENS=
LOGGING_URL=
LOGGING_TOKEN=
LOGGING_SECRET=

# the images
PYTHON_DIGEST=$python
VLLM_DIGEST=$vllm
POSTGRES_DIGEST=$postgres
CADDY_DIGEST=$caddy
EOF
echo "wrote $file: fill in MODEL_FOLDER, MODEL_NAME and PAGE_HOST"
