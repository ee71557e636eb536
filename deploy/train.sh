#!/bin/sh
# What the image `train` does: make the bundle /bundles/python once. One that is there stays; a run that was stopped goes on.
set -eu
if [ ! -f /bundles/python/manifest.json ]; then
  if [ -f runs/python/config.json ]; then
    elman train --resume runs/python
  else
    elman train --preset python --output runs/python
  fi
  elman export runs/python --output /bundles/python
fi
