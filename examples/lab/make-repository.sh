#!/bin/bash
# Make a git repository to try examples/lab/kernel-module.yaml with: make-repository.sh FOLDER
# Branches: master, upstream (with a fix), and of topics: faster (fine), louder (a new warning and another kABI),
# backport (takes an upstream commit whose fix is missing), clash (conflicts with master).
set -euo pipefail
folder=${1:?usage: make-repository.sh FOLDER}
source=$(cd "$(dirname "$0")/heartbeat" && pwd)
mkdir "$folder"
cd "$folder"
export GIT_AUTHOR_NAME=example GIT_AUTHOR_EMAIL=example@localhost
export GIT_COMMITTER_NAME=example GIT_COMMITTER_EMAIL=example@localhost
minute=0
commit() {
    minute=$((minute + 1))
    GIT_AUTHOR_DATE="2026-01-01T00:$(printf %02d $minute):00Z" GIT_COMMITTER_DATE="2026-01-01T00:$(printf %02d $minute):00Z" \
        git commit --quiet --all --message "$1"
}
git init --quiet --initial-branch=master
cp "$source"/* .
git add .
commit "heartbeat: a module that counts beats"
git branch upstream
git branch clash

sed -i 's/period_ms = 100/period_ms = 200/' heartbeat.c
commit "heartbeat: slower by default"

git checkout --quiet upstream
sed -i 's/jiffies + 1)/jiffies + msecs_to_jiffies(1))/' heartbeat.c
commit "heartbeat: begin after a millisecond"
begin=$(git rev-parse HEAD)
sed -i 's/msecs_to_jiffies(1))/msecs_to_jiffies(period_ms))/' heartbeat.c
commit "heartbeat: begin after a period

The first beat came too early.

Fixes: ${begin:0:12} (\"heartbeat: begin after a millisecond\")"

git checkout --quiet -b faster master
sed -i 's/heartbeat: stopped after/heartbeat: stopped, after/' heartbeat.c
commit "heartbeat: a comma"

git checkout --quiet -b louder master
sed -i 's/^\tunsigned long beats;/&\n\tunsigned int missed;/' heartbeat.h
sed -i 's/^\tstate.beats++;/\tint forgotten;\n\n&/' heartbeat.c
commit "heartbeat: count what was missed"

git checkout --quiet -b backport master
sed -i 's/jiffies + 1)/jiffies + msecs_to_jiffies(1))/' heartbeat.c
commit "heartbeat: begin after a millisecond

commit $begin upstream."

git checkout --quiet clash
sed -i 's/period_ms = 100/period_ms = 50/' heartbeat.c
commit "heartbeat: faster by default"
git checkout --quiet master
echo "made $folder: $(git branch --format='%(refname:short)' | tr '\n' ' ')"
