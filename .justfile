# `just` lists the recipes; `just check` is what the build server runs.

default:
    @just --list

# Formatting, lints, every test, licences: all that a change must pass.
check:
    ./infra/test

# The demo from images to answers, then stop.
quickstart:
    ./infra/quickstart --once

# Format every file in place.
fmt:
    cargo fmt --all
